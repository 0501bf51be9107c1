"""From the compressed model to a file that onnxruntime runs."""

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import panther as pr
from panther.compression.curve import Curve, Point

SCHEMA = json.loads((Path(__file__).parents[4] / "docs" / "model-card.schema.json").read_text(encoding="utf-8"))


def run(path, tokens):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens.numpy()})[0]


def test_the_file_computes_what_the_model_does(model, tokens, tmp_path):
    compressed = pr.compress(
        model, calibration=tokens.split(40), max_bytes=70_000, kinds=["int8", "low_rank_int8"], probes=2
    )
    kinds = {layer.kind for layer in compressed.report.layers}
    assert {"low_rank_int8"} <= kinds
    exported = compressed.export(tmp_path, name="small", num_threads=1, batch_sizes=(1,))
    assert exported.path == tmp_path / "small" / "1" / "model.onnx"
    with torch.no_grad():
        y = compressed.model(tokens).numpy()
    found = run(exported.path, tokens)
    assert np.abs(found - y).max() <= 0.02 * np.abs(y).max()
    # a row's answer is the same alone
    alone = np.concatenate([run(exported.path, tokens[i : i + 1]) for i in range(4)])
    assert np.abs(alone - found[:4]).max() <= 1e-5 * np.abs(found).max()


def test_low_rank_in_8_bits_is_two_integer_products(model, tokens, tmp_path):
    compressed = pr.compress(model, calibration=tokens, max_error=0.5, kinds=["low_rank_int8"])
    count = sum(layer.kind == "low_rank_int8" for layer in compressed.report.layers)
    assert count >= 2
    path = compressed.export(tmp_path / "small.onnx", name="small", num_threads=1, batch_sizes=(1,)).path
    graph = onnx.load(path).graph
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.node) == 2 * count
    constants = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert constants == pytest.approx(compressed.report.bytes_after, rel=0.03)


def test_calibration_by_a_forward_needs_examples(model, tokens, tmp_path):
    compressed = pr.compress(
        model,
        calibration=[[tokens]],
        max_error=0.2,
        forward=lambda net, batch: net(batch[0]),
        kinds=["int8", "low_rank_int8"],
        probes=2,
    )
    with pytest.raises(pr.ConversionError, match="give example_inputs"):
        compressed.export(tmp_path, name="small")
    exported = compressed.export(tmp_path, name="small", example_inputs=tokens[:8], num_threads=1, batch_sizes=(1,))
    assert exported.version == 1


def test_the_card_has_the_curve(model, tokens, tmp_path):
    def metric(net):
        with torch.no_grad():
            return -float(net(tokens).abs().mean())

    compressed = pr.compress(
        model, calibration=tokens, metric=metric, at_least=2 * metric(model), kinds=["int8", "low_rank_int8"], probes=2
    )
    file = compressed.export(tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,)).path
    card = pr.export.read_card(onnx.load(file))
    jsonschema.validate(card, SCHEMA)
    curve = card["compression_curve"]
    assert curve["budget"] == compressed.report.budget
    assert curve["original_bytes"] == compressed.report.bytes_before
    assert curve["original_metric"] == metric(model)
    assert 2 <= len(curve["points"]) <= 32
    assert [point["bytes"] for point in curve["points"]] == sorted(point["bytes"] for point in curve["points"])
    (chosen,) = [point for point in curve["points"] if point["chosen"]]
    assert chosen["measured"]
    assert chosen["error"] == compressed.report.output_error
    assert chosen["metric"] == compressed.report.metric[1]
    assert chosen["bytes"] == pytest.approx(compressed.report.bytes_after, rel=0.01)


def test_without_finite_outputs_there_is_no_curve_in_the_card(model, tokens, tmp_path):
    compressed = pr.compress(model, calibration=tokens, max_error=0.5, kinds=["int8"], probes=0)
    overflown = dataclasses.replace(compressed, curve=Curve((Point(10, math.inf, math.inf, 0.0),), 0))
    file = overflown.export(tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,)).path
    assert "compression_curve" not in pr.export.read_card(onnx.load(file))
