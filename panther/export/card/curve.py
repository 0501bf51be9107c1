"""The compression curve of a model card: bytes and error of the models that a compression considered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

# the contract of docs/model-card.schema.json
MAX_POINTS = 32


@dataclass(frozen=True)
class CurvePoint:
    """One model of the curve.

    Attributes:
        bytes: bytes of parameters and buffers.
        error: ‖y - ŷ‖ / ‖y‖ of the outputs against the original's.
        measured: whether the error was measured or predicted.
        chosen: whether this is the model in the file.
        metric: the caller's metric of this model, higher is better; None without one.
    """

    bytes: int
    error: float
    measured: bool
    chosen: bool = False
    metric: float | None = None

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"bytes ({self.bytes}) of a curve point must be at least 0")
        if not 0 <= self.error < math.inf:
            raise ValueError(f"error ({self.error}) of a curve point must be finite and at least 0")
        if self.metric is not None and not math.isfinite(self.metric):
            raise ValueError(f"metric ({self.metric}) of a curve point must be finite, or None")


@dataclass(frozen=True)
class CompressionCurve:
    """Bytes against error of the models that a compression considered.

    Attributes:
        budget: the budget in words.
        original_bytes: bytes of parameters and buffers of the original.
        points: at most `MAX_POINTS`, the smallest model first; exactly one is chosen.
        original_metric: the caller's metric of the original; None without one.
    """

    budget: str
    original_bytes: int
    points: tuple[CurvePoint, ...]
    original_metric: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MAX_POINTS:
            raise ValueError(f"points ({len(self.points)}) of a compression curve must be 1 to {MAX_POINTS}")
        chosen = sum(point.chosen for point in self.points)
        if chosen != 1:
            raise ValueError(f"chosen ({chosen} points) of a compression curve must mark exactly one point")


def curve_table(curve: dict[str, Any]) -> Table:
    """The compression curve of a card: bytes, error, and metric if the caller gave one, with the chosen model marked.

    Args:
        curve: The field ``compression_curve`` of the card.
    """
    has_metric = any(point.get("metric") is not None for point in curve["points"])
    original = f"compression curve for {curve['budget']}; the original has {curve['original_bytes']:,} bytes"
    if curve.get("original_metric") is not None:
        original += f" and metric {curve['original_metric']:.4g}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=original, caption_justify="left")
    for heading in ("bytes", "error", *(["metric"] if has_metric else [])):
        table.add_column(heading, justify="right")
    table.add_column("curve")
    for point in curve["points"]:
        metric = point.get("metric")
        table.add_row(
            f"{point['bytes']:,}",
            f"{point['error']:.4f}",
            *([("" if metric is None else f"{metric:.4g}")] if has_metric else []),
            ("measured" if point["measured"] else "predicted") + (", chosen" if point["chosen"] else ""),
        )
    return table
