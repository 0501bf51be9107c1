"""The launches of our kernels, with a device and kernels that only take down what they are called with."""

from __future__ import annotations

import ast
import itertools
import types
from pathlib import Path

import pytest
import torch

from panther.nn import SKLinear
from panther.nn.kernels import cuda, devices, launch, private_names, products, tiles

NAMES = ("forward_shrink", "forward_expand", "backward_shrink", "backward_expand")
SUM = "reduce_splits"
LAYOUT = "lay_out"


def signatures() -> dict[str, list[str]]:
    """The arguments of the kernels, as they stand in the source: triton is not here."""
    source = ast.parse(Path(launch.__file__).with_name("triton_kernels.py").read_text())
    functions = (node for node in source.body if isinstance(node, ast.FunctionDef))
    names = (*NAMES, SUM, LAYOUT)
    return {node.name: [argument.arg for argument in node.args.args] for node in functions if node.name in names}


@pytest.fixture
def launched(monkeypatch):
    """What was launched so far: the launch, and of each tensor its type, shape and strides."""
    seen: list[tuple[launch.Launch, tuple]] = []

    def take_down(self, _, *tensors):
        assert len(tensors) + len(self._rest) == len(self._kernel.arg_names), "the driver takes them by their place"
        seen.append((self, tuple((tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors)))

    tl = types.SimpleNamespace(float16="fp16", bfloat16="bf16", float32="fp32")
    kernels = {name: types.SimpleNamespace(arg_names=names, name=name) for name, names in signatures().items()}
    monkeypatch.setattr(devices, "triton_kernels", lambda: types.SimpleNamespace(tl=tl, **kernels))
    monkeypatch.setattr(devices, "device", lambda _: devices.Device(132, 227 << 10, 9))
    monkeypatch.setattr(launch.Launch, "__call__", take_down)
    monkeypatch.setattr(launch, "_empty", lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype))
    monkeypatch.setattr(launch, "_current_stream", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda, "_precision", lambda _, dtype: "ieee" if dtype == torch.float32 else "half")
    monkeypatch.setattr(cuda, "_current_device", lambda: None)
    monkeypatch.setattr(cuda, "_backend", "kernels")
    monkeypatch.setattr(cuda, "_kinds_used", 0)
    cuda._prepared.cache_clear()
    yield seen
    cuda._prepared.cache_clear()


def run(layer: SKLinear, x: torch.Tensor, dtype: torch.dtype, needs=(True, True, True, True)) -> None:
    packed = layer._packed
    y, H, kept = cuda.forward(x, layer.bias, packed.A, packed.B, dtype)
    needs = (*needs[:3], needs[3] and layer.bias is not None)
    gradients = cuda.backward(torch.empty_like(y), x, H, kept, layer.num_terms, needs)
    wanted = (x, layer.S1s, layer.S2s, layer.bias)
    for gradient, tensor, need in zip(gradients, wanted, needs, strict=True):
        assert (gradient is not None) is need
        if need:
            assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
    assert (y.shape, y.dtype) == ((len(x), layer.out_features), dtype)


def test_what_is_compiled_for_one_kind_of_inputs_is_not_used_for_another(launched):
    half, single = torch.bfloat16, torch.float32
    for _ in range(2):
        for rows, parameters, inputs, computed, bias in itertools.product(
            (8, 1100), (half, single), (half, single), (half, torch.float16), (True, False)
        ):
            layer = SKLinear(64, 48, 1, 4, dtype=parameters, bias=bias)
            run(layer, torch.zeros(rows, 64, dtype=inputs), computed)
            run(layer, torch.zeros(rows, 80, dtype=inputs)[:, :64], computed)
            run(layer, torch.zeros(64, rows, dtype=inputs).t(), computed)
            run(layer, torch.zeros(rows, 64, dtype=inputs), computed, (False, True, True, True))
    first: dict[launch.Launch, tuple] = {}
    for launched_as, tensors in launched:
        assert first.setdefault(launched_as, tensors) == tensors
    assert len(first) < len(launched), "the second time round finds what the first one made"


def test_two_launches_forward_and_two_backward(launched):
    run(SKLinear(64, 48, 1, 4, dtype=torch.float16), torch.zeros(5, 64, dtype=torch.float16), torch.float16)
    assert [launched_as._kernel.name for launched_as, _ in launched] == list(NAMES)


def test_partial_sums_with_many_readers_get_a_reduction_kernel(launched, monkeypatch):
    monkeypatch.setattr(tiles, "SUM_BYTES", 0)
    layer = SKLinear(1024, 1024, 1, 4, dtype=torch.float16)
    run(layer, torch.zeros(5, 1024, dtype=torch.float16), torch.float16)
    names = [launched_as._kernel.name for launched_as, _ in launched]
    assert names == [NAMES[0], SUM, *NAMES[1:3], SUM, NAMES[3]]
    (splits, _), (reduced, _) = [tensors[0][1:] for _, tensors in launched[1:3]]
    assert splits[1:] == reduced[1:] == (5, 8)
    assert splits[0] > reduced[0] == 1
    # who needs the gradient of the bias alone reads none
    launched.clear()
    run(layer, torch.zeros(5, 1024, dtype=torch.float16), torch.float16, (False, False, False, True))
    assert [launched_as._kernel.name for launched_as, _ in launched] == [NAMES[0], SUM, *NAMES[1:3]]


@pytest.mark.parametrize(("learning", "length"), [(True, 1), (False, 2)])
def test_a_reduction_without_a_backward_pass_is_in_place(launched, monkeypatch, learning, length):
    monkeypatch.setattr(tiles, "SUM_BYTES", 0)
    layer = SKLinear(512, 512, 1, 4)
    packed = layer._packed
    _, H, kept = cuda.forward(torch.zeros(5, 512), layer.bias, packed.A, packed.B, torch.float32, learning=learning)
    assert len(H) == kept.plan.H.length == length
    assert [launched_as._kernel.name for launched_as, _ in launched] == [NAMES[0], SUM, NAMES[1]]
    assert launched[2][0]._constants["SPLITS"] == 1


@pytest.mark.parametrize(("learning", "summed"), [(True, False), (False, True)])
def test_tf32_forward_alone_takes_a_launch_more_for_a_longer_sum(launched, monkeypatch, learning, summed):
    """With a backward pass launches count for more: fewer splits, reduced by the consumer kernel."""
    monkeypatch.setattr(cuda, "_precision", lambda *_: "tf32")
    layer = SKLinear(4096, 4096, 2, 64)
    packed = layer._packed
    cuda.forward(torch.zeros(512, 4096), layer.bias, packed.A, packed.B, torch.float32, learning=learning)
    names = [launched_as._kernel.name for launched_as, _ in launched]
    assert names == [NAMES[0], *([SUM] if summed else []), NAMES[1]]


def test_what_needs_no_gradient_launches_nothing_more(launched):
    layer, x = SKLinear(64, 48, 1, 4, dtype=torch.float16), torch.zeros(5, 64, dtype=torch.float16)
    run(layer, x, torch.float16, (False, False, False, True))
    assert [launched_as._kernel.name for launched_as, _ in launched] == list(NAMES[:3])
    first_backward = launched[-1][0]
    run(layer, x, torch.float16)
    assert first_backward._programs < launched[-2][0]._programs


@pytest.mark.parametrize(
    ("rows", "dtype", "warms"),
    [
        (40, torch.float16, False),
        (40, torch.float32, False),
        (100, torch.float32, True),
        (200, torch.float16, True),
        (5000, torch.float16, False),
    ],
)
def test_the_library_is_warmed_once_for_graphs_that_will_hold_products(launched, monkeypatch, rows, dtype, warms):
    taken = []
    for name in ("forward", "backward"):
        plain = getattr(products, name)

        def counted(*arguments, name=name, plain=plain, **named):
            taken.append(name)
            return plain(*arguments, **named)

        monkeypatch.setattr(products, name, counted)
    layer = SKLinear(96, 96, 1, 20, dtype=dtype)
    for _ in range(3):
        run(layer, torch.zeros(rows, 96, dtype=dtype), dtype)
    assert taken == ["forward", "forward", "backward"] * warms


@pytest.mark.parametrize("backend", ["auto", "kernels", "products"])
@pytest.mark.parametrize("device", [devices.Device(108, 163 << 10, 8), devices.Device(58, 99 << 10, 8)])
def test_a_device_that_was_not_measured_takes_kernels_by_request_alone(launched, monkeypatch, backend, device):
    monkeypatch.setattr(devices, "device", lambda _: device)
    monkeypatch.setattr(cuda, "_backend", backend)
    launch._factor_layout.cache_clear()
    assert tiles.kernels_win(5, 512, 512, 256, "half", learning=True, captured=False)
    run(SKLinear(512, 512, 2, 64, dtype=torch.float16), torch.zeros(5, 512, dtype=torch.float16), torch.float16)
    names = [launched_as._kernel.name for launched_as, _ in launched]
    assert names == (list(NAMES) if backend == "kernels" else [])
    assert launch._factor_layout(torch.float16, (4, 512, 64), 512, None, torch.float16, 0) is None
    launch._factor_layout.cache_clear()


def test_a_smaller_device_gets_smaller_tiles(launched, monkeypatch):
    layer, x, taken = SKLinear(4096, 1024, 1, 64, dtype=torch.float16), torch.zeros(32, 4096).half(), []
    for device in (devices.Device(132, 227 << 10, 9), devices.Device(132, 99 << 10, 8)):
        monkeypatch.setattr(devices, "device", lambda _, device=device: device)
        cuda._prepared.cache_clear()
        run(layer, x, torch.float16)
        taken.append([launched_as._constants["BF"] for launched_as, _ in launched if "BF" in launched_as._constants])
        launched.clear()
    assert taken[0][0] > taken[1][0]
    assert all(small <= large for large, small in zip(*taken, strict=True))


def test_what_is_asked_for_again_is_prepared_once(launched):
    layer = SKLinear(64, 48, 1, 4, dtype=torch.float16)
    for rows in (1, 2, 1, 2):
        run(layer, torch.zeros(rows, 64, dtype=torch.float16), torch.float16)
    assert cuda._prepared.cache_info()[:2] == (2, 2)
    assert cuda._prepared.cache_info().maxsize, "shapes that never end take memory that does"


def few_kinds(monkeypatch: pytest.MonkeyPatch, backend: str) -> tuple[SKLinear, torch.Tensor]:
    """A layer and a batch of another length than the only two that get kernels at once."""
    monkeypatch.setattr(cuda, "_backend", backend)
    monkeypatch.setattr(cuda, "FIRST_KINDS", 2)
    monkeypatch.setattr(cuda, "CALLS_BEFORE_COMPILING", 3)
    layer = SKLinear(64, 48, 1, 4, dtype=torch.float16)
    for rows in (1, 2, 1, 2):
        run(layer, torch.zeros(rows, 64, dtype=torch.float16), torch.float16)
    return layer, torch.zeros(3, 64, dtype=torch.float16)


def test_kernels_are_compiled_for_a_further_kind_of_inputs_when_it_was_met_often(launched, monkeypatch):
    layer, x = few_kinds(monkeypatch, "auto")
    assert len(launched) == 4 * len(NAMES)
    for _ in range(3):
        run(layer, x, torch.float16)
    assert len(launched) == 4 * len(NAMES), "rare kinds take products"
    run(layer, x, torch.float16)
    run(layer, x, torch.float16)
    assert len(launched) == 6 * len(NAMES)


def test_kernels_are_compiled_for_a_captured_call_at_once(launched, monkeypatch):
    layer, x = few_kinds(monkeypatch, "auto")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    run(layer, x, torch.float16)
    assert len(launched) == 5 * len(NAMES)


def test_every_kind_of_inputs_gets_kernels_on_request(launched, monkeypatch):
    layer, x = few_kinds(monkeypatch, "kernels")
    run(layer, x, torch.float16)
    assert len(launched) == 5 * len(NAMES)


def test_kernels_are_not_compiled_for_divisors_of_numbers_that_change_with_the_rows():
    # triton is not here: as it stands in the source
    source = Path(launch.__file__).with_name("triton_kernels.py").read_text()
    assert 'VARYING = ("rows", "shrinking", "expanding")' in source
    assert source.count("@triton.jit(do_not_specialize=VARYING)\ndef ") == len(NAMES)


class Launcher:
    """As triton's: Python around a function of C."""

    def __init__(self, launch, scratch: int = 0) -> None:
        self.launch, self.global_scratch_size = launch, scratch

    def __call__(self, x, y, z, stream, function, *arguments):
        memory = b"\0" * self.global_scratch_size if self.global_scratch_size else None
        self.launch(x, y, z, stream, function, 0, memory, *arguments)


class OtherLauncher(Launcher):
    def __call__(self, x, y, z, stream, function, *arguments):
        self.launch((x, y, z), stream, function, arguments)


@pytest.mark.parametrize(
    ("run", "direct"),
    [(Launcher, True), (lambda launch: Launcher(launch, 8), False), (OtherLauncher, False)],
    ids=["triton's", "with memory of its own", "of another form"],
)
def test_a_kernel_is_launched_as_its_launcher_would(run, direct):
    calls: list[tuple] = []
    compiled = types.SimpleNamespace(
        run=run(lambda *arguments: calls.append(arguments)), function="function", packed_metadata="metadata"
    )
    compiled.run(7, 1, 1, "stream", "function", "metadata", None, None, None, "x", 3)
    launcher, between = private_names.launcher(compiled)
    assert len(calls) == 1, "asking launches nothing"
    launcher(7, 1, 1, "stream", *between, "x", 3)
    assert calls[0] == calls[1]
    assert (launcher is compiled.run.launch) is direct


@pytest.mark.parametrize(("bias_dtype", "cast"), [(None, False), (torch.float32, True), (torch.bfloat16, False)])
def test_factors_are_laid_out_in_one_launch(launched, bias_dtype, cast):
    layout = launch.FactorLayout((4, 96, 20), 4000, bias_dtype, torch.bfloat16, 0)
    A, B = torch.zeros(4, 96, 20), torch.zeros(80, 4000)
    bias = None if bias_dtype is None else torch.zeros(4000, dtype=bias_dtype)
    A_side, B_side, bias_cast = layout(A, B, bias)
    assert (A_side.shape, B_side.shape) == ((96, 80), (80, 4000))
    assert A_side.dtype == B_side.dtype == torch.bfloat16
    assert (bias_cast is bias) is not cast
    assert bias_cast is None or bias_cast.dtype == torch.bfloat16
    ((launched_as, _),) = launched
    of_A, of_A_and_B, *_ = launched_as._numbers
    block = launch.LAYOUT_BLOCK
    assert of_A == -(-96 * 80 // block)
    assert of_A_and_B - of_A == -(-80 * 4000 // block)
    assert launched_as._programs - of_A_and_B == (-(-4000 // block) if cast else 0)
