"""Replacing modules in a model, so that it can be taken back whole."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import nn

from panther.convert.units import Place


class Swap:
    """New modules in the places of old ones; `undo` puts everything back as it was.

    Args:
        model: that contains the places.
        replacements: each place with what is to stand there.
    """

    def __init__(self, model: nn.Module, replacements: Sequence[tuple[Place, nn.Module]]) -> None:
        self._model = model
        self._replacements = replacements
        self._undo: list[tuple[Any, str, Any]] = []

    def do(self) -> None:
        """Put the new modules in."""
        try:
            for place, new in self._replacements:
                for name in place.names:
                    parent_name, _, child = name.rpartition(".")
                    parent = self._model.get_submodule(parent_name)
                    self._undo.append((parent._modules, child, parent._modules[child]))
                    parent._modules[child] = new
            self._leave_fused_kernels({id(new) for _, new in self._replacements})
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put the old modules back."""
        while self._undo:
            holder, key, old = self._undo.pop()
            holder[key] = old

    def __enter__(self) -> Self:
        self.do()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def _leave_fused_kernels(self, new: set[int]) -> None:
        """Keep nn.TransformerEncoderLayer from its fast path of eval mode, which takes the dense weights."""
        concerned: set[int] = set()
        for module in self._model.modules():
            if isinstance(module, nn.TransformerEncoderLayer) and {id(module.linear1), id(module.linear2)} & new:
                concerned.add(id(module))
                self._set(module, "activation_relu_or_gelu", 0)
        for module in self._model.modules():
            if isinstance(module, nn.TransformerEncoder) and any(id(layer) in concerned for layer in module.layers):
                self._set(module, "use_nested_tensor", value=False)

    def _set(self, module: nn.Module, attribute: str, value: object) -> None:
        if attribute in module.__dict__:
            self._undo.append((module.__dict__, attribute, module.__dict__[attribute]))
            module.__dict__[attribute] = value
