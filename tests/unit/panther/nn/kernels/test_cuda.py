"""What a CUDA device does with a sketched layer, as far as it shows without one; tests/gpu has the rest."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from panther.nn import SKLinear, functional
from panther.nn.kernels import cuda, devices, packed, tiles

H200 = devices.Device(132, 227 << 10, 9)
NEEDS = [(True,) * 4, (True, False, False, False), (False, True, True, True), (False, False, False, True)]
without_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="triton is here")


def make(bias: bool = True, dtype: torch.dtype = torch.float64) -> SKLinear:
    return SKLinear(40, 30, 2, 3, bias=bias, dtype=dtype, generator=torch.Generator().manual_seed(1))


def rows(dtype: torch.dtype = torch.float64, **options) -> torch.Tensor:
    return torch.randn(7, 40, generator=torch.Generator().manual_seed(2), dtype=dtype).requires_grad_(**options)


def definition(layer: SKLinear, x: torch.Tensor) -> torch.Tensor:
    return functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)


def wins(rows: int, width: int, columns: int, precision: str = "half", *, learning=True, captured=False) -> bool:
    return tiles.kernels_win(rows, width, width, columns, precision, learning=learning, captured=captured)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("learning", [True, False])
def test_kernels_stream_where_memory_binds(learning, captured):
    how = {"learning": learning, "captured": captured}
    assert wins(8192, 8192, 32, **how)
    assert wins(1 << 20, 8192, 64, **how)
    assert not wins(1 << 20, 8192, 65, **how)
    assert not wins(1 << 20, 8192, 64, "tf32", **how)


def test_a_forward_pass_takes_kernels_where_launches_cost_more_than_they_do():
    # 5 · 512 · 1024 · 8192 operations take 0.07 ms at 300e12 a second, 0.39 ms at 55e12, 1.07 ms at 20e12; 0.2 ms are
    # allowed to tf32, else 0.4 ms
    assert wins(512, 4096, 1024, learning=False)
    assert not wins(512, 4096, 1024, "tf32", learning=False)
    assert wins(256, 4096, 1024, "tf32", learning=False)
    assert wins(512, 4096, 256, "ieee", learning=False)
    assert not wins(512, 4096, 1024, "ieee", learning=False)


def test_a_training_step_takes_products_where_they_keep_the_device_busy():
    assert wins(512, 4096, 256)
    assert wins(2048, 2048, 256)
    assert not wins(8192, 2048, 256)
    assert not wins(2048, 4096, 1024)
    assert wins(512, 4096, 256, "tf32")
    assert not wins(512, 8192, 1024, "tf32")
    assert wins(512, 1024, 256, "ieee")
    assert not wins(512, 2048, 1024, "ieee")


def test_time_of_products_grows_with_each_size():
    def time(rows=2048, d_in=2048, d_out=2048, columns=256, precision="half"):
        return tiles.products_s(rows, d_in, d_out, columns, precision)

    larger = (time(rows=4096), time(d_in=4096), time(d_out=4096), time(columns=512), time(precision="tf32"))
    assert all(time() < value < 4 * time() for value in larger)
    assert time(precision="ieee") > time(precision="tf32")


def test_launches_cost_nothing_in_a_graph():
    assert not wins(512, 4096, 1024, captured=True)
    assert not wins(1, 4096, 65, captured=True)
    assert wins(128, 8192, 64, captured=True)
    assert not wins(129, 8192, 64, captured=True)
    assert wins(512, 8192, 32, captured=True)
    assert not wins(64, 8192, 64, "tf32", captured=True)
    assert wins(64, 8192, 256, "ieee", captured=True)
    assert not wins(64, 8192, 257, "ieee", captured=True)
    assert not wins(65, 8192, 32, "ieee", captured=True)


@pytest.mark.parametrize("rows", [1, 17, 32, 65, 512, 1000, 4095, 8192, 32768])
@pytest.mark.parametrize(("features", "columns"), [(17, 2), (100, 30), (3200, 256), (4096, 1024), (8192, 32)])
@pytest.mark.parametrize(("precision", "itemsize"), [("half", 2), ("half", 4), ("tf32", 4), ("ieee", 4)])
def test_tiles_cover_everything_and_fit(rows, features, columns, precision, itemsize):
    how = {"precision": precision}
    shrink = tiles.shrink_tiles(rows, features, columns, itemsize, itemsize, H200, readers=features, **how)
    blocks = -(-rows // shrink.BM) * -(-columns // shrink.BC)
    assert shrink.programs == blocks * shrink.splits
    assert (shrink.splits - 1) * shrink.split_size < features <= shrink.splits * shrink.split_size
    assert shrink.split_size % shrink.BF == 0
    assert not shrink.full_features or features % shrink.BF == 0
    assert not shrink.full_columns or columns % shrink.BC == 0
    assert not shrink.reduced or shrink.splits > 1
    H_bytes = 4 * (1 if shrink.reduced else shrink.splits)
    for beside in (False, True):
        expand = tiles.expand_tiles(rows, features, columns, H_bytes, itemsize, H200, beside=beside, **how)
        assert expand.rows_each % expand.BM == 0
        assert expand.programs == -(-features // expand.BF) * -(-rows // expand.rows_each)
        assert expand.one_tile or expand.rows_each == expand.BM, "a program without its panel makes one block of rows"
        assert not expand.one_tile or columns <= expand.BC
        # what the last stage reads needs no memory where it is not described to a matrix unit
        taken = max(1, expand.stages - 1) * (expand.BM * expand.BC * H_bytes + expand.BF * expand.BC * itemsize)
        assert taken <= 227 << 10, "shared memory of a multiprocessor"
    reduce = tiles.reduce_tiles(rows, features, columns, itemsize, H_bytes, H200, **how)
    assert reduce.programs == -(-features // reduce.BF) * -(-columns // reduce.BC)
    for sides in ((shrink.BM, shrink.BF, shrink.BC), (expand.BM, expand.BF, expand.BC), (reduce.BF, reduce.BC)):
        assert all(side >= 16 and side & (side - 1) == 0 for side in sides), "matrix units take powers of two from 16"
    taken = shrink.stages * itemsize * (shrink.BM * shrink.BF + shrink.BF * shrink.BC)
    assert taken <= H200.tiles_bytes
    assert shrink.stages >= 2


def test_partial_sums_are_reduced_first_where_reading_them_takes_longer():
    def reduced(rows: int, columns: int, precision: str, *, learning: bool = False) -> bool:
        how = {"precision": precision, "readers": 4096, "learning": learning}
        shrink = tiles.shrink_tiles(rows, 4096, columns, 4, 4, H200, **how)
        assert shrink.splits > 1
        return shrink.reduced

    assert reduced(512, 256, "tf32")
    assert not reduced(32, 256, "tf32")
    assert not reduced(512, 256, "tf32", learning=True)
    assert reduced(512, 256, "ieee", learning=True)
    # 32 panels that read three more partial sums of 512 · 256 numbers: 50 MB
    assert not reduced(512, 256, "half")


def test_backend_refuses_what_is_not_there():
    with (
        pytest.raises(ValueError, match=r"name \('cutlass'\) must be one of 'auto', 'kernels', 'products'"),
        cuda.backend("cutlass"),
    ):
        pass


@without_triton
def test_kernels_are_off_where_triton_is_not():
    assert devices.triton_kernels() is None
    with pytest.raises(RuntimeError, match="'kernels' needs the package triton"), cuda.backend("kernels"):
        pass


def test_backend_is_what_it_was_afterwards():
    with cuda.backend("products"), pytest.raises(ValueError, match="name"), cuda.backend("none"):
        pass
    assert cuda._backend == "auto"


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_definition(bias, needs):
    """On the CPU, the device not being part of the computation."""
    layer, x = make(bias), rows(requires_grad=True)
    y = definition(layer, x)
    grad = torch.randn_like(y)
    wanted = [x, layer.S1s, layer.S2s, *([layer.bias] if bias else [])]
    expected = torch.autograd.grad(y, wanted, grad)
    packed = layer._packed
    found, H, kept = cuda.forward(x.detach(), layer.bias, packed.A, packed.B, torch.float64)
    torch.testing.assert_close(found, y)
    asked = (*needs[:3], needs[3] and bias)
    gradients = cuda.backward(grad, x.detach(), H, kept, 2, asked)
    for gradient, value, need in zip(gradients, [*expected, None][:4], asked, strict=True):
        assert (gradient is not None) is need
        if need:
            torch.testing.assert_close(gradient, value)


@pytest.mark.parametrize("learns", ["all", "x", "S1s", "bias"])
def test_derivatives_of_the_function(learns):
    layer, x = make(), rows(requires_grad=learns in ("all", "x"))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(learns in ("all", name))

    def function(*_):
        return cuda.linear(x, layer.S1s, layer.S2s, layer.bias, layer._packed.A, layer._packed.B, torch.float64)

    learning = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    assert torch.autograd.gradcheck(function, learning, check_forward_ad=False)
    assert torch.autograd.gradgradcheck(function, learning)


def test_what_a_transformation_left_over_is_taken_as_it_is():
    """It is a Tensor by type, and has no memory of its own that a kernel could read."""
    layer, x, left = make(), rows(), []
    torch.func.grad(lambda x: left.append(x) or x.sum())(x)
    assert type(left[0]) is torch.Tensor
    assert not packed.applicable(left[0])
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(layer(left[0]), definition(layer, x))
