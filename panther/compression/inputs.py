"""Calibration inputs in the form that the export and onnxruntime need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from panther.convert.errors import ConversionError
from panther.convert.forward import Forward, arguments_of
from panther.export.graph.inputs import positional_names

# rows of the calibration inputs for the export's check
_ROWS = 16


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model by the names of its forward.

    Attributes:
        batches: for each batch the tensors by name.
        by_name: whether forward takes them by name; by position when False.
    """

    batches: Sequence[Mapping[str, Tensor]]
    by_name: bool

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> Inputs:
        """Read the batches as `panther.convert.forward.call` does.

        Raises:
            ConversionError: they are no plain tensors, or forward calls the model in another way.
        """
        if forward is not None:
            raise ConversionError("a custom forward calls the model differently than the file; give example_inputs")
        found, by_name = [], False
        for batch in batches:
            positional, named = arguments_of(model, batch)
            by_name = bool(named)
            given = named if named else dict(zip(positional_names(model, len(positional)), positional, strict=True))
            if not given or not all(isinstance(value, Tensor) and value.dim() for value in given.values()):
                raise ConversionError("the calibration inputs are not plain tensors with rows; give example_inputs")
            found.append(given)
        return cls(found, by_name)

    def examples(self, rows: int = _ROWS) -> Sequence[Tensor] | Mapping[str, Tensor]:
        """The first rows of the first batch, or fewer if it has no more."""
        first = {name: tensor[:rows] for name, tensor in self.batches[0].items()}
        return first if self.by_name else list(first.values())

    def repeated(self, rows: int) -> dict[str, npt.NDArray[Any]]:
        """Exactly this many rows of the first batch, repeated if it has fewer."""
        return {
            name: np.take(tensor.numpy(), np.arange(rows) % len(tensor), axis=0)
            for name, tensor in self.batches[0].items()
        }

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Axis 0, and every axis whose size differs between batches; axes that vary together have one name."""
        names: dict[tuple[int, ...], str] = {}
        found: dict[str, dict[int, str]] = {}
        for name, tensor in self.batches[0].items():
            found[name] = {0: "batch"}
            for axis in range(1, tensor.dim()):
                sizes = tuple(batch[name].shape[axis] for batch in self.batches)
                if len(set(sizes)) > 1:
                    found[name][axis] = names.setdefault(sizes, f"size_{len(names) + 1}")
        return found
