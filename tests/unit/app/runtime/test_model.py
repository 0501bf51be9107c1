import logging

import numpy as np
import onnx
import pytest
from helpers import build
from onnx import TensorProto, helper

from app.errors import InferenceFailedError, LoadError
from app.runtime.card import METADATA_KEY
from app.runtime.device import CPU, Device
from app.runtime.model import OnnxModel

FLOAT = TensorProto.FLOAT
ON_CPU = Device("cpu", (CPU,))


def load(folder, graph, card=None):
    build.put(folder, graph, "m", card=card)
    return OnnxModel("m", "1", folder / "m" / "1" / "model.onnx", ON_CPU, 1)


def test_a_model_says_what_it_takes_gives_and_runs_on(tmp_path, tiny):
    model = load(tmp_path, tiny.graph())
    assert [spec.name for spec in model.inputs] == list(model.input_by_name) == ["x"]
    assert [spec.name for spec in model.outputs] == list(model.output_names) == list(model.output_by_name)
    assert model.fixed_rows
    assert model.batched
    assert (model.batching.decided_by, model.batching.verdict) == ("proof", "independent")
    assert (model.provider, model.providers, model.num_threads, model.cuda) == (CPU, [CPU], 1, None)
    assert model.file_bytes == (tmp_path / "m" / "1" / "model.onnx").stat().st_size
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    (logits,) = model.run({"x": x}, ["logits"]).arrays
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)


def test_a_run_leaves_nothing_on_the_model(tmp_path, tiny):
    model = load(tmp_path, tiny.graph())
    before = dict(vars(model))
    model.run(model.random_feeds(3), model.output_names)
    with pytest.raises(InferenceFailedError):
        model.run({"x": np.zeros((1, 7), np.float32)}, model.output_names)
    assert vars(model) == before
    assert len(before) <= 15


def test_a_run_that_fails_says_the_model_and_one_line(tmp_path, tiny):
    model = load(tmp_path, tiny.graph())
    with pytest.raises(InferenceFailedError, match=r"^model 'm' failed on this input: [^\n]+$"):
        model.run({"x": np.zeros((1, 7), np.float32)}, model.output_names)


PROVEN = "each row of the outputs depends only on the same row of the inputs"
MIXED = "node 'y' normalizes along the batch axis (Softmax)"


@pytest.mark.parametrize(
    ("node", "shape", "batched", "reason"),
    [
        (
            helper.make_node("Neg", ["x"], ["y"]),
            ["n", 3],
            True,
            "each row of the outputs depends only on the same row of the inputs",
        ),
        (
            helper.make_node("Neg", ["x"], ["y"]),
            [2, 3],
            False,
            "no input has an axis of variable size that could carry the rows",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], axis=0),
            ["n", 3],
            False,
            "node 'y' normalizes along the batch axis (Softmax)",
        ),
    ],
)
def test_why_a_model_is_not_batched(tmp_path, caplog, node, shape, batched, reason):
    caplog.set_level(logging.INFO)
    model = load(tmp_path, build.onnx_model([node], [("x", FLOAT, shape)], [("y", FLOAT, shape)]))
    assert model.batched == batched
    assert reason.startswith(model.batching.reason)
    assert (f"model m version 1 is not batched: {reason}" in caplog.messages) is not batched


def test_a_file_that_is_no_model_is_refused_without_its_folder(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(LoadError, match="model 'm' version 1: ") as caught:
        OnnxModel("m", "1", path, ON_CPU, 1)
    assert str(tmp_path) not in str(caught.value)


def test_inputs_that_can_not_be_made_are_named(tmp_path):
    shape = ["n", 2**31, 2**31]
    graph = onnx.helper.make_graph(
        [helper.make_node("Shape", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["m"])],
    )
    model = load(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(LoadError, match=r"model 'm' version 1: cannot make random inputs of the shapes 'x' \(n, "):
        model.random_feeds(4)


def test_a_card_that_can_not_be_read_is_a_problem_and_not_an_error(tmp_path, tiny, caplog):
    graph = tiny.graph()
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, "{"
    model = load(tmp_path, graph)
    assert model.card is None
    assert model.labelled is None
    assert "is not JSON" in model.card_problem
    assert any("model m version 1 is served without its invalid card" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("kind", "labelled"),
    [("logits", True), ("probabilities", True), ("multilabel", False), ("regression", False), (None, False)],
)
def test_only_scores_of_classes_have_a_most_likely_label(tmp_path, tiny, kind, labelled):
    output = {"name": "logits", "labels": ["ant", "bee", "cat"], **({"kind": kind} if kind else {})}
    model = load(tmp_path, tiny.graph(), card=build.sketched_card(outputs=[output]))
    assert model.card_problem is None
    assert (model.labelled is not None) is labelled
