import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from panther.export.graph.constants import Builder, Levels, Plain, Product, SideBySide, Signs, transposed
from panther.export.graph.lower import factor_constants
from panther.linalg import sign_bits
from panther.nn import SKLinear


def random_signs(rows, columns, dtype=np.float32, seed=0):
    matrix = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], (rows, columns)))
    return Signs(sign_bits.pack_signs(matrix).numpy(), np.asarray(1 / np.sqrt(3), dtype=dtype), (rows, columns))


def plain(rows, columns, dtype=np.float32, seed=1):
    return Plain(np.random.default_rng(seed).standard_normal((rows, columns)).astype(dtype))


def folded(constant, tmp_path, fold=True):
    """What onnxruntime makes of a constant when it loads the file: x times it, with x the identity."""
    rows, columns = constant.shape
    elem = ir.DataType.from_numpy(constant.dtype)
    x = ir.Value(name="x", shape=ir.Shape(["n", rows]), type=ir.TensorType(elem))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="g")
    builder = Builder(graph, fold=fold)
    value = builder.add(constant, "c")
    y = ir.Value(name="y", shape=ir.Shape(["n", columns]), type=ir.TensorType(elem))
    builder.finish()
    graph.append(ir.node("MatMul", [x, value], outputs=[y]))
    graph.outputs.append(y)
    path = tmp_path / "c.onnx"
    ir.save(ir.Model(graph, ir_version=10), path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "c.opt.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "c.opt.onnx").graph
    (result,) = session.run(None, {"x": np.eye(rows, dtype=constant.dtype)})
    return result, optimized, path.stat().st_size


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 9), (8, 8), (16, 4), (1, 13), (129, 33)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_signs_fold_bit_for_bit_to_their_value(rows, columns, dtype, tmp_path):
    constant = random_signs(rows, columns, dtype)
    result, optimized, _ = folded(constant, tmp_path)
    assert result.dtype == dtype
    assert np.array_equal(result, constant.value())
    assert set(np.unique(np.abs(constant.value()))) == {dtype(1 / np.sqrt(3))}
    assert not {node.op_type for node in optimized.node} & {"BitwiseAnd", "Where", "Reshape", "Slice"}


def test_signs_take_one_bit_an_entry_in_the_file(tmp_path):
    constant = random_signs(512, 512)
    *_, size = folded(constant, tmp_path)
    assert constant.stored_bytes == 512 * 512 // 8
    assert size < constant.stored_bytes + 2_000


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 9), (129, 33)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_levels_fold_bit_for_bit_and_take_their_bits_an_entry(rows, columns, dtype, turned, bits, tmp_path):
    random = np.random.default_rng(0)
    largest = 2 ** (bits - 1) - 1
    levels = random.integers(-largest, largest + 1, (rows, columns)).astype(np.int8)
    steps = random.random((1, columns)).astype(np.float32)
    constant = Levels(levels, steps, np.dtype(dtype))
    wanted = (levels * steps.astype(np.float64)).astype(np.float32).astype(dtype)
    constant, wanted = (transposed(constant), wanted.T) if turned else (constant, wanted)
    result, optimized, size = folded(constant, tmp_path)
    assert np.array_equal(constant.value(), wanted)
    assert np.array_equal(result, wanted)
    assert not {node.op_type for node in optimized.node} & {"Cast", "Mul", "BitShift"} or dtype == np.float16
    if rows * columns > 1000:
        assert size < rows * columns * bits / 8 + 4 * columns + 2_000


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_matrices_beside_each_other(axis, fold, tmp_path):
    parts = (random_signs(6, 6), plain(6, 6), random_signs(6, 6, seed=3))
    constant = SideBySide(parts, axis)
    expected = np.concatenate([part.value() for part in parts], axis)
    assert constant.shape == expected.shape
    result, optimized, _ = folded(constant, tmp_path, fold)
    assert np.array_equal(result, expected)
    assert [node.op_type for node in optimized.node if node.op_type not in {"MatMul", "Gemm"}] == []


def test_a_product_is_stored_as_factors_where_that_is_smaller(tmp_path):
    thin = Product(plain(64, 2), plain(2, 64, seed=2))
    thick = Product(plain(8, 64), plain(64, 8, seed=2))
    for constant, stored in ((thin, 4 * 2 * 64 * 2), (thick, 4 * 64)):
        expected = constant.left.value().astype(np.float64) @ constant.right.value().astype(np.float64)
        result, _, size = folded(constant, tmp_path)
        assert np.allclose(result, expected, atol=1e-5)
        assert constant.value().dtype == np.float32
        assert np.abs(constant.value() - expected).max() <= np.abs(expected).max() * 2**-24
        assert stored <= size < stored + 1_000


@pytest.mark.parametrize(("num_terms", "low_rank"), [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("sketch", ["sign", "gaussian", "orthonormal"])
def test_factors_are_the_layer(num_terms, low_rank, sketch):
    layer = SKLinear(61, 53, num_terms, low_rank, sketch=sketch)
    W = sum(
        layer.S1s[i].double() @ layer.U1s[i].double() + layer.U2s[i].double() @ layer.S2s[i].double()
        for i in range(num_terms)
    ) / (2 * num_terms)
    for balance in (False, True):
        A, B = factor_constants(layer, balance=balance)
        product = A.value().astype(np.float64) @ B.value().astype(np.float64)
        assert np.allclose(product, W.detach().numpy(), atol=1e-6)
    signs = sum(isinstance(part, Signs) for constant in (A, B) for part in constant.parts)
    assert signs == (2 if sketch == "sign" else 0)


def test_a_name_that_another_array_has_is_changed():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    builder = Builder(graph, fold=True)
    first, again, other = (
        builder.initializer(np.array(values, np.float32), "b") for values in ([1, 2], [1, 2], [3, 4])
    )
    assert first is again
    assert (first.name, other.name) == ("b", "b_")
    assert other.const_value.numpy().tolist() == [3, 4]


def test_balanced_halves_are_of_one_size():
    A, _ = factor_constants(SKLinear(256, 64, 2, 8), balance=True)
    S1, U2 = np.split(A.value(), 2, axis=1)
    assert np.sqrt((S1**2).mean()) == pytest.approx(1, rel=1e-3)
    assert np.sqrt((U2**2).mean()) == pytest.approx(1, rel=1e-3)


def test_a_transpose_is_as_compact_and_exact(tmp_path):
    A = SideBySide((plain(7, 3), random_signs(7, 5)), axis=1)
    B = SideBySide((random_signs(3, 9, seed=2), plain(5, 9)), axis=0)
    for constant in (plain(7, 3), random_signs(7, 5), A, B, Product(A, B)):
        turned = transposed(constant)
        assert turned.shape == constant.shape[::-1]
        assert turned.stored_bytes == constant.stored_bytes
        assert np.allclose(turned.value(), constant.value().T, atol=1e-6)
        assert np.allclose(folded(turned, tmp_path)[0], constant.value().T, atol=1e-5)
