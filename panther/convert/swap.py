"""Reversible replacement of modules in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import nn

from panther.convert.fast_path import keep_zeros, takes_nested_path
from panther.convert.layers import Place


class Swap:
    """Replacement of modules by new ones; `undo` restores the old ones.

    Args:
        model: that contains the places.
        replacements: each place with its new module.
    """

    def __init__(self, model: nn.Module, replacements: Sequence[tuple[Place, nn.Module]]) -> None:
        self._model = model
        self._replacements = replacements
        self._undo: list[Callable[[], object]] = []
        # converted encoders write zeros at padded places, as torch's fast path does
        self.zero_padded: list[str] = []

    def do(self) -> None:
        """Put the new modules in."""
        try:
            for place, new in self._replacements:
                for name in place.names:
                    parent_name, _, child = name.rpartition(".")
                    parent = self._model.get_submodule(parent_name)
                    self._set(parent._modules, child, new)
            self._leave_fused_kernels({id(new) for _, new in self._replacements})
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put the old modules back."""
        while self._undo:
            self._undo.pop()()
        self.zero_padded.clear()

    def __enter__(self) -> Self:
        self.do()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def _leave_fused_kernels(self, new: set[int]) -> None:
        """Keep nn.TransformerEncoderLayer from its fast path of eval mode, which takes the dense weights."""
        concerned: set[int] = set()
        for module in self._model.modules():
            if not isinstance(module, nn.TransformerEncoderLayer):
                continue
            if {id(module.linear1), id(module.linear2), id(module.self_attn)} & new:
                concerned.add(id(module))
                self._set_existing(module, "activation_relu_or_gelu", 0)
        for name, module in self._model.named_modules():
            if isinstance(module, nn.TransformerEncoder) and any(id(layer) in concerned for layer in module.layers):
                handle = keep_zeros(module) if takes_nested_path(module) else None
                if handle is not None:
                    self._undo.append(handle.remove)
                    self.zero_padded.append(name or type(module).__name__)
                self._set_existing(module, "use_nested_tensor", value=False)

    def _set_existing(self, module: nn.Module, attribute: str, value: object) -> None:
        if attribute in module.__dict__:
            self._set(module.__dict__, attribute, value)

    def _set(self, holder: dict[str, Any], key: str, value: object) -> None:
        self._undo.append(partial(holder.__setitem__, key, holder[key]))
        holder[key] = value
