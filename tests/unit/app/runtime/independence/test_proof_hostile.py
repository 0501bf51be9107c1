"""Files that are damaged or mean harm: the verdict is "unknown" with a reason, in bounded time, never an exception."""

import random

import numpy as np
import onnx
import pytest
from graph_text import graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.runtime.independence import prove

VERDICTS = {"independent", "mixed", "unknown"}


@pytest.fixture(scope="module")
def digits(root):
    return (root / "models" / "digits" / "1" / "model.onnx").read_bytes()


def small():
    return graph(
        "float[n,t,4] x",
        "s = Shape<end = 2>(x) \n e = Concat<axis = 0>(s, rest) \n r = Reshape(x, e) \n y = MatMul(r, w)",
        rest=[2, 2],
        w=(2, 3),
    ).SerializeToString()


def test_files_cut_short(digits):
    for data in (small(), digits):
        for cut in range(0, len(data), max(1, len(data) // 200)):
            assert prove(data[:cut]).verdict in VERDICTS
    assert prove(b"").verdict == "unknown"
    assert "can't be read" in prove(digits[: len(digits) // 2]).reason


def test_flipped_bits(digits):
    rng = random.Random(0)
    for number in range(400):
        data = bytearray(digits if number % 4 == 0 else small())
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(len(data), 4000))] ^= 1 << rng.randrange(8)
        proof = prove(bytes(data))
        assert proof.verdict in VERDICTS
        assert proof.reason


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    assert prove(data).verdict == "unknown"


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in prove(tmp_path / "model.onnx").reason
    assert prove(tmp_path).verdict == "unknown"


def nested(depth, kind="If"):
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "g", [], [onnx.ValueInfoProto(name="a")])
    for _ in range(depth):
        node = helper.make_node("If", ["z"], ["a"], then_branch=inner, else_branch=inner if kind == "both" else leaf())
        inner = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="a")])
    made = graph("float[n,4] x, bool z", "y = Relu(x)", outputs="a")
    made.graph.node.append(inner.node[0])
    return made.SerializeToString()


def leaf():
    return helper.make_graph([helper.make_node("Neg", ["x"], ["a"])], "g", [], [onnx.ValueInfoProto(name="a")])


def test_subgraphs_that_lie_deep_in_one_another():
    assert prove(nested(8)).verdict == "independent"
    proof = prove(nested(28))
    assert (proof.verdict, "deep" in proof.reason) == ("unknown", True)


def test_subgraphs_that_double_at_each_level():
    proof = prove(nested(14, "both"))
    assert (proof.verdict, "stopped after" in proof.reason) == ("unknown", True)


def test_two_hundred_thousand_nodes():
    made = graph("float[n,4] x", "y = Relu(x)")
    node = made.graph.node[0].SerializeToString()
    chain = onnx.GraphProto()
    chain.CopyFrom(made.graph)
    data = made.SerializeToString()
    many = b"".join(b"\x0a" + bytes([len(node)]) + node for _ in range(200_000))
    body = chain.SerializeToString() + many
    size, length = len(body), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    length += bytes([size])
    opset = onnx.ModelProto()
    opset.CopyFrom(made)
    opset.ClearField("graph")
    proof = prove(opset.SerializeToString() + b"\x3a" + length + body)
    assert len(data) < 1000
    assert (proof.verdict, "nodes, above the limit of" in proof.reason) == ("unknown", True)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Softmax<axis = -9>(x)", {}),
        ("y = Transpose<perm = [5, 5]>(x)", {}),
        ("y = Reshape(x, s)", {"s": [-1, -1]}),
        ("y = Reshape(x, s)", {"s": [-7, 4]}),
        ("y = Reshape(x, s)", {"s": [1 << 62, 1 << 62]}),
        ("y = Unsqueeze(x, s)", {"s": [99]}),
        ("y = Expand(x, s)", {"s": [-1, 4]}),
        ("y = Tile(x, s)", {"s": [1, 1 << 62]}),
        ("y = Concat<axis = 7>(x, x)", {}),
        ("y = Slice(x, s)", {"s": [1]}),
        ("y = Slice(x, s, s, s, s)", {"s": [0, 0]}),
        ("y = Gather<axis = 9>(x, s)", {"s": [1]}),
        ("y = Einsum(x)", {}),
        ('y = Einsum<equation = "ab,cd">(x)', {}),
        ('y = Einsum<equation = "abcdefgh">(x)', {}),
        ("y = MatMul(x)", {}),
        ("y = MatMul(x, s)", {"s": np.float32(1)}),
        ("y = Conv(x, x)", {}),
        ("y = LSTM(x, x, x)", {}),
        ("y = If(x)", {}),
        ("y = Loop(x, x, x)", {}),
        ("y = Scan(x)", {}),
        ("y = Split<num_outputs = 0>(x)", {}),
        ("y = DepthToSpace<blocksize = 0>(x)", {}),
        ("y = Resize(x)", {}),
        ("y = Pad(x, s)", {"s": [1]}),
        ("y = Where(x)", {}),
        ("y = Add()", {}),
        ("y = Constant<value_ints = [1, 2]>() \n z = Mod(y, y)", {}),
        ("a = Shape(x) \n b = Div(a, s) \n y = Reshape(x, b)", {"s": [0]}),
        ("y = Neg(q)", {}),
        ("y = ai.onnx.ml.ZipMap(x)", {}),
        ("y = ai.onnx.ml.ArrayFeatureExtractor(x)", {}),
        ("y = com.microsoft.Attention(x)", {}),
    ],
)
def test_nodes_that_make_no_sense(body, constants):
    """The runtime refuses them; here they must end in a verdict."""
    proof = prove(graph("float[n,4] x", body, **constants).SerializeToString())
    assert proof.verdict in VERDICTS
    assert "can't be read" not in proof.reason


def test_sizes_that_grow_without_end():
    body = "s0 = Shape(x)" + "".join(f"\n s{i + 1} = Mul(s{i}, s{i})" for i in range(60)) + "\n y = Reshape(x, s60)"
    assert prove(graph("float[n,4] x", body).SerializeToString()).verdict != "independent"
    body = (
        "s0 = Shape(x)"
        + "".join(f"\n s{i + 1} = Concat<axis = 0>(s{i}, s{i})" for i in range(40))
        + "\n y = Reshape(x, s40)"
    )
    assert prove(graph("float[n,4] x", body).SerializeToString()).verdict != "independent"
    body = "u0 = Relu(x)" + "".join(f"\n u{i + 1} = Unsqueeze(u{i}, one)" for i in range(300)) + "\n y = Relu(u300)"
    assert prove(graph("float[n,4] x", body, one=[1]).SerializeToString()).verdict == "unknown"


def test_constants_that_claim_more_than_there_is():
    made = graph("float[n,4] x", "y = Reshape(x, s)", s=[-1, 4])
    for change in ({"dims": [1 << 40]}, {"dims": [-3]}, {"dims": [3]}, {"data_type": 99}, {"raw_data": b"\x01"}):
        broken = onnx.ModelProto()
        broken.CopyFrom(made)
        tensor = broken.graph.initializer[0]
        for name, value in change.items():
            if name == "dims":
                tensor.dims[:] = value
            else:
                setattr(tensor, name, value)
        assert prove(broken.SerializeToString()).verdict != "independent"


def test_the_same_name_twice_is_not_followed_blindly():
    """A node whose input is not made by an earlier node."""
    made = graph("float[n,4] x", "b = Relu(a) \n a = Relu(x)", outputs="b")
    proof = prove(made.SerializeToString())
    assert proof.verdict == "unknown"
    assert "'a' is not made" in proof.reason


def test_names_that_hide_others_are_not_followed():
    """The runtime need not take the value that comes first."""
    made = graph("float[n,4] x, bool z", "a = Softmax<axis = 0>(x) \n b = Relu(x) \n a = Relu(x) \n y = Neg(a)")
    proof = prove(made.SerializeToString())
    assert (proof.verdict, "already exists" in proof.reason) == ("unknown", True)


def test_a_graph_that_is_there_twice_is_refused():
    """Protocol buffers merge both; this reader says that it does not."""
    made = graph("float[n,4] x", "y = Relu(x)")
    other = onnx.ModelProto(graph=graph("float[n,4] x", "z = Softmax<axis = 0>(x)").graph)
    proof = prove(made.SerializeToString() + other.SerializeToString())
    assert proof.verdict == "unknown"
    assert "2 times" in proof.reason


def test_inputs_that_are_no_tensors():
    made = graph("float[n,4] x", "y = Relu(x)")
    made.graph.input.append(helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None))
    made.graph.node.append(helper.make_node("SequenceLength", ["q"], ["z"]))
    made.graph.output.append(onnx.ValueInfoProto(name="z"))
    assert prove(made.SerializeToString()).verdict == "unknown"
