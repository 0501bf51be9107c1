"""The launches of our kernels, with a device and kernels that only take down what they are called with."""

from __future__ import annotations

import contextlib
import itertools
import types

import pytest
import torch

from panther.nn import SKLinear, cuda, launch

NAMES = ("forward_shrink", "forward_expand", "backward_shrink", "backward_expand")


@pytest.fixture
def launched(monkeypatch):
    """What was launched so far: the launch, and of each argument its type or, of a number, its value."""
    seen: list[tuple[launch.Launch, tuple]] = []

    def take_down(self, *arguments):
        seen.append((self, tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in arguments)))

    tl = types.SimpleNamespace(float16="fp16", bfloat16="bf16", float32="fp32")
    constants = ["K", "DTYPE", "PRECISION", "SPLITS", "H_SPLITS", "HAS_BIAS", "STORE", "BM", "R_BR"]
    kernels = {name: types.SimpleNamespace(arg_names=constants, name=name) for name in NAMES}
    monkeypatch.setattr(launch, "triton_kernels", lambda: types.SimpleNamespace(tl=tl, **kernels))
    monkeypatch.setattr(launch, "processors", lambda _: 132)
    monkeypatch.setattr(launch.Launch, "__call__", take_down)
    monkeypatch.setattr(launch, "_STEPS", {})
    monkeypatch.setattr(cuda, "_kernels", lambda *_, **__: True)
    monkeypatch.setattr(cuda, "_on_device", lambda _: contextlib.nullcontext())
    return seen


def run(layer: SKLinear, x: torch.Tensor, dtype: torch.dtype, needs=(True, True, True, True)) -> None:
    packed = layer._packed
    y, H, kept = cuda.forward(x, layer.bias, packed.A, packed.B, dtype)
    needs = (*needs[:3], needs[3] and layer.bias is not None)
    gradients = cuda.backward(torch.empty_like(y), x, H, kept, layer.num_terms, needs, layer.S1s.dtype)
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
    for launched_as, arguments in launched:
        assert first.setdefault(launched_as, arguments) == arguments
    assert len(first) < len(launched), "the second time round finds what the first one made"


def test_two_launches_forward_and_two_backward(launched):
    run(SKLinear(64, 48, 1, 4, dtype=torch.float16), torch.zeros(5, 64, dtype=torch.float16), torch.float16)
    assert [launched_as._kernel.name for launched_as, _ in launched] == list(NAMES)


def test_what_needs_no_gradient_launches_nothing_more(launched):
    layer, x = SKLinear(64, 48, 1, 4, dtype=torch.float16), torch.zeros(5, 64, dtype=torch.float16)
    run(layer, x, torch.float16, (False, False, False, True))
    assert [launched_as._kernel.name for launched_as, _ in launched] == list(NAMES[:3])
    first_backward = launched[-1][0]
    run(layer, x, torch.float16)
    assert first_backward._grid < launched[-2][0]._grid


@pytest.mark.parametrize(
    ("rows", "dtype", "warms"),
    [
        (40, torch.float16, False),
        (40, torch.float32, True),
        (100, torch.float16, True),
        (5000, torch.float16, False),
    ],
)
def test_the_library_is_warmed_once_for_graphs_that_will_hold_products(launched, monkeypatch, rows, dtype, warms):
    taken = []
    for name in ("_products_forward", "_products_backward"):
        plain = getattr(cuda, name)
        monkeypatch.setattr(cuda, name, lambda *a, name=name, plain=plain: taken.append(name) or plain(*a))
    layer = SKLinear(64, 48, 1, 4, dtype=dtype)
    for _ in range(3):
        run(layer, torch.zeros(rows, 64, dtype=dtype), dtype)
    assert taken == ["_products_forward", "_products_forward", "_products_backward"] * warms


def test_prepared_launches_are_few(launched, monkeypatch):
    monkeypatch.setattr(launch, "_MOST_STEPS", 3)
    layer = SKLinear(64, 48, 1, 4, dtype=torch.float16)
    for rows in range(1, 9):
        run(layer, torch.zeros(rows, 64, dtype=torch.float16), torch.float16)
    assert len(launch._STEPS) <= 3
