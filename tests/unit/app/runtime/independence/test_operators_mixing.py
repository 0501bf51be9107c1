"""A small graph for each operator that mixes rows or is not supported: the verdict, and the reason."""

import numpy as np
import pytest
from graph_text import graph

U8, F32 = np.uint8, np.float32

MIXED = {
    "sum over rows": (
        "float[n,4] x",
        "m = ReduceMean<axes = [0]>(x) \n y = Sub(x, m)",
        {},
        "reduces over the batch axis",
    ),
    "sum over all": ("float[n,4] x", "m = ReduceSum(x) \n y = Div(x, m)", {}, "reduces over the batch axis"),
    "rows by rows": ("float[n,4] x", "t = Transpose(x) \n y = MatMul(x, t)", {}, "multiplies rows with each other"),
    "sums of rows": ("float[n,4] x", "t = Transpose(x) \n y = MatMul(t, x)", {}, "sums over the batch axis"),
    "einsum over rows": ("float[n,4] x", 'y = Einsum<equation = "bi,bj->ij">(x, x)', {}, "sums over the batch axis"),
    "einsum of rows by rows": (
        "float[n,4] x",
        'y = Einsum<equation = "ai,bi->ab">(x, x)',
        {},
        "combines rows with other rows",
    ),
    "rows that cross": ("float[n,1] x", "t = Transpose(x) \n y = Add(x, t)", {}, "combines rows with other rows"),
    "three constant rows": ("float[n,4] x", "y = Add(x, c)", {"c": (3, 4)}, "a tensor of 3 rows"),
    "softmax over rows": ("float[n,4] x", "y = Softmax<axis = 0>(x)", {}, "normalizes along the batch axis"),
    "softmax over all": ("float[n,4] x", "y = Softmax<axis = 0>(x)", {"opset": 12}, "normalizes over the batch axis"),
    "layer norm over rows": (
        "float[n,4] x",
        "y = LayerNormalization<axis = 0>(x, w)",
        {"w": (1, 4)},
        "normalizes over the batch axis",
    ),
    "batch norm in training": (
        "float[n,3] x",
        "y, a, b = BatchNormalization<training_mode = 1>(x, w, w, w, w)",
        {"w": (3,)},
        "statistics of the batch",
    ),
    "mean and variance of all": (
        "float[n,3,4,4] x",
        "y = MeanVarianceNormalization(x)",
        {},
        "normalizes over the batch axis",
    ),
    "cumulative sum of rows": (
        "float[n,4] x",
        "y = CumSum(x, axis)",
        {"axis": np.int64(0)},
        "accumulates along the batch axis",
    ),
    "largest rows": ("float[n,4] x", "y, z = TopK<axis = 0>(x, k)", {"k": [1]}, "sorts along the batch axis"),
    "argmax of rows": ("float[n,4] x", "y = ArgMax(x)", {}, "reduces over the batch axis"),
    "first row": ("float[n,4] x", "y = Gather(x, i)", {"i": [0]}, "selects rows by their position"),
    "all but one row": ("float[n,4] x", "y = Slice(x, a, b)", {"a": [1], "b": [1 << 40]}, "selects some rows"),
    "rows reversed": (
        "float[n,4] x",
        "y = Slice(x, a, b, a0, s)",
        {"a": [-1], "b": [-(1 << 40)], "a0": [0], "s": [-1]},
        "selects some rows",
    ),
    "a row more": ("float[n,4] x", "y = Concat<axis = 0>(x, c)", {"c": (1, 4)}, "joins rows with tensors"),
    "padded rows": ("float[n,4] x", "y = Pad(x, pads)", {"pads": [1, 0, 0, 0]}, "adds rows to the batch"),
    "rows twice": ("float[n,4] x", "y = Tile(x, times)", {"times": [2, 1]}, "returns several rows"),
    "rows joined twice": ("float[n,4] x", "y = Concat<axis = 0>(x, x)", {}, "returns several rows"),
    "rows torn": ("float[n,4] x", "y = Reshape(x, shape)", {"shape": [-1, 2]}, "returns several rows"),
    "rows woven": (
        "float[n,4] x",
        "t = Transpose(x) \n y = Reshape(t, shape)",
        {"shape": [-1, 4]},
        "an unknown batch axis|in a different order|several rows",
    ),
    "masked rows": (
        "float[n,4] x",
        "y = Compress<axis = 0>(x, keep)",
        {"keep": np.array([True, False])},
        "keeps a number of elements",
    ),
    "places that are not zero": ("float[n,4] x", "y = NonZero(x)", {}, "a number of elements that depends on the data"),
    "distinct values": ("float[n,4] x", "y = Unique(x)", {}, "a number of elements that depends on the data"),
    "squeeze of all": ("float[n,4] x", "y = Squeeze(x)", {}, "the batch axis of a single row"),
    "no batch axis": ("float[n,4] x", "y = Squeeze(x, axes)", {"axes": [0]}, "allows only one row"),
    "number of rows": (
        "float[n,4] x",
        "s = Shape<end = 1>(x) \n c = Cast<to = 1>(s) \n y = Div(x, c)",
        {},
        "computes with the number of rows",
    ),
    "number of rows as an output": ("float[n,4] x", "y = Shape(x)", {}, "returns the number of rows"),
    "positions": (
        "float[n,4] x",
        "s = Shape<end = 1>(x) \n e = Squeeze(s) \n r = Range(a, e, b) \n c = Cast<to = 1>(r) "
        "\n u = Unsqueeze(c, one)"
        " \n y = Add(x, u)",
        {"a": np.int64(0), "b": np.int64(1), "one": [1]},
        "by the position of each row",
    ),
    "positions as an output": (
        "float[n,4] x",
        "s = Shape<end = 1>(x) \n e = Squeeze(s) \n y = Range(a, e, b)",
        {"a": np.int64(0), "b": np.int64(1)},
        "by the position of each row",
    ),
    "a table by position": (
        "float[n,4] x",
        "s = Shape<end = 1>(x) \n p = Slice(table, z, s) \n y = Add(x, p)",
        {"z": [0], "table": (64, 4)},
        "at the number of rows",
    ),
    "dynamic quantization": (
        "float[n,4] x",
        "q, s, z = DynamicQuantizeLinear(x) \n y = DequantizeLinear(q, s, z)",
        {},
        "computes its scale over the whole tensor, rows included",
    ),
    "dynamic quantization and product": (
        "float[n,4] x",
        "y = com.microsoft.DynamicQuantizeMatMul(x, w, s, z)",
        {"w": np.zeros((4, 3), U8), "s": F32(1), "z": U8(0)},
        "computes its scale over the whole tensor, rows included",
    ),
    "a scale for each row by position": (
        "float[n,4] x",
        "y = QuantizeLinear<axis = 0>(x, s, z)",
        {"s": np.full(3, 0.1, F32), "z": np.zeros(3, U8)},
        "by its position",
    ),
    "lstm over rows": (
        "float[n,4,3] x",
        "y, h, c = LSTM<hidden_size = 2>(x, w, r)",
        {"w": (1, 8, 3), "r": (1, 8, 2)},
        "as its steps",
    ),
    "convolution over rows": (
        "float[n,3] x",
        "t = Transpose(x) \n u = Unsqueeze(t, a) \n y = Conv(u, k)",
        {"a": [0], "k": (2, 3, 2)},
        "slides over the batch axis",
    ),
    "places of maxima": (
        "float[n,3,4] x",
        "a, y = MaxPool<kernel_shape = [2]>(x)",
        {},
        "numbers the positions of its maxima",
    ),
    "resized rows": (
        "float[n,3,4] x",
        "y = Resize(x, , s)",
        {"s": np.array([2, 1, 1], F32)},
        "changes the number of rows",
    ),
    "boxes": ("float[n,6,4] x, float[n,2,6] z", "y = NonMaxSuppression(x, z)", {}, "the boxes of all rows together"),
    "dropout in training": (
        "float[n,4] x",
        "y = Dropout(x, , t)",
        {"t": np.ones((), bool)},
        "drops elements at random",
    ),
    "random numbers": ("float[n,4] x", "r = RandomNormalLike(x) \n y = Add(x, r)", {}, "draws random numbers"),
    "dropped texts": (
        "string[n] x",
        'y = StringNormalizer<stopwords = ["the"]>(x)',
        {},
        "removes rows that are stop words",
    ),
    "words": (
        "string[n] x",
        'y = com.microsoft.Tokenizer<mark = 0, mincharnum = 1, pad_value = "#", tokenexp = "[a-z]+">(x)',
        {},
        "pads the output",
    ),
    "as wide as the data say": (
        "float[n,4] x",
        "m = ReduceMax(x) \n c = Cast<to = 7>(m) \n u = Unsqueeze(c, a) \n y = ConstantOfShape(u)",
        {"a": [0]},
        "reduces over the batch axis",
    ),
    "as wide as a row says": (
        "int64[n] x",
        "y = Expand(c, x)",
        {"c": (1, 1)},
        "reads a size from the data of the rows",
    ),
    "identity matrix": ("float[n,4] x", "y = EyeLike(x)", {}, "numbers the rows"),
    "diagonal": ("float[n,n2] x", 'y = Einsum<equation = "ii->i">(x)', {}, "diagonal"),
    "one row of features": (
        "float[n] x",
        'y = ai.onnx.ml.Normalizer<norm = "L2">(x)',
        {},
        "the whole batch as the features of one row",
    ),
}

UNKNOWN = {
    "a mode of scaling that moves rows": (
        "float[n,3,4] x",
        'y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil">(x, , s)',
        {"s": np.array([1, 1, 2], F32)},
        "may move rows",
    ),
    "zero points of columns that are rows": (
        "uint8[4,n] x",
        "y = MatMulInteger(w, x, , z)",
        {"w": np.ones((2, 4), U8), "z": np.zeros(3, U8)},
        "to each row by position",
    ),
    "operator": ("float[n,4] x", "y = com.example.Special(x)", {}, "has an unknown operator"),
    "no such operator": ("float[n,4] x", "y = Special(x)", {}, "has an unknown operator"),
    "as many rows as an unknown size": (
        "float[n,4] x, float[m2,4] z",
        "y = Special(x, z)",
        {},
        "has an unknown operator",
    ),
    "shape from an input": ("float[n,4] x, int64[2] z", "y = Reshape(x, z)", {}, "has an unknown target shape"),
    "axes from an input": (
        "float[n,4] x, int64[1] z",
        "y = ReduceSum(x, z)",
        {},
        "reduces over unknown axes",
    ),
    "fixed number of elements": (
        "float[n,4] x",
        "y = Reshape(x, shape)",
        {"shape": [2, 6]},
        "fixes the number of rows",
    ),
    "a state of fixed rows": (
        "float[t,n,3] x, float[1,4,2] z",
        "y, h = GRU<hidden_size = 2>(x, w, r, , , z)",
        {"w": (1, 6, 3), "r": (1, 6, 2)},
        "has a state without the batch axis of its steps|as its steps",
    ),
    "old operators": ("float[n,4] x", "y = Relu(x)", {"opset": 6}, "at least 7 is required"),
}


@pytest.mark.parametrize(("inputs", "body", "constants", "reason"), MIXED.values(), ids=MIXED)
def test_mixed(judge, inputs, body, constants, reason):
    proof = judge(graph(inputs, body, **constants))
    assert proof.verdict in ("mixed", "unknown") if "|" in reason else proof.verdict == "mixed", proof
    assert any(part in proof.reason for part in reason.split("|")), proof
    assert proof.op_type in body


@pytest.mark.parametrize(("inputs", "body", "constants", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown(judge, inputs, body, constants, reason):
    proof = judge(graph(inputs, body, **constants))
    assert proof.verdict in ("mixed", "unknown") if "|" in reason else proof.verdict == "unknown", proof
    assert any(part in proof.reason for part in reason.split("|")), proof


def test_an_output_that_is_ragged_is_named(judge):
    proof = judge(graph("float[n,4] x", "y = NonZero(x) \n z = Relu(x)", outputs="y, z"))
    assert (proof.ragged_outputs, proof.output_axes) == ({"y"}, {"y": None, "z": 0})
