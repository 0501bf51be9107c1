"""SKLinear on a CUDA device, by our kernels and by the library's products, against the formula in float64."""

from __future__ import annotations

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

from panther.nn import SKLinear
from panther.nn.kernels import cuda, devices, launch

pytestmark = [
    pytest.mark.gpu,
    # what torch says where the first product of a thread of the engine of autograd comes before any other call there
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"),
]


def quiet_compile(test):
    """Torch.compile uses what torch deprecates, and recommends tf32."""
    for warning in ("ignore:`torch.jit.script:DeprecationWarning", "ignore:TensorFloat32 tensor cores:UserWarning"):
        test = pytest.mark.filterwarnings(warning)(test)
    return test


# L, k that are no powers of two; one row; edges that no tile fits; both sides of each condition of the kernels
SIZES = [
    (64, 48, 2, 4),
    (33, 17, 1, 3),
    (784, 512, 2, 64),
    (1000, 777, 3, 5),
    (4096, 4096, 4, 128),
    (8192, 8192, 1, 16),
]
ROWS = [1, 31, 512, 4200]
# computing in: allowed relative error in the Frobenius norm of outputs and of gradients
ERRORS = {"float64": 1e-13, "float32": 1e-5, "tf32": 4e-3, "bfloat16": 1e-2, "float16": 2e-3}


@contextlib.contextmanager
def precision(name: str):
    """Set what float32 products are computed in."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
    try:
        yield torch.float32 if name == "tf32" else getattr(torch, name)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.fixture(params=cuda.BACKENDS)
def backend(request):
    if request.param == "kernels":
        assert devices.triton_kernels() is not None, "triton comes with torch for CUDA"
        assert devices.device(torch.cuda.current_device()).is_measured, (
            "these tests are for devices of the kernels' tiles"
        )
    with cuda.backend(request.param):
        yield request.param


def make(*sizes: int, **options) -> SKLinear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return SKLinear(*sizes, generator=torch.Generator().manual_seed(1), device="cuda", **options)


def oracle(layer: SKLinear, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """The formula, term by term, and its gradients for x, S1s, S2s and the bias, in float64."""
    x, S1s, U1s, U2s, S2s = (t.detach().double() for t in (x, layer.S1s, layer.U1s, layer.U2s, layer.S2s))
    bias = None if layer.bias is None else layer.bias.detach().double()
    learning = [t.requires_grad_() for t in (x, S1s, S2s, *([] if bias is None else [bias]))]
    total = sum(x @ S1s[i] @ U1s[i] + x @ U2s[i] @ S2s[i] for i in range(layer.num_terms))
    y = total / (2 * layer.num_terms)
    y = y if bias is None else y + bias
    return [y.detach(), *torch.autograd.grad(y, learning, grad.double())]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def results(layer, x: torch.Tensor, grad: torch.Tensor, autocast: torch.dtype | None = None) -> list[torch.Tensor]:
    """The output and all gradients; what is not written shows, since the allocator's memory is filled before."""
    del_me = [torch.full((8 << 20,), float("nan"), device="cuda") for _ in range(4)]
    del del_me
    with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
        y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad.to(y.dtype))]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ERRORS)
def test_outputs_and_gradients(name, sizes, rows, backend):
    with precision(name) as dtype:
        layer = make(*sizes, dtype=dtype)
        generator = torch.Generator(device="cuda").manual_seed(rows)
        x = torch.randn(rows, sizes[0], dtype=dtype, device="cuda", generator=generator, requires_grad=True)
        grad = torch.randn(rows, sizes[1], dtype=dtype, device="cuda", generator=generator)
        expected = oracle(layer, x, grad)
        found = results(layer, x, grad)
        with torch.no_grad():
            assert relative_error(layer(x), expected[0]) < ERRORS[name]
        for value, right, kind in zip(found, expected, ("y", "x", "S1s", "S2s", "bias"), strict=True):
            assert value.dtype == dtype
            assert relative_error(value, right) < ERRORS[name], kind


@pytest.mark.parametrize("rows", [1, 512, 4200])
@pytest.mark.parametrize("sizes", [(784, 512, 2, 64), (8192, 8192, 1, 16), (1000, 777, 3, 5)], ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_terms_apart_in_memory(bias, autocast, sizes, rows, backend):
    """As FSDP gathers parameters: in other memory than the layer's own."""
    layer = make(*sizes, bias=bias)
    for name in ("S1s", "S2s"):
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach().clone()))
    x = torch.randn(rows, sizes[0], device="cuda", requires_grad=True)
    grad = torch.randn(rows, sizes[1], device="cuda")
    grad = grad if autocast is None else grad.to(autocast)
    with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
        assert layer(x).grad_fn.name() == "_LinearOfCopiesBackward"
    allowed = ERRORS["float32" if autocast is None else "bfloat16"]
    expected = oracle(layer, x, grad)
    with precision("float32"):
        for value, right in zip(results(layer, x, grad, autocast), expected, strict=True):
            assert relative_error(value, right) < allowed
        with torch.no_grad():
            assert relative_error(layer(x), expected[0]) < ERRORS["float32"]


def test_terms_apart_that_need_plain_operations(backend):
    layer, x = make(64, 48, 2, 4), torch.randn(5, 64, device="cuda")
    layer.S1s = nn.Parameter(layer.S1s.detach().clone())
    expected = layer(x)
    torch.testing.assert_close(torch.vmap(layer)(x), expected, rtol=1e-4, atol=1e-5)
    layer.U1s.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), layer.U1s)
    assert gradient.shape == layer.U1s.shape
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        layer(x.half())


@pytest.mark.parametrize("rows", [1, 512, 4200])
@pytest.mark.parametrize("sizes", [(784, 512, 2, 64), (8192, 8192, 1, 16), (1000, 777, 3, 5)], ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_autocast(bias, x_dtype, sizes, rows, backend):
    layer = make(*sizes, bias=bias)
    x = torch.randn(rows, sizes[0], device="cuda").to(x_dtype).requires_grad_()
    grad = torch.randn(rows, sizes[1], device="cuda").bfloat16()
    found = results(layer, x, grad, torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    assert [value.dtype for value in found[1:]] == [x_dtype] + [torch.float32] * (2 + bias)
    for value, right in zip(found, oracle(layer, x, grad), strict=True):
        assert relative_error(value, right) < ERRORS["bfloat16"]


@pytest.mark.parametrize("rows", [48, 4200])
def test_layers_of_one_shape_and_several_types(rows, backend):
    """What is compiled for one is not used for the other."""
    grad = torch.randn(rows, 512, device="cuda").bfloat16()
    x = torch.randn(rows, 768, device="cuda").bfloat16().requires_grad_()
    for _ in range(2):
        for dtype, bias in ((torch.bfloat16, True), (torch.float32, True), (torch.bfloat16, False)):
            layer = make(768, 512, 1, 16, dtype=dtype, bias=bias)
            for value, right in zip(results(layer, x, grad, torch.bfloat16), oracle(layer, x, grad), strict=True):
                assert relative_error(value, right) < ERRORS["bfloat16"]


@pytest.mark.parametrize("learns", ["x", "S1s", "S2s", "bias"])
@pytest.mark.parametrize("rows", [40, 4200])
def test_gradients_of_one_alone(rows, learns, backend):
    layer = make(1000, 768, 1, 16, dtype=torch.bfloat16)
    x = torch.randn(rows, 1000, device="cuda", dtype=torch.bfloat16, requires_grad=learns == "x")
    grad = torch.randn(rows, 768, device="cuda", dtype=torch.bfloat16)
    expected = dict(zip(("y", "x", "S1s", "S2s", "bias"), oracle(layer, x, grad), strict=True))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == learns)
    layer(x).backward(grad)
    found = {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    assert [name for name, value in found.items() if value is not None] == [learns]
    assert relative_error(found[learns], expected[learns]) < ERRORS["bfloat16"]


@pytest.mark.parametrize("rows", [0, 3, 5000])
def test_inputs_in_any_form(rows, backend):
    layer = make(256, 192, 2, 8, dtype=torch.float16)
    grad = torch.ones((), device="cuda", dtype=torch.float16)
    forms = {
        "plain": torch.randn(rows, 256, device="cuda", dtype=torch.float16),
        "transposed": torch.randn(256, rows, device="cuda", dtype=torch.float16).t(),
        "every second": torch.randn(rows, 512, device="cuda", dtype=torch.float16)[:, ::2],
        "wider rows": torch.randn(rows, 300, device="cuda", dtype=torch.float16)[:, :256],
        "odd address": torch.randn(rows * 256 + 1, device="cuda", dtype=torch.float16)[1:].view(rows, 256),
        "three axes": torch.randn(rows, 2, 256, device="cuda", dtype=torch.float16).transpose(0, 1),
        "one row": torch.randn(256, device="cuda", dtype=torch.float16),
    }
    for form, values in forms.items():
        x = values.detach().requires_grad_()
        y = layer(x)
        assert y.shape == (*x.shape[:-1], 192), form
        # a sum gives a gradient whose strides are zero
        gradients = torch.autograd.grad((y * grad).sum(), [x, *layer.parameters()])
        if not y.numel():
            assert all(not gradient.any() for gradient in gradients)
            continue
        expected = oracle(layer, x.reshape(-1, 256), grad.expand(y.shape).reshape(-1, 192))
        for value, right in zip([y, *gradients], expected, strict=True):
            assert relative_error(value.reshape(right.shape), right) < 4e-3, form


def test_what_a_transformation_left_over(backend):
    layer, left = make(64, 48, 2, 4), []
    x = torch.randn(3, 64, device="cuda")
    torch.func.grad(lambda x: left.append(x) or x.sum())(x)
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            torch.testing.assert_close(layer(left[0]), layer(x), rtol=1e-4, atol=1e-5)


def test_second_derivatives(backend):
    layer = make(64, 48, 2, 4)
    x = torch.randn(5, 64, device="cuda", requires_grad=True)
    with precision("tf32"):
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
    twin = copy.deepcopy(layer).double()
    z = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(twin(z).square().sum(), z, create_graph=True)
    expected.square().sum().backward()
    for mine, right in ((layer.S1s.grad, twin.S1s.grad), (layer.S2s.grad, twin.S2s.grad)):
        assert relative_error(mine, right) < 1e-2


@pytest.mark.parametrize("rows", [32, 4200])
def test_a_step_of_the_optimizer_is_seen(rows, backend):
    layer = make(512, 256, 1, 8, dtype=torch.bfloat16)
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        before = layer(x).detach()
        optimizer.zero_grad()
        layer(x).float().square().mean().backward()
        optimizer.step()
        layer.S1s.data.mul_(1.25)
        after = layer(x)
        assert not torch.equal(before, after)
        assert relative_error(after, oracle(layer, x, after)[0]) < ERRORS["bfloat16"]


@quiet_compile
@pytest.mark.parametrize("rows", [64, 4200])
@pytest.mark.parametrize("autocast", [None, torch.float16], ids=str)
def test_compiles_without_a_graph_break(autocast, rows, backend):
    torch.compiler.reset()
    model = nn.Sequential(make(128, 256, 1, 16), nn.GELU(), make(256, 64, 2, 8))
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(rows, 128, device="cuda", requires_grad=True)
    grad = torch.randn(rows, 64, device="cuda")
    for found, expected in zip(results(compiled, x, grad, autocast), results(model, x, grad, autocast), strict=True):
        assert relative_error(found, expected.double()) < (1e-4 if autocast is None else 4e-3)
    torch.compiler.reset()


@pytest.mark.parametrize("rows", [64, 4200])
def test_in_a_cuda_graph_with_the_step_of_the_optimizer(rows, backend):
    layer = make(512, 256, 1, 16, dtype=torch.bfloat16)
    twin, start = copy.deepcopy(layer), layer.S1s.detach().clone()
    x, grad = (torch.randn(rows, n, device="cuda", dtype=torch.bfloat16) for n in (512, 256))

    def step(layer):
        y = layer(x)
        with torch.no_grad():
            for parameter, slope in zip(
                layer.parameters(), torch.autograd.grad(y, [*layer.parameters()], grad), strict=True
            ):
                parameter.sub_(slope, alpha=0.01)
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(layer)
            step(twin)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(layer)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert relative_error(step(twin), y.double()) < ERRORS["bfloat16"]
    assert relative_error(layer.S1s, twin.S1s.double()) < ERRORS["bfloat16"]
    assert not torch.equal(layer.S1s, start)


def test_gradients_are_the_same_at_every_run(backend):
    layer = make(4096, 4096, 2, 64)
    x, grad = (torch.randn(48, 4096, device="cuda").bfloat16() for _ in range(2))
    x.requires_grad_()
    first = results(layer, x, grad, torch.bfloat16)
    for _ in range(5):
        for value, again in zip(first, results(layer, x, grad, torch.bfloat16), strict=True):
            assert torch.equal(value, again)


@quiet_compile
def test_what_does_not_fit_together_is_refused(backend):
    layer = make(64, 48, 2, 4)
    for compiled in (False, True):
        module = torch.compile(layer) if compiled else layer
        with pytest.raises((RuntimeError, ValueError), match=r"dtype|float16|expected scalar type"):
            module(torch.zeros(3, 64, device="cuda", dtype=torch.float16))
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.zeros(3, 64))


def test_kernels_are_used_where_they_should_be(monkeypatch):
    seen = []
    monkeypatch.setattr(launch.Launch, "__call__", lambda self, *_: seen.append(self._kernel.fn.__name__))
    # other tests may have met many kinds of inputs, after which rare ones take products
    monkeypatch.setattr(cuda, "_kinds_used", 0)
    layer = make(8192, 8192, 1, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        layer(torch.zeros(8192, 8192, device="cuda", dtype=torch.bfloat16))
        assert len(seen) == 2
        with cuda.backend("products"):
            layer(torch.zeros(8, 8192, device="cuda", dtype=torch.bfloat16))
        # the factors are laid together for the library's products
        assert seen[2:] == ["lay_out"]


def test_double_parameters_under_autocast():
    layer = make(64, 48, 2, 4, dtype=torch.float64)
    x = torch.randn(5, 64, device="cuda", requires_grad=True)
    grad = torch.randn(5, 48, device="cuda").bfloat16()
    found = results(layer, x, grad, torch.bfloat16)
    assert [value.dtype for value in found] == [torch.bfloat16, torch.float32] + [torch.float64] * 3
    for value, right in zip(found, oracle(layer, x, grad), strict=True):
        assert relative_error(value, right) < ERRORS["bfloat16"]
