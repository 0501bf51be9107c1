from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.nn import ProgressiveSKLinear, SKLinear
from panther.train import param_groups


def test_every_learning_parameter_is_in_one_group():
    shared = SKLinear(64, 64, 1, 8)
    frozen = nn.Linear(64, 10).requires_grad_(requires_grad=False)
    growing = ProgressiveSKLinear(64, 64, initial_terms=1, initial_rank=8, max_terms=1, max_rank=8)
    model = nn.Sequential(shared, nn.LayerNorm(64), shared, growing, frozen)
    sketched, others = param_groups(model, sketch_lr=0.1, lr=0.2, weight_decay=0.3)
    assert {id(p) for p in sketched["params"]} == {
        id(p) for p in (shared.S1s, shared.S2s, growing.current_layer.S1s, growing.current_layer.S2s)
    }
    assert {id(p) for p in others["params"]} == {
        id(p) for p in (shared.bias, model[1].weight, model[1].bias, growing.current_layer.bias)
    }
    assert (sketched["lr"], others["lr"]) == (0.1, 0.2)
    assert sketched["weight_decay"] == others["weight_decay"] == 0.3
    torch.optim.AdamW([sketched, others])


def test_groups_without_parameters_are_left_out():
    assert [group["lr"] for group in param_groups(nn.Linear(2, 2), sketch_lr=0.1, lr=0.2)] == [0.2]
    assert [group["lr"] for group in param_groups(SKLinear(64, 64, 1, 8, bias=False), sketch_lr=0.1, lr=0.2)] == [0.1]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"sketch_lr \(-0.1\) must not be negative"):
        param_groups(nn.Linear(2, 2), sketch_lr=-0.1, lr=0.2)
    with pytest.raises(ValueError, match="ReLU has no parameters that learn"):
        param_groups(nn.ReLU(), sketch_lr=0.1, lr=0.2)
