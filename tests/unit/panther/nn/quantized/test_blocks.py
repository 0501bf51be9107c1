"""Layers in blocks beside onnxruntime's MatMulNBits, and the weight beside numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from panther.nn.quantized import BlockLinear
from panther.nn.quantized.blocks import block_bytes


def layer(d_out, d_in, bits, block_size, *, zero_points=True, bias=True, activation_bits=None):
    generator = torch.Generator().manual_seed(d_out + d_in + bits)
    blocks = -(-d_in // block_size)

    def integers(*shape):
        return torch.randint(0, 2**bits, shape, generator=generator).to(torch.uint8)

    return BlockLinear(
        integers(d_out, d_in),
        torch.rand(d_out, blocks, generator=generator) + 0.1,
        integers(d_out, blocks) if zero_points else None,
        bits=bits,
        block_size=block_size,
        bias=torch.randn(d_out, generator=generator) if bias else None,
        activation_bits=activation_bits,
    )


def by_onnxruntime(module, x, accuracy_level):
    """What MatMulNBits computes from the buffers as they are."""
    inputs = {"B": module.weight_packed, "scales": module.weight_scale}
    names = ["x", "B", "scales", "", "", ""]
    if module.weight_zero_point is not None:
        inputs["zeros"] = module.weight_zero_point
        names[3] = "zeros"
    if module.bias is not None:
        inputs["bias"], names[5] = module.bias.detach(), "bias"
    node = helper.make_node(
        "MatMulNBits",
        names,
        ["y"],
        domain="com.microsoft",
        K=module.in_features,
        N=module.out_features,
        bits=module.bits,
        block_size=module.block_size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*x.shape[:-1], module.out_features])],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in inputs.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


SIZES = [(24, 64), (1, 1), (5, 129), (33, 100)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("zero_points", "bias"), [(True, True), (False, False)])
def test_it_is_what_onnxruntime_computes(sizes, bits, block_size, zero_points, bias):
    module = layer(*sizes, bits, block_size, zero_points=zero_points, bias=bias)
    x = torch.randn(3, 4, sizes[1], generator=torch.Generator().manual_seed(1))
    wanted = by_onnxruntime(module, x, 0)
    np.testing.assert_allclose(module(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rounded_activations_are_those_of_onnxruntime(sizes, bits, block_size):
    rounds, floats = (layer(*sizes, bits, block_size, activation_bits=b) for b in (8, None))
    x = torch.randn(40, sizes[1], generator=torch.Generator().manual_seed(1))
    wanted = by_onnxruntime(rounds, x, 4)
    lost = np.abs(rounds(x).detach().numpy() - wanted)
    # an activation between two steps may fall either way
    assert lost.max() < 0.01 * np.abs(wanted).max()
    if sizes[1] > 1:  # otherwise rounding is exact
        assert lost.mean() < 0.02 * np.abs(floats(x).detach().numpy() - wanted).mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_its_weight_is_levels_less_zero_points_times_scales(bits):
    module = layer(7, 70, bits, 32)
    expand = [0] * 32 + [1] * 32 + [2] * 6
    levels = module.levels.numpy().astype(np.float64)
    wanted = (levels - module.zero_points.numpy()[:, expand]) * module.weight_scale.numpy()[:, expand]
    np.testing.assert_allclose(module.weight.numpy(), wanted, rtol=1e-6)
    assert module.levels.shape == (7, 70)


def test_rows_do_not_depend_on_the_batch():
    module = layer(8, 64, 4, 32, activation_bits=8)
    x = torch.randn(6, 64)
    large = torch.cat([x, torch.full((1, 64), 1e4)])
    torch.testing.assert_close(module(large)[:6], module(x), rtol=1e-6, atol=1e-5)


def test_inputs_of_zeros_and_in_half_precision():
    module = layer(8, 64, 4, 32, activation_bits=8)
    assert torch.equal(module(torch.zeros(64)), module.bias)
    y = module(torch.ones(2, 64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize(("bits", "zero_points"), [(4, True), (4, False), (8, True)])
def test_bytes_are_those_that_it_holds(bits, zero_points):
    module = layer(5, 100, bits, 32, zero_points=zero_points, bias=False)
    assert module.stored_bytes == block_bytes(5, 100, bits=bits, block_size=32, zero_points=zero_points)
    assert module.stored_bytes == sum(tensor.nbytes for tensor in module.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, r"bits \(3\) must be one of \[4, 8\]"),
        ({"block_size": 48}, r"block_size \(48\) must be one of \[16, 32, 64, 128, 256\]"),
        ({"activation_bits": 4}, r"activation_bits \(4\) must be 8 or None"),
        ({"levels": torch.zeros(3, 8)}, r"levels \(torch.float32, shape \(3, 8\)\) must be a matrix of torch.uint8"),
        ({"levels": torch.full((3, 8), 16, dtype=torch.uint8)}, r"levels hold 16; with 4 bits they must be below 16"),
        ({"scale": torch.ones(3)}, r"scale of shape \(3,\) must have shape \(3, 1\)"),
        (
            {"zero_point": torch.zeros(3, 2, dtype=torch.uint8)},
            r"zero_point of shape \(3, 2\) must have shape \(3, 1\)",
        ),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    given = {"levels": torch.zeros(3, 8, dtype=torch.uint8), "scale": torch.ones(3, 1), "bits": 4, "block_size": 32}
    with pytest.raises(ValueError, match=message):
        BlockLinear(**(given | changes))
