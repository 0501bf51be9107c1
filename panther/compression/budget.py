"""The one budget of a compression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Budget:
    """The budget: exactly one of bytes, error, speed and a metric.

    Attributes:
        max_bytes: of the whole model's parameters and buffers.
        max_error: ‖y - ŷ‖ / ‖y‖ of the outputs on the calibration inputs.
        speedup: of the exported file over the original's.
        metric, at_least: a function of the model, and its smallest accepted value.

    Raises:
        ValueError: none is given, more than one, or one that is out of range.
    """

    max_bytes: int | None = None
    max_error: float | None = None
    speedup: float | None = None
    metric: Metric | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("max_bytes", "max_error", "speedup", "metric") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of max_bytes, max_error, speedup and metric; given: {', '.join(given) or 'none'}"
            )
        if (self.metric is None) != (self.at_least is None):
            raise ValueError("metric and at_least go together: at_least is the smallest value that metric may return")
        if self.max_bytes is not None and (isinstance(self.max_bytes, bool) or self.max_bytes < 1):
            raise ValueError(f"max_bytes ({self.max_bytes}) must be at least 1")
        if self.max_error is not None and not 0 < self.max_error < math.inf:
            raise ValueError(f"max_error ({self.max_error}) must be positive and finite")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise ValueError(f"speedup ({self.speedup}) must be above 1 and finite")
        if self.metric is not None and not callable(self.metric):
            raise ValueError(f"metric ({self.metric!r}) must be a function that takes the model and returns a number")
        if self.at_least is not None and not math.isfinite(self.at_least):
            raise ValueError(f"at_least ({self.at_least}) must be finite")

    def __str__(self) -> str:
        """The budget in words."""
        if self.max_bytes is not None:
            return f"at most {self.max_bytes:,} bytes"
        if self.max_error is not None:
            return f"error of the outputs at most {self.max_error:g}"
        if self.speedup is not None:
            return f"at least {self.speedup:g} times as fast"
        return f"metric at least {self.at_least:g}"
