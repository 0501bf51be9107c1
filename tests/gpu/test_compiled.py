"""SKLinear on a CUDA device under torch.compile, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.nn import SKLinear
from panther.nn.kernels import compiled as compiled_module
from panther.nn.kernels import cuda, launch

pytestmark = [
    pytest.mark.gpu,
    # torch.compile uses what torch deprecates, and recommends tf32
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context:UserWarning"),
]


@pytest.fixture
def layer():
    torch.compiler.reset()
    yield SKLinear(1024, 768, 1, 16, device="cuda", generator=torch.Generator().manual_seed(1))
    torch.compiler.reset()


@pytest.fixture
def launched(monkeypatch):
    """The launches of our kernels so far."""
    seen: list[launch.Launch] = []
    plain = launch.Launch.__call__
    monkeypatch.setattr(launch.Launch, "__call__", lambda self, *a: seen.append(self) or plain(self, *a))
    return seen


def check(function, layer: SKLinear, rows: int, autocast: torch.dtype | None = None) -> None:
    x = torch.randn(rows, 1024, device="cuda", requires_grad=True)
    grad = torch.randn(rows, 768, device="cuda")
    with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
        y = function(x)
    found = [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad.to(y.dtype))]
    twin, x64 = layer.to_linear().double(), x.detach().double().requires_grad_()
    assert y.dtype == (autocast or torch.float32)
    expected = twin(x64)
    (dx,) = torch.autograd.grad(expected, x64, grad.double())
    H, dH = x64.detach() @ layer.U2s[0].double(), grad.double() @ layer.U1s[0].double().t()
    dS1, dS2 = x64.detach().t() @ dH / 2, H.t() @ grad.double() / 2
    for value, right in zip(found, (expected, dx, dS1[None], dS2[None], grad.double().sum(0)), strict=True):
        assert ((value.double() - right).norm() / right.norm()).item() < (1e-5 if autocast is None else 1e-2)


@pytest.mark.parametrize("rows", [64, 2048])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_kernels_are_launched_where_they_win(layer, launched, autocast, rows):
    compiled = torch.compile(layer, fullgraph=True)
    for _ in range(3):
        launched.clear()
        check(compiled, layer, rows, autocast)
        assert len(launched) == 4
    with torch.no_grad():
        launched.clear()
        compiled(torch.zeros(rows, 1024, device="cuda"))
        assert len(launched) == 2


def test_factors_are_cast_once_where_there_is_a_way_back(layer, monkeypatch):
    compiled = torch.compile(layer, fullgraph=True)
    check(compiled, layer, 2048, torch.bfloat16)
    laid_together: list[int] = []
    plain = compiled_module._whole
    monkeypatch.setattr(compiled_module, "_whole", lambda factors: laid_together.append(len(factors)) or plain(factors))
    check(compiled, layer, 2048, torch.bfloat16)
    assert laid_together == [4]


def test_products_are_used_where_kernels_were_switched_off_since(layer, launched):
    compiled = torch.compile(layer, fullgraph=True)
    check(compiled, layer, 64)
    launched.clear()
    with cuda.backend("products"):
        check(compiled, layer, 64)
    assert not launched
    check(compiled, layer, 64)
    assert launched


def test_a_change_of_precision_is_kept_to(layer):
    """What was compiled where tf32 was allowed computes in full where it is not."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        compiled = torch.compile(layer, fullgraph=True)
        compiled(torch.zeros(64, 1024, device="cuda", requires_grad=True)).sum().backward()
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    check(compiled, layer, 64)


def test_numbers_of_rows_that_change(layer):
    compiled = torch.compile(layer, fullgraph=True)
    for rows in (64, 65, 1, 200, 0, 64):
        if rows:
            check(compiled, layer, rows)
        else:
            assert compiled(torch.zeros(0, 1024, device="cuda")).shape == (0, 768)


def test_graphs_of_the_compiler(layer):
    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        check(compiled, layer, 300)


def test_a_graph_around_what_was_compiled(layer, launched):
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(64, 1024, device="cuda")
    with torch.no_grad():
        expected = compiled(x)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            compiled(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        launched.clear()
        with torch.cuda.graph(graph):
            y = compiled(x)
        assert launched
        y.zero_()
        graph.replay()
        torch.testing.assert_close(y, expected)


def test_a_step_of_the_optimizer_is_seen(layer):
    compiled = torch.compile(layer, fullgraph=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.randn(64, 1024, device="cuda")
    for _ in range(2):
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        check(compiled, layer, 64)


def test_parametrised_and_transformed(layer):
    doubled = nn.utils.parametrize.register_parametrization(layer, "S1s", nn.Identity())
    x = torch.randn(3, 5, 1024, device="cuda")
    with torch.no_grad():
        expected = doubled(x)
        torch.testing.assert_close(torch.compile(doubled)(x), expected)
        torch.testing.assert_close(torch.compile(torch.func.vmap(doubled))(x), expected)


def test_exports_hold_what_everybody_knows(layer):
    for strict in (True, False):
        program = torch.export.export(layer, (torch.zeros(2, 1024, device="cuda"),), strict=strict)
        assert not any("panther" in str(node.target) for node in program.graph.nodes)
