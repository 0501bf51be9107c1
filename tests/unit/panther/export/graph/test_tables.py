"""Embeddings in 4 bits in an exported file: GatherBlockQuantized, the same numbers as in torch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import panther as pr
from panther.export import ExportError
from panther.export.graph import products
from panther.nn.quantized import BlockEmbedding


class Tagger(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.head = nn.Embedding(900, width, padding_idx=3), nn.Linear(width, 5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens) + self.table(tokens.flip(-1))))


@pytest.fixture
def tokens():
    return torch.randint(0, 900, (32, 6), generator=torch.Generator().manual_seed(2))


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("width", [48, 100])
def test_the_file_looks_rows_up_in_four_bits(tokens, export, optimized, width):
    model = Tagger(width).eval()
    original = model.table.weight.detach().clone()
    pr.quantize_(model, calibration=tokens, embedding_bits=4, filter_fn=lambda *_: False)
    assert isinstance(model.table, BlockEmbedding)
    report = export(model, tokens)
    onnx.checker.check_model(onnx.load(report.path))
    with torch.no_grad():
        np.testing.assert_allclose(run(report.path, tokens), model(tokens).numpy(), rtol=1e-4, atol=1e-5)
        assert (model.table.weight - original).norm() < 0.12 * original.norm()
    graph = optimized(report.path)
    assert sum(node.op_type == "GatherBlockQuantized" for node in graph.node) == 2
    assert sum(tensor.dims[0] == 900 for tensor in graph.initializer if len(tensor.dims) == 2) == 3  # stored once
    assert report.card.storage.bytes_by_type["int4"] == 900 * (width // 2 + 1)
    (entry,) = report.card.quantized_layers
    assert (entry.kind, entry.scheme, entry.block_size) == ("embedding", "int4-blocks", 64)
    assert entry.weight_bytes == model.table.stored_bytes
    assert report.card.totals.model.dense == 900 * width + 5 * width + 5


def test_look_ups_that_are_not_there_are_found(tokens, export, monkeypatch):
    model = Tagger(48).eval()
    pr.quantize_(model, calibration=tokens, embedding_bits=4)
    monkeypatch.setattr("panther.export.pipeline.lower_products", products.lower_dense)
    with pytest.raises(ExportError, match=r"0 (look-ups in tables of 4 bits, but 2 were planned|products of 8-bit)"):
        export(model, tokens)
