"""A small graph for each operator: the verdict, and where it is independent onnxruntime's answers."""

import numpy as np
import pytest
from graph_text import graph

U8, F32 = np.uint8, np.float32
SCALE = {"scale": F32(0.1), "zero": U8(128)}

INDEPENDENT = {
    # element by element
    "unary": ("float[n,4] x", "y = Relu(x)", {}),
    "binary": ("float[n,4] x", "y = Add(x, c)", {"c": (4,)}),
    "two inputs": ("float[n,4] x, float[n,4] z", "y = Mul(x, z)", {}),
    "broadcast of rows": ("float[n,4] x, float[n,1] z", "y = Sub(x, z)", {}),
    "further axis before the rows": ("float[n,4] x", "y = Add(x, c)", {"c": (3, 1, 4)}),
    "where": ("float[n,4] x", "c = Greater(x, zero) \n y = Where(c, x, other)", {"zero": F32(0), "other": (4,)}),
    "clip": ("float[n,4] x", "y = Clip(x, low, high)", {"low": F32(-1), "high": F32(1)}),
    "cast": ("float[n,4] x", "y = Cast<to = 7>(x)", {}),
    "one row for all": ("float[n,4] x, float[1,4] z", "y = Add(x, z)", {}),
    "dropout while serving": ("float[n,4] x", "y = Dropout(x)", {}),
    # products
    "matmul": ("float[n,4] x", "y = MatMul(x, w)", {"w": (4, 3)}),
    "matmul of a vector": ("float[n,4] x", "y = MatMul(x, w)", {"w": (4,)}),
    "matmul from the left": ("float[n,4,3] x", "y = MatMul(w, x)", {"w": (2, 4)}),
    "rows as columns": ("float[4,n] x", "y = MatMul(w, x)", {"w": (2, 4)}),
    "matmul row by row": ("float[n,4,3] x, float[n,3,2] z", "y = MatMul(x, z)", {}),
    "gemm": ("float[n,4] x", "y = Gemm<transB = 1, alpha = 0.5>(x, w, b)", {"w": (3, 4), "b": (3,)}),
    "gemm of the transposed": ("float[4,n] x", "y = Gemm<transA = 1>(x, w)", {"w": (4, 3)}),
    "einsum": ("float[n,4,3] x", 'y = Einsum<equation = "bij,jk->bik">(x, w)', {"w": (3, 2)}),
    "einsum without a result": ("float[n,4] x", 'y = Einsum<equation = "bi,ij">(x, w)', {"w": (4, 2)}),
    "einsum with dots": ("float[n,4] x", 'y = Einsum<equation = "...i,i->...">(x, w)', {"w": (4,)}),
    "matmul of integers": (
        "float[n,4] x",
        "q = QuantizeLinear(x, scale, zero) \n y = MatMulInteger(q, w, zero)",
        {**SCALE, "w": np.arange(12, dtype=U8).reshape(4, 3)},
    ),
    "distances to known rows": ("float[n,4] x", 'y = com.microsoft.CDist<metric = "euclidean">(x, w)', {"w": (3, 4)}),
    "fused matmul": ("float[n,4,3] x", "y = com.microsoft.FusedMatMul<transA = 1>(x, x)", {}),
    # reductions, normalization
    "mean of a row": ("float[n,4] x", "y = ReduceMean<axes = [-1]>(x)", {}),
    "sum without the axis": ("float[n,4,3] x", "y = ReduceSum<keepdims = 0>(x, axes)", {"axes": [1]}),
    "no axes that mean none": ("float[n,4] x", "y = ReduceSum<noop_with_empty_axes = 1>(x)", {}),
    "argmax": ("float[n,4] x", "y = ArgMax<axis = 1>(x)", {}),
    "cumulative sum": ("float[n,4] x", "y = CumSum(x, axis)", {"axis": np.int64(1)}),
    "softmax": ("float[n,4] x", "y = Softmax(x)", {}),
    "top k": ("float[n,4] x", "y, z = TopK(x, k)", {"k": [2]}),
    "layer normalization": ("float[n,4] x", "y = LayerNormalization(x, w, b)", {"w": (4,), "b": (4,)}),
    "instance normalization": ("float[n,3,5] x", "y = InstanceNormalization(x, w, b)", {"w": (3,), "b": (3,)}),
    "batch normalization": (
        "float[n,3] x",
        "y = BatchNormalization(x, w, b, mean, var)",
        {"w": (3,), "b": (3,), "mean": (3,), "var": np.ones(3, F32)},
    ),
    "norm of a row": ("float[n,4] x", "y = LpNormalization<axis = 1>(x)", {}),
    "local response": ("float[n,4,3,3] x", "y = LRN<size = 3>(x)", {}),
    "mean and variance": ("float[n,4] x", "y = MeanVarianceNormalization<axes = [1]>(x)", {}),
    "skip and normalize": (
        "float[n,2,4] x",
        "y, a, b, s = com.microsoft.SkipLayerNormalization(x, x, w)",
        {"w": (4,)},
    ),
    # shapes
    "reshape": ("float[n,4,3] x", "y = Reshape(x, shape)", {"shape": [-1, 12]}),
    "reshape that keeps": ("float[n,4,3] x", "y = Reshape(x, shape)", {"shape": [0, -1]}),
    "flatten": ("float[n,4,h] x", "y = Flatten(x)", {}),
    "squeeze": ("float[n,1,4] x", "y = Squeeze(x, axes)", {"axes": [1]}),
    "unsqueeze": ("float[n,4] x", "y = Unsqueeze(x, axes)", {"axes": [0, 3]}),
    "transpose": ("float[n,4,3] x", "y = Transpose<perm = [2, 0, 1]>(x)", {}),
    "join columns": ("float[n,4] x, float[n,3] z", "y = Concat<axis = 1>(x, z)", {}),
    "split columns": ("float[n,4] x", "y, z = Split<axis = 1>(x)", {}),
    "cut columns": ("float[n,4] x", "y = Slice(x, a, b, axes)", {"a": [1], "b": [3], "axes": [1]}),
    "cut all rows": ("float[n,4] x", "y = Slice(x, a, b, axes)", {"a": [0], "b": [1 << 40], "axes": [0]}),
    "cut to the number of rows": ("float[n,4] x", "e = Shape<end = 1>(x) \n y = Slice(x, a, e)", {"a": [0]}),
    "pad columns": ("float[n,4] x", "y = Pad(x, pads)", {"pads": [0, 1, 0, 2]}),
    "tile columns": ("float[n,4] x", "y = Tile(x, times)", {"times": [1, 3]}),
    "a token before each row": (
        "float[n,t,4] x",
        "s = Shape<end = 1>(x) \n e = Concat<axis = 0>(s, rest) \n t1 = Expand(token, e)\n y = Concat<axis = 1>(t1, x)",
        {"rest": [1, 4], "token": (1, 1, 4)},
    ),
    "a token repeated for each row": (
        "float[n,t,4] x",
        "s = Shape<end = 1>(x) \n e = Concat<axis = 0>(s, rest) \n t1 = Tile(token, e)\n y = Concat<axis = 1>(t1, x)",
        {"rest": [1, 1], "token": (1, 1, 4)},
    ),
    "zeros as states": ("float[n,4] x", "s = Shape(x) \n c = ConstantOfShape(s) \n y = Add(x, c)", {}),
    "twice the batch and halves of it": (
        "float[n,4] x",
        "t = Concat<axis = 0>(x, x) \n u = Relu(t) \n a, b = Split<axis = 0>(u) \n y = Sub(a, x)",
        {},
    ),
    "triangle": ("float[n,4,4] x", "y = Trilu(x)", {}),
    # indices
    "embedding": ("int64[n,t] x", "y = Gather(table, x)", {"table": (2, 4)}),
    "one column": ("float[n,4] x", "y = Gather<axis = 1>(x, i)", {"i": np.int64(2)}),
    "label by argmax": (
        "float[n,3] x",
        "i = ArgMax<axis = 1>(x) \n l = ai.onnx.ml.ArrayFeatureExtractor(labels, i) \n y = Reshape(l, flat)",
        {"labels": [7, 8, 9], "flat": [-1]},
    ),
    "elements of each row": ("float[n,4] x", "i = ArgMax<axis = 1>(x) \n y = GatherElements<axis = 1>(x, i)", {}),
    "slices of each row": (
        "float[n,4,3] x",
        "m = ReduceMax<axes = [2]>(x) \n i = ArgMax<axis = 1, keepdims = 0>(m) \n y = GatherND<batch_dims = 1>(x, i)",
        {},
    ),
    "one hot": ("int64[n] x", "y = OneHot(x, depth, values)", {"depth": np.int64(3), "values": (2,)}),
    "write columns": (
        "float[n,4] x",
        "i = ArgMax<axis = 1>(x) \n u = ReduceMin<axes = [1]>(x) \n y = ScatterElements<axis = 1>(x, i, u)",
        {},
    ),
    # images and signals
    "convolution": ("float[n,3,h,w] x", "y = Conv(x, k, b)", {"k": (2, 3, 2, 2), "b": (2,)}),
    "transposed convolution": ("float[n,3,h] x", "y = ConvTranspose(x, k)", {"k": (3, 2, 2)}),
    "pooling": ("float[n,3,h,w] x", "y = MaxPool<kernel_shape = [2, 2]>(x)", {}),
    "pooling over all": ("float[n,3,h,w] x", "y = GlobalAveragePool(x)", {}),
    "resize": ("float[n,3,h,w] x", 'y = Resize<mode = "nearest">(x, , s)', {"s": np.array([1, 1, 2, 2], F32)}),
    "resize to a size": (
        "float[n,3,h,w] x",
        's = Shape<end = 2>(x) \n t = Concat<axis = 0>(s, hw) \n y = Resize<mode = "linear">(x, , , t)',
        {"hw": [5, 5]},
    ),
    "depth to space": ("float[n,4,h,w] x", "y = DepthToSpace<blocksize = 2>(x)", {}),
    "grid sample": ("float[n,3,h,w] x, float[n,5,5,2] z", "y = GridSample(x, z)", {}),
    "spectra": ("float[n,16,1] x", "y = STFT(x, step, , length)", {"step": np.int64(4), "length": np.int64(8)}),
    # recurrent layers
    "lstm": ("float[t,n,3] x", "y, h, c = LSTM<hidden_size = 2>(x, w, r)", {"w": (1, 8, 3), "r": (1, 8, 2)}),
    "gru with a state": (
        "float[t,n,3] x, float[1,n,2] z",
        "y, h = GRU<hidden_size = 2>(x, w, r, , , z)",
        {"w": (1, 6, 3), "r": (1, 6, 2)},
    ),
    # quantization
    "static quantization": (
        "float[n,4] x",
        "q = QuantizeLinear(x, scale, zero) \n y = DequantizeLinear(q, scale, zero)",
        SCALE,
    ),
    "a scale for each column": (
        "float[n,4] x",
        "q = QuantizeLinear<axis = 1>(x, s, z) \n y = DequantizeLinear<axis = 1>(q, s, z)",
        {"s": np.full(4, 0.1, F32), "z": np.zeros(4, U8)},
    ),
    "dynamic quantization of a weight": (
        "float[n,4] x",
        "q, s, z = DynamicQuantizeLinear(w) \n d = DequantizeLinear(q, s, z) \n y = MatMul(x, d)",
        {"w": (4, 3)},
    ),
    # classical
    "linear classifier": (
        "float[n,2] x",
        "y, z = ai.onnx.ml.LinearClassifier<classlabels_ints = [0, 1, 2],"
        " coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],"
        ' intercepts = [0.0, 0.0, 0.0], post_transform = "SOFTMAX">(x)',
        {},
    ),
    "scaler": ("float[n,2] x", "y = ai.onnx.ml.Scaler<offset = [1.0, 2.0], scale = [1.0, 2.0]>(x)", {}),
    "normalizer": ("float[n,2] x", 'y = ai.onnx.ml.Normalizer<norm = "L2">(x)', {}),
    "feature vectorizer": (
        "float[n,2] x, float[n,3] z",
        "y = ai.onnx.ml.FeatureVectorizer<inputdimensions = [2, 3]>(x, z)",
        {},
    ),
    "label encoder": (
        "int64[n] x",
        'y = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_strings = ["a", "b"]>(x)',
        {},
    ),
    # fused operators of transformers
    "gelu with a bias": ("float[n,4] x", "y = com.microsoft.BiasGelu(x, b)", {"b": (4,)}),
    "fused attention": (
        "float[n,t,4] x, int32[n,t] z",
        "y = com.microsoft.Attention<num_heads = 2>(x, w, b, z)",
        {"w": (4, 12), "b": (12,)},
    ),
    "multi-head attention": ("float[n,t,4] x", "y = com.microsoft.MultiHeadAttention<num_heads = 2>(x, x, x)", {}),
    "matmul of 4 bits": (
        "float[n,32] x",
        "y = com.microsoft.MatMulNBits<K = 32, N = 2, bits = 4, block_size = 32>(x, w, s)",
        {"w": np.zeros((2, 1, 16), U8), "s": (2,)},
    ),
    "columns that are kept": (
        "float[n,3] x",
        "y = Compress<axis = 1>(x, keep)",
        {"keep": np.array([True, False, True])},
    ),
    "quantized product": (
        "float[n,4] x",
        "q = QuantizeLinear(x, scale, zero) \n y = QLinearMatMul(q, scale, zero, w, s, z, scale, zero)",
        {**SCALE, "w": np.arange(12, dtype=U8).reshape(4, 3), "s": np.full(3, 0.1, F32), "z": np.zeros(3, U8)},
    ),
    # unused or shared
    "a mean that nothing takes": ("float[n,4] x", "m = ReduceMean(x) \n y = Relu(x)", {}),
    "a shape of what is mixed": ("float[n,4] x", "y = Relu(x) \n m = ReduceMean<axes = [0], keepdims = 1>(x)", {}),
}


@pytest.mark.parametrize(("inputs", "body", "constants"), INDEPENDENT.values(), ids=INDEPENDENT)
def test_independent(judge, inputs, body, constants):
    proof = judge(graph(inputs, body, **constants), sizes={"t": 3, "h": 6, "w": 6})
    assert proof.verdict == "independent", proof


def test_an_output_that_is_the_same_for_all_rows(judge):
    proof = judge(graph("float[n,4] x", "y = Relu(x) \n z = Neg(c)", outputs="y, z", c=(3,)))
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0, "z": None})
