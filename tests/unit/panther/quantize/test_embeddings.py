import pytest
import torch
from torch import nn

from panther.nn.quantized import BlockEmbedding
from panther.quantize import embeddings


def reason(module):
    model = nn.ModuleDict({"table": module})
    (table,) = embeddings.find(model)
    return table.reason


def test_a_large_table_is_taken():
    assert reason(nn.Embedding(512, 64)) is None


class Own(nn.Embedding):
    def forward(self, indices):
        return 2 * super().forward(indices)


def infinite():
    embedding = nn.Embedding(512, 64)
    embedding.weight.data[3, 4] = torch.inf
    return embedding


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Embedding(100, 4), "small: 1,600 bytes, below 65,536"),
        (nn.Embedding(512, 64, max_norm=1.0), "max_norm"),
        (Own(512, 64), "Own does more than nn.Embedding"),
        (infinite(), "not finite"),
        (nn.utils.parametrizations.weight_norm(nn.Embedding(512, 64)), "computed from other parameters"),
    ],
)
def test_others_say_why_not(module, why):
    assert why in reason(module)


def test_a_table_tied_to_a_layer_stays():
    model = nn.ModuleDict({"table": nn.Embedding(512, 64), "head": nn.Linear(64, 512)})
    model["head"].weight = model["table"].weight
    (table,) = embeddings.find(model)
    assert "also that of another module" in table.reason


def test_four_bits_are_blocks_and_go_up_to_eight_and_floats():
    model = nn.ModuleDict({"even": nn.Embedding(2000, 48), "odd": nn.Embedding(2000, 47)})
    even, odd = embeddings.find(model, 4)
    assert (even.bits, odd.bits) == (4, 8)
    assert isinstance(even.quantized(), BlockEmbedding)
    assert even.quantized().stored_bytes == even.stored_bytes
    assert odd.quantized().stored_bytes == odd.stored_bytes
    finer = even.finer()
    assert (finer.bits, finer.reason) == (8, None)
    assert finer.finer().reason == "8-bit embeddings alone cost more than max_error"
