import pytest
import torch
from torch import nn

import panther as pr
from panther.compression.inputs import Inputs


class Two(nn.Module):
    def forward(self, tokens, mask):
        return tokens.float() * mask


def test_axes_that_vary_between_batches_vary_in_a_file():
    batches = [{"tokens": torch.ones(4, n), "mask": torch.ones(4, n), "labels": torch.ones(4)} for n in (3, 5)]
    inputs = Inputs.of(Two(), batches, None)
    assert inputs.by_name
    assert inputs.dynamic_axes == {"tokens": {0: "batch", 1: "size_1"}, "mask": {0: "batch", 1: "size_1"}}
    assert {name: tuple(tensor.shape) for name, tensor in inputs.examples(2).items()} == {
        "tokens": (2, 3),
        "mask": (2, 3),
    }


def test_by_position_without_labels():
    inputs = Inputs.of(nn.Linear(3, 2), [(torch.arange(6.0).reshape(2, 3), torch.zeros(2))], None)
    assert not inputs.by_name
    assert inputs.dynamic_axes == {"input": {0: "batch"}}
    (x,) = inputs.examples(1)
    assert x.tolist() == [[0.0, 1.0, 2.0]]
    assert inputs.repeated(3)["input"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]


def test_what_a_file_can_not_be_called_with_is_refused():
    with pytest.raises(pr.ConversionError, match="custom forward calls the model differently"):
        Inputs.of(Two(), [1], lambda model, batch: batch)
    with pytest.raises(pr.ConversionError, match="are not plain tensors"):
        Inputs.of(Two(), [{"tokens": [1], "mask": torch.ones(1)}], None)
