"""Options of a layer, and the layers made of them."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from panther.convert.layers import Place


class Option(Protocol):
    """One way to quantize a layer."""

    @property
    def precision(self) -> str:
        """Name in reports, "int8" or "int4"."""
        ...

    @property
    def alpha(self) -> float | None:
        """Strength of the smoothing; None for formats without smoothing."""
        ...

    @property
    def reason(self) -> str:
        """The format in words."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the quantized weight, without biases."""
        ...

    @property
    def estimate(self) -> float:
        """The relative squared error of the model's outputs, roughly: layers and options are compared by it."""
        ...

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        ...

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:
        """A quantized layer for each module of the unit; a fast approximation if it is not final."""
        ...
