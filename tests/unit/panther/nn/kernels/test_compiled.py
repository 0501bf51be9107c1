"""What a sketched layer on a CUDA device is under torch.compile, on the CPU; tests/gpu has the rest."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from panther.nn import SKLinear, functional
from panther.nn.kernels import compiled, cuda, devices

quiet = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def make(bias: bool = True, dtype: torch.dtype = torch.float64) -> SKLinear:
    return SKLinear(40, 30, 2, 3, bias=bias, dtype=dtype, generator=torch.Generator().manual_seed(1))


def terms(layer: SKLinear) -> tuple[torch.Tensor | None, ...]:
    return layer.S1s, layer.U1s, layer.U2s, layer.S2s, layer.bias


def definition(layer: SKLinear, x: torch.Tensor) -> torch.Tensor:
    return functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)


def assert_same(y: torch.Tensor, expected: torch.Tensor, wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), wanted)
    for gradient, value in zip(found, torch.autograd.grad(expected.square().sum(), wanted), strict=True):
        torch.testing.assert_close(gradient, value)


@pytest.fixture
def kernels_win(monkeypatch):
    """Let H come in three splits wherever our kernels might be used."""
    plan = type("LaunchPlan", (), {"H": type("H", (), {"length": 3})})
    asked = []
    monkeypatch.setattr(cuda, "planned", lambda *a, **how: asked.append((a, how)) or plan)
    torch.compiler.reset()
    yield asked
    torch.compiler.reset()


@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_composed_is_the_definition(bias, lead):
    layer = make(bias)
    x = torch.randn(*lead, 40, dtype=torch.float64, requires_grad=True)
    assert_same(compiled.composed(x, *terms(layer)), definition(layer, x), [x, *layer.parameters()])


@quiet
@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_definition(bias, lead, monkeypatch):
    monkeypatch.setattr(cuda, "planned", lambda *_, **__: None)
    torch.compiler.reset()
    layer = make(bias)
    x = torch.randn(*lead, 40, dtype=torch.float64, requires_grad=True)
    function = torch.compile(
        lambda x: compiled.linear(x, *terms(layer), plain=True), backend="aot_eager", fullgraph=True, dynamic=False
    )
    assert_same(function(x), definition(layer, x), [x, *layer.parameters()])


def test_products_compute_no_gradient_of_the_fixed_halves(monkeypatch):
    monkeypatch.setattr(cuda, "planned", lambda *_, **__: None)
    layer, x = make(), torch.randn(7, 40, dtype=torch.float64, requires_grad=True)
    (d_in, columns), d_out = layer.factors()[0].shape, layer.out_features
    with FlopCounterMode(display=False) as counter:
        compiled._decided(x, *terms(layer), x.dtype, "auto", "1.0").sum().backward()
    assert counter.get_total_flops() == 2 * 7 * columns * (d_in + d_out) * 5 / 2


@quiet
@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_operation_is_the_definition(bias, lead, kernels_win):
    layer = make(bias, torch.float32)
    x = torch.randn(*lead, 40, requires_grad=True)
    graphs = []

    def look(graph, _):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    for backend in ("eager", "aot_eager", "inductor", look):
        function = torch.compile(
            lambda x: compiled.linear(x, *terms(layer), plain=True), backend=backend, fullgraph=True
        )
        assert_same(function(x), definition(layer, x), [x, *layer.parameters()])
    assert graphs == [[torch.ops.panther.sketched_linear]]
    assert kernels_win


@pytest.mark.parametrize(
    ("lead", "dtype"),
    [((7,), torch.float32), ((2, 0), torch.float32), ((), torch.bfloat16), ((41, 25), torch.bfloat16)],
)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_operations_keep_the_rules_of_torch(bias, splits, lead, dtype):
    """Among them that what the compiler is told of the results (shapes, strides, types, aliases) is so."""
    layer = make(bias, torch.float32)
    x, *tensors = [None if t is None else t.detach() for t in (torch.randn(*lead, 40), *terms(layer))]
    rows = math.prod(lead)
    forward = (x, *tensors, dtype, splits)
    for learning in (False, True):
        torch.library.opcheck(torch.ops.panther.sketched_linear_forward, (*forward, learning))
    y, H, *cast = torch.ops.panther.sketched_linear_forward(*forward, learning)
    assert (y.shape, H.shape) == ((*lead, 30), (splits, rows, 12))
    assert [(factor.dtype, factor.shape) for factor in cast] == (
        [(dtype, (4, 40, 3)), (dtype, (12, 30))] if rows > 1024 else []
    )
    back = (torch.randn_like(y), x, H, cast or tensors[:4], dtype, torch.float32)
    for needs in ((True, True, True, True), (True, False, False, False), (False, False, True, bias)):
        torch.library.opcheck(torch.ops.panther.sketched_linear_backward, (*back, needs))


@quiet
def test_terms_that_lie_elsewhere_are_taken_as_they_are(kernels_win):
    layer, x = make(), torch.randn(7, 40, dtype=torch.float64, requires_grad=True)
    elsewhere = [None if t is None else t.detach().clone().requires_grad_(t.requires_grad) for t in terms(layer)]
    function = torch.compile(lambda *t: compiled.linear(*t, plain=True), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(function(x, *elsewhere), definition(layer, x))


@quiet
@pytest.mark.parametrize(("rows", "dtype"), [(7, torch.float32), (1025, torch.bfloat16)], ids=str)
def test_what_kernels_were_planned_for_is_still_right_when_they_can_be_used_no_more(rows, dtype):
    """One that was compiled for tf32 runs after that was forbidden: H comes in the splits that were promised."""
    layer, x = make(dtype=torch.float32), torch.randn(rows, 40)
    learning = True
    y = compiled._ByKernels.apply(x, *terms(layer), dtype, 4, learning)
    expected = definition(layer, x)
    grad = torch.randn_like(expected)
    wanted = [layer.S1s, layer.S2s, layer.bias]
    found = [y.float(), *torch.autograd.grad(y, wanted, grad.to(dtype))]
    for value, right in zip(found, [expected, *torch.autograd.grad(expected, wanted, grad)], strict=True):
        assert value.dtype == right.dtype
        assert (value - right).norm() <= (1e-6 if dtype == torch.float32 else 1e-2) * right.norm()


@quiet
def test_sizes_that_change_are_left_to_the_compiler(kernels_win):
    layer = make()
    function = torch.compile(
        lambda x: compiled.linear(x, *terms(layer), plain=True), backend="aot_eager", fullgraph=True, dynamic=True
    )
    for rows in (5, 6, 9):
        x = torch.randn(rows, 40, dtype=torch.float64, requires_grad=True)
        assert_same(function(x), definition(layer, x), [x, *layer.parameters()])
    assert not kernels_win


@quiet
def test_cuda_graphs_of_the_compiler_hold_plain_operations(kernels_win):
    layer, x = make(), torch.randn(7, 40, dtype=torch.float64)
    with torch._inductor.config.patch({"triton.cudagraphs": True}):
        compiled._decided(x, *terms(layer), x.dtype, "auto", "1.0")
    assert not kernels_win
    compiled._decided(x, *terms(layer), x.dtype, "auto", "1.0")
    assert kernels_win


@quiet
def test_transformations_go_through_plain_operations(kernels_win):
    layer, x = make(), torch.randn(3, 7, 40, dtype=torch.float64)

    def function(x):
        return torch.func.vmap(lambda row: compiled.linear(row, *terms(layer), plain=True))(x)

    torch.testing.assert_close(torch.compile(function, backend="aot_eager")(x), definition(layer, x))
    assert not kernels_win


def test_types_that_do_not_fit_together_are_left_to_torch(kernels_win):
    with pytest.raises(RuntimeError, match=r"dtype|same type"):
        compiled.linear(torch.zeros(3, 40), *terms(make()), plain=True)
    assert not kernels_win


@quiet
def test_another_backend_compiles_anew(kernels_win):
    layer, x = make(), torch.randn(7, 40, dtype=torch.float64)
    function = torch.compile(lambda x: compiled.linear(x, *terms(layer), plain=True), backend="eager", fullgraph=True)
    function(x)
    with cuda.backend("products"):
        function(x)
    assert [arguments[-1] for arguments, _ in kernels_win][-1] == "products"
    assert kernels_win[0][0][-1] == "auto"


@quiet
def test_another_type_of_autocast_is_another_graph(kernels_win, request):
    """Also for the compiler's cache on disk, which in torch 2.11 does not tell them apart by itself."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    request.addfinalizer(lambda: torch.set_autocast_enabled("cuda", before[0]))
    request.addfinalizer(lambda: torch.set_autocast_dtype("cuda", before[1]))
    torch.set_autocast_enabled("cuda", True)  # noqa: FBT003
    layer, x = make(dtype=torch.float32), torch.randn(7, 40)
    found = []

    def look(graph, _):
        (call,) = [node for node in graph.graph.nodes if node.op == "call_function"]
        found.append(call.args[6])
        return graph

    for dtype in (torch.bfloat16, torch.float16):
        torch.set_autocast_dtype("cuda", dtype)
        y = torch.compile(lambda x: compiled.linear(x, *terms(layer), plain=True), backend=look, fullgraph=True)(x)
        assert y.dtype == dtype
    assert found == [torch.bfloat16, torch.float16]


@pytest.mark.parametrize(("learns", "learning"), [("S1s", True), ("x", True), (None, False)])
def test_whether_there_is_a_way_back_is_asked_for(kernels_win, learns, learning):
    layer, x = make(), torch.randn(7, 40, dtype=torch.float64, requires_grad=learns == "x")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == learns)
    compiled._decided(x, *terms(layer), x.dtype, "auto", "1.0")
    with torch.no_grad():
        compiled._decided(x, *terms(layer), x.dtype, "auto", "1.0")
    assert [how["learning"] for _, how in kernels_win] == [learning, False]


def test_exports_hold_what_everybody_knows():
    layer = make()
    for strict in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.export.export(layer, (torch.zeros(2, 40, dtype=torch.float64),), strict=strict)
        assert not any("panther" in str(node.target) for node in program.graph.nodes)
    assert not compiled.by_torch_compile()


def test_planned_asks_for_contiguous_and_aligned_tensors(monkeypatch):
    """The same launches as those of a call, so that H has the form that was promised."""
    monkeypatch.setattr(cuda, "_precision", lambda *_: "half")
    monkeypatch.setattr(devices, "device", lambda _: devices.Device(132, 227 << 10, 9))
    kinds = []
    monkeypatch.setattr(cuda, "_prepared", lambda *kind: kinds.append(kind))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    layer, x = make(dtype=torch.bfloat16), torch.randn(7, 40, dtype=torch.bfloat16)
    packed, dtype = layer._packed, torch.bfloat16
    cuda.planned(x, 7, (4, 40, 3), 30, dtype, dtype, dtype, "kernels", learning=True)
    cuda._plan_for(x, packed.A, packed.B, layer.bias, dtype, "kernels", learning=True)
    assert kinds[0] == kinds[1]
