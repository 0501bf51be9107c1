"""Whole files: the shipped one, exports of panther, files of gigabytes, and how the batch axis is found."""

import os

import numpy as np
import onnx
import pytest
import torch
from graph_text import graph
from onnx import helper, numpy_helper
from row_oracle import difference, open_session, random_feeds

from app.runtime.independence import Proof, prove
from app.runtime.independence import reader as reading
from panther.convert import sketch_
from panther.export import export_onnx


def compare(path, proof, sizes=None):
    session = open_session(path)
    feeds = random_feeds(session, proof.input_axes, 4, np.random.default_rng(0), sizes)
    assert difference(session, proof.input_axes, proof.output_axes, feeds) is None, proof


def test_the_shipped_model(root):
    path = root / "models" / "digits" / "1" / "model.onnx"
    proof = prove(path)
    assert (proof.verdict, proof.input_axes, proof.output_axes) == ("independent", {"x": 0}, {"logits": 0})
    assert proof.nodes_walked > 10
    compare(path, proof)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 32)
        layer = torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = torch.nn.Linear(32, 3)

    def forward(self, ids):
        return self.head(self.layers(self.embed(ids)).mean(1))


def perceptron():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 48), torch.nn.GELU(), torch.nn.LayerNorm(48), torch.nn.Linear(48, 10)
    )


def convolutions():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 5),
    )


class Recommender(torch.nn.Module):
    """Bags of two tables, dense or of low rank, meet in pairwise products."""

    def __init__(self):
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.EmbeddingBag(90, 16, mode=mode) for mode in ("sum", "mean"))
        self.top = torch.nn.Linear(4, 3)

    def forward(self, places):
        bags = torch.stack([table(places[:, i]) for i, table in enumerate(self.tables)], 1)
        return self.top((bags @ bags.mT).flatten(1))


@pytest.mark.parametrize(
    ("make", "example", "ratio"),
    [
        (Recommender, torch.randint(0, 90, (2, 2, 5)), None),
        (Recommender, torch.randint(0, 90, (2, 2, 5)), 0.7),
        (perceptron, torch.randn(2, 64), None),
        (perceptron, torch.randn(2, 64), 0.8),
        (convolutions, torch.randn(2, 3, 8, 8), 0.9),
        (Encoder, torch.randint(0, 50, (2, 6)), 0.95),
    ],
    ids=["recommender", "recommender of low rank", "perceptron", "sketched perceptron", "convolutions", "encoder"],
)
def test_exports_of_panther(tmp_path, make, example, ratio):
    torch.manual_seed(0)
    model = make().eval()
    if ratio is not None:
        sketch_(model, ratio=ratio)
    path = tmp_path / "model.onnx"
    export_onnx(model, example, path, name="m", batch_sizes=(1,))
    proof = prove(path)
    assert proof.verdict == "independent", proof
    assert set(proof.input_axes.values()) == set(proof.output_axes.values()) == {0}
    compare(path, proof)


def test_weights_are_skipped_and_not_read(tmp_path, monkeypatch):
    """A file of 2.4 GB, most of it a hole: the bytes that are asked for are few."""
    made = graph("float[n,4] x", "y = MatMul(x, w)")
    size = 2_400_000_000
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4, size // 16]).SerializeToString()
    head, tail = made.graph.SerializeToString(), b""
    made.ClearField("graph")

    def varint(number):
        found = b""
        while number > 127:
            found, number = found + bytes([number & 127 | 128]), number >> 7
        return found + bytes([number])

    payload = b"\x4a" + varint(size)
    inner = b"\x2a" + varint(len(tensor) + len(payload) + size) + tensor + payload
    start = made.SerializeToString() + b"\x3a" + varint(len(head) + len(inner) + size + len(tail)) + head + inner
    path = tmp_path / "model.onnx"
    path.write_bytes(start)
    os.truncate(path, len(start) + size)
    asked = []
    pread = os.pread
    monkeypatch.setattr(reading.os, "pread", lambda file, count, at: asked.append(count) or pread(file, count, at))
    proof = prove(path)
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0})
    assert sum(asked) < 100_000


def test_many_middling_weights_are_skipped_too(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    body = "\n".join(f"v{i + 1} = Add(v{i}, w{i})" for i in range(50)).replace("v0", "x")
    made = graph(
        "float[n,40000] x", body, outputs="v50", **{f"w{i}": rng.random(40_000, np.float32) for i in range(50)}
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    asked = []
    pread = os.pread
    monkeypatch.setattr(reading.os, "pread", lambda file, count, at: asked.append(count) or pread(file, count, at))
    assert prove(path).verdict == "independent"
    assert sum(asked) < 0.1 * path.stat().st_size


def test_bytes_and_files_give_the_same(tmp_path):
    data = graph("float[n,4] x", "y = Softmax<axis = 0>(x)").SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    assert prove(data) == prove(tmp_path / "m.onnx") == prove(str(tmp_path / "m.onnx"))
    assert isinstance(prove(data), Proof)


AXES = {
    "shared scalar": ("float[n,4] x, float z", "y = Mul(x, z)", {"x": 0, "z": None}),
    "static first axis": ("float[n,4] x, float[1,4] z", "y = Mul(x, z)", {"x": 0, "z": None}),
    "the batch by name": ("float[t,n,4] x, float[n,4] z", "y = Add(x, z)", {"x": 1, "z": 0}),
    "the batch by use": ("float[t,b,4] x", "y = CumSum(x, zero)", {"x": 1}),
    "unnamed": ("float[?,4] x, float[?,4] z", "y = Add(x, z)", {"x": 0, "z": 0}),
    "other names": ("float[n,4] x, float[m,4] z", "y = Add(x, z)", {"x": 0, "z": 0}),
    "a gallery": ("float[n,4] x, float[m,4] z", "t = Transpose(z) \n y = MatMul(x, t)", {"x": 0, "z": None}),
    "further axes": ("float[n,h,w] x", "y = Relu(x)", {"x": 0}),
}


@pytest.mark.parametrize(("inputs", "body", "axes"), AXES.values(), ids=AXES)
def test_the_axis_of_the_rows_is_found(judge, inputs, body, axes):
    proof = judge(
        graph(inputs, body, **({"zero": np.int64(0)} if "zero" in body else {})), runs="gallery" not in inputs
    )
    assert (proof.verdict, proof.input_axes) == ("independent", axes)


def test_a_state_has_the_batch_second(judge):
    proof = judge(
        graph(
            "float[n,t,3] x, float[1,n,2] h",
            "u = Transpose<perm = [1, 0, 2]>(x) \n y, z = GRU<hidden_size = 2>(u, w, r, , , h)",
            outputs="y, z",
            w=(1, 6, 3),
            r=(1, 6, 2),
        ),
    )
    assert (proof.verdict, proof.input_axes, proof.output_axes) == ("independent", {"x": 0, "h": 1}, {"y": 2, "z": 1})


def test_no_axis_of_any_size():
    proof = prove(graph("float[2,4] x", "y = Relu(x)").SerializeToString())
    assert (proof.verdict, proof.input_axes) == ("unknown", {"x": None})
    assert "no input has an axis of variable size" in proof.reason


def test_the_size_of_the_batch_on_two_axes():
    proof = prove(graph("float[n,n] x", "y = Relu(x)").SerializeToString())
    assert proof.verdict == "unknown"
    assert "axis 1 of input 'x' has the size 'n', which is the number of rows" in proof.reason


def test_unknown_rank_needs_a_shape(judge):
    made = graph("float[n,4] x", "y = Relu(x)")
    made.graph.input[0].type.tensor_type.ClearField("shape")
    proof = judge(made)
    assert (proof.verdict, "has unknown rank" in proof.reason) == ("unknown", True)
    assert judge(made, shapes={"x": (None, 4)}, runs=False).verdict == "independent"
    assert judge(made, shapes={"x": ("n", "t", 4)}, runs=False).verdict == "independent"


def test_optional_inputs_count_with_their_defaults(judge):
    """A request that gives another shape to reshape to must be run alone."""
    made = graph("float[n,4] x, int64[2] shape", "y = Reshape(x, shape)")
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1, 4]), "shape"))
    proof = judge(made)
    assert (proof.verdict, proof.input_axes, proof.defaults) == ("independent", {"x": 0}, {"shape"})


def test_a_sequence_of_maps_has_one_for_each_row(judge):
    proof = judge(graph("float[n,2] x", "y = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1]>(x)"))
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0})


def test_models_of_the_other_tests(judge):
    """`onnx_model` of tests/helpers, with which the server's tests make their models."""
    from onnx_models import onnx_model

    float_ = onnx.TensorProto.FLOAT
    made = onnx_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", float_, ["batch", 3])],
        [("y", float_, ["batch", 2])],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "w")],
    )
    assert judge(made).verdict == "independent"
    mixing = onnx_model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["s"]), helper.make_node("Sub", ["x", "s"], ["y"])],
        [("x", float_, ["batch", 3])],
        [("y", float_, ["batch", 3])],
        [numpy_helper.from_array(np.array([0]), "axes")],
    )
    assert judge(mixing).verdict == "mixed"
