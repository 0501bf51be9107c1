"""Bytes and error of every plan that was tried or predicted: a table and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 400, 64, 48, 24
_CONSOLE = 100


@dataclass(frozen=True)
class Point:
    """One plan.

    Attributes:
        bytes: bytes of the model.
        predicted_error: ‖y - ŷ‖ / ‖y‖ of its outputs, predicted from the moments.
        output_error: the same, measured on the calibration inputs; None if only predicted.
        output_cosine: the mean cosine between the outputs there; None if only predicted.
        metric: the caller's metric; None without one, and for plans that were only predicted.
    """

    bytes: int
    predicted_error: float
    output_error: float | None = None
    output_cosine: float | None = None
    metric: float | None = None

    @property
    def error(self) -> float:
        """The measured error, or the predicted one if not measured."""
        return self.predicted_error if self.output_error is None else self.output_error


@dataclass(frozen=True)
class Curve:
    """Error against bytes of the models tried; ``print(curve)`` shows the table, a notebook the picture.

    Attributes:
        points: the smallest first.
        chosen: index of the chosen plan.
    """

    points: tuple[Point, ...]
    chosen: int

    def thinned(self, count: int) -> Curve:
        """At most count of the points: the chosen one, then measured ones, then predicted ones, evenly spread.

        Other points than the chosen one need a finite error.
        """
        usable = [i for i, point in enumerate(self.points) if i != self.chosen and math.isfinite(point.error)]
        measured = [i for i in usable if self.points[i].output_error is not None]
        predicted = [i for i in usable if self.points[i].output_error is None]
        kept = _spread(measured, count - 1)
        kept = sorted([self.chosen, *kept, *_spread(predicted, count - 1 - len(kept))])
        return Curve(tuple(self.points[i] for i in kept), kept.index(self.chosen))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        metric = any(point.metric is not None for point in self.points)
        table = Table(title="Bytes of the model and error of its outputs", title_justify="left")
        for heading in ("", "bytes", "predicted error", "measured error", "cosine", *(["metric"] if metric else [])):
            table.add_column(heading, justify="right")
        for index, point in enumerate(self.points):
            cells = [
                "chosen" if index == self.chosen else "",
                f"{point.bytes:,}",
                f"{point.predicted_error:.4f}",
                "" if point.output_error is None else f"{point.output_error:.4f}",
                "" if point.output_cosine is None else f"{point.output_cosine:.5f}",
            ]
            if metric:
                cells.append("" if point.metric is None else f"{point.metric:.4g}")
            table.add_row(*cells)
        yield table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_CONSOLE, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    def save(self, path: str | Path) -> Path:
        """Write the picture as an SVG file.

        Raises:
            ValueError: the path does not end in .svg.
        """
        path = Path(path)
        if path.suffix != ".svg":
            raise ValueError(f"path ({path}) must end in .svg")
        path.write_text(self.svg(), encoding="utf-8")
        return path

    def svg(self) -> str:
        """The picture: error on a logarithmic scale over bytes; rings are predicted models."""
        shown = [(point, index) for index, point in enumerate(self.points) if 0 < point.error < math.inf]
        axes = _Axes([point.bytes for point, _ in shown], [point.error for point, _ in shown])
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            'font-family="sans-serif" font-size="12">',
            "<title>Bytes of the model and error of its outputs</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
            *axes.lines(),
        ]
        for point, index in shown:
            x, y = axes.place(point.bytes, point.error)
            kind = "predicted" if point.output_error is None else "measured"
            radius, fill = (6, "#c2410c") if index == self.chosen else (4, "#0f766e" if kind == "measured" else "#fff")
            said = escape(f"{point.bytes:,} bytes, {kind} error {point.error:.4f}")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}" stroke="#0f766e"><title>{said}</title>'
                "</circle>"
            )
        return "\n".join([*parts, "</svg>"])

    def _repr_svg_(self) -> str:
        return self.svg()


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """Spread count picks over the indices, with the first and the last if count is two or more."""
    if len(indices) <= count:
        return list(indices)
    last = len(indices) - 1
    return [indices[round(last * i / max(count - 1, 1))] for i in range(count)]


class _Axes:
    """Maps bytes and errors to pixels."""

    def __init__(self, bytes_: Sequence[int], errors: Sequence[float]) -> None:
        self._megabytes = max(bytes_, default=1) / 1e6
        low, high = min(errors, default=0.01), max(errors, default=0.1)
        self._low, self._high = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)

    def place(self, bytes_: float, error: float) -> tuple[float, float]:
        """Pixel position of bytes and an error."""
        x = _LEFT + bytes_ / 1e6 / self._megabytes * (_WIDTH - _LEFT - 24)
        share = (math.log10(error) - self._low) / max(self._high - self._low, 1)
        return x, _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    def lines(self) -> list[str]:
        """Grid, ticks and titles."""
        found = []
        for power in range(self._low, self._high + 1):
            _, y = self.place(0, 10.0**power)
            found.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 24}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            found.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for quarter in range(5):
            megabytes = self._megabytes * quarter / 4
            x, y = self.place(megabytes * 1e6, 10.0**self._low)
            found.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y:.1f}" stroke="#eee"/>')
            found.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{megabytes:.3g}</text>')
        found.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">megabytes of the model</text>')
        found.append(f'<text x="{_LEFT - 48}" y="16">error of the outputs</text>')
        return found
