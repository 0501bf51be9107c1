"""A model of float32 computed in float64 in place of a copy, a large one layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

# bytes of a model's tensors above which its layers are doubled one at a time
_LARGE_BYTES = 2**28


def ways_to_double(model: nn.Module) -> list[Callable[[nn.Module], AbstractContextManager[None]]]:
    """Contexts in which a model computes in float64, to be tried in this order; its tensors are the same after them.

    Layer by layer a model fails with a RuntimeError that reads the weight of a layer without calling it.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    return [doubled_by_layer, doubled] if size >= _LARGE_BYTES else [doubled]


@contextmanager
def doubled(model: nn.Module) -> Iterator[None]:
    """All of a model in float64."""
    held = [_Held(module) for module in model.modules()]
    try:
        model.double()
        yield
    finally:
        for each in held:
            each.put_back()
        # changes no tensor, but layers derive their cached tensors again
        model.float()


@contextmanager
def doubled_by_layer(model: nn.Module) -> Iterator[None]:
    """Each layer in float64 while it computes, and no longer."""
    calls: dict[nn.Module, list[_Held]] = {}

    def enter(module: nn.Module, _: Any) -> None:
        held = calls.setdefault(module, [])
        held.append(_Held(module))
        if len(held) == 1:
            module._apply(_double, recurse=False)  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, *_: Any) -> None:
        held = calls[module].pop()
        if not calls[module]:
            held.put_back()
            module._apply(_same, recurse=False)  # type: ignore[no-untyped-call]

    layers = [module for module in model.modules() if _Held(module).any]
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Held:
    """The tensors that a module holds itself, to be put back."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = module._buffers
        self._parameters = [
            (parameter, parameter.data) for parameter in module._parameters.values() if parameter is not None
        ]
        self._values = dict(self._buffers)

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._parameters or self._values)

    def put_back(self) -> None:
        """Undo what was done to them."""
        for parameter, data in self._parameters:
            parameter.data = data
        self._buffers.update(self._values)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor
