"""ONNX files to load: small ones of many operators, and changes of their bytes and of their fields."""

import random

import numpy as np
from fuzz_targets import ROOT
from onnx import TensorProto, helper, numpy_helper

from app.runtime import protobuf

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
KINDS = {
    "ended the process": "a trial crashed",
    "too long": "a trial took longer",
    "too much memory": "exceeded the available memory",
}


def _model(nodes: list, inputs: list, outputs: list, constants: dict) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return made.SerializeToString()


def seeds() -> list[tuple[str, bytes]]:
    """Names and files."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    node = helper.make_node
    convolution = _model(
        [
            node("Reshape", ["x", "s"], ["r"]),
            node("Conv", ["r", "K"], ["c"], pads=[1, 1, 1, 1]),
            node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "W", "b"], ["g"]),
            node("LayerNormalization", ["g", "b"], ["l"]),
            node("Softmax", ["l"], ["y"]),
        ],
        [("x", FLOAT, ["n", 16])],
        [("y", FLOAT, ["n", 3])],
        {"s": ints(-1, 1, 4, 4), "K": floats(2, 1, 3, 3), "W": floats(8, 3), "b": floats(3)},
    )
    indices = _model(
        [
            node("Gather", ["E", "x"], ["e"]),
            node("Slice", ["e", "zero", "three", "one"], ["sl"]),
            node("Transpose", ["sl"], ["t"], perm=[0, 2, 1]),
            node("Pad", ["t", "pads"], ["p"]),
            node("Concat", ["p", "p"], ["c"], axis=1),
            node("TopK", ["c", "two"], ["v", "ix"], axis=-1),
            node("Tile", ["v", "repeats"], ["tl"]),
            node("ReduceSum", ["tl", "one"], ["y"]),
        ],
        [("x", INT64, ["n", 3])],
        [("y", FLOAT, None)],
        {
            "E": floats(5, 4),
            "zero": ints(0),
            "one": ints(1),
            "two": ints(2),
            "three": ints(3),
            "pads": ints(0, 0, 0, 0, 1, 1),
            "repeats": ints(1, 2, 1),
        },
    )
    quantised = _model(
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("MatMulInteger", ["q", "W", "z", "wz"], ["mi"]),
            node("Cast", ["mi"], ["cf"], to=FLOAT),
            node("Mul", ["cf", "s"], ["y"]),
        ],
        [("x", FLOAT, ["n", 8])],
        [("y", FLOAT, ["n", 4])],
        {"W": rng.integers(-128, 127, (8, 4)).astype(np.int8), "wz": np.array(0, np.int8)},
    )
    recurrent = _model(
        [
            node("LSTM", ["x", "W", "R"], ["Y", "h", "c"], hidden_size=3),
            node("Einsum", ["Y", "Y"], ["y"], equation="abcd,abcd->ac"),
        ],
        [("x", FLOAT, ["n", 1, 4])],
        [("y", FLOAT, None)],
        {"W": floats(1, 12, 4), "R": floats(1, 12, 3)},
    )
    mixed = _model(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("Resize", ["d", "", "sizes"], ["r"], mode="linear"),
            node("GatherND", ["r", "at"], ["g"]),
            node("CumSum", ["r", "axis"], ["cs"]),
            node("Where", ["m", "cs", "cs"], ["w"]),
            node("Split", ["w"], ["y", "y2"], axis=1, num_outputs=2),
        ],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, None), ("g", FLOAT, None)],
        {
            "s": np.array(0.1, np.float32),
            "z": np.array(3, np.uint8),
            "sizes": np.array([1, 2], np.float32),
            "at": np.array([[0, 1]]),
            "axis": np.array(1),
            "m": np.array([True]),
        },
    )
    return [
        ("convolution", convolution),
        ("indices", indices),
        ("quantised", quantised),
        ("recurrent", recurrent),
        ("mixed", mixed),
        ("digits", (ROOT / "models" / "digits" / "1" / "model.onnx").read_bytes()),
    ]


def change(content: bytes, rng: random.Random) -> bytes:
    """A changed file: bits, or fields of the graph that are doubled, dropped, swapped, or get another number."""
    if rng.random() < 0.5 or len(content) > 100_000:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed) if rng.random() < 0.9 else bytes(changed[: rng.randrange(len(changed))])
    return protobuf.serialise(_changed_fields(protobuf.parse(content), rng, 0))


def _changed_fields(fields: protobuf.Message, rng: random.Random, depth: int) -> protobuf.Message:
    if not fields:
        return fields
    changed = list(fields)
    at = rng.randrange(len(changed))
    number, kind, value = changed[at]
    if isinstance(value, bytes) and len(value) > 2 and depth < 6 and rng.random() < 0.8:
        try:
            inside = protobuf.serialise(_changed_fields(protobuf.parse(value), rng, depth + 1))
        except ValueError:
            inside = value[: rng.randrange(len(value))] if rng.random() < 0.3 else bytes(value[::-1])
        changed[at] = (number, kind, inside)
        return changed
    action = rng.randrange(5)
    if action == 0:
        del changed[at]
    elif action == 1:
        changed.insert(rng.randrange(len(changed)), changed[at])
    elif action == 2:
        other = rng.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    elif action == 3:
        changed[at] = (rng.randrange(1, 16), kind, value)
    elif isinstance(value, int):
        odd = (0, 1, 2, 7, 16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
        changed[at] = (number, kind, rng.choice(odd))
    else:
        changed[at] = (number, kind, value + value)
    return changed
