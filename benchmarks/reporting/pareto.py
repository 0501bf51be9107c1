"""Accuracy against bytes and against latency, of every side of bench_compress.py: ours beside the rivals by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reporting.labels import label

Side = Mapping[str, Any]


class Family(NamedTuple):
    """Sides that are drawn alike."""

    name: str
    colour: str
    marker: str
    belongs: Callable[[str], bool]


class Panel(NamedTuple):
    """One pair of axes: the title of the horizontal one, its unit, and the cost of a side in that unit."""

    title: str
    unit: str
    cost: Callable[[Side], float]


def _begins(*words: str) -> Callable[[str], bool]:
    return lambda side: side.startswith(words)


COMPRESS = Family("panther: compress", "#962D00", "*", _begins("compress"))
QUANTIZE = Family("panther: quantize_", "#C24E00", "o", lambda side: side.split(",")[0] == "quantize_")
_ONNXRUNTIME = _begins("quantize_dynamic", "quantize_static", "MatMulNBits", "float16")
FAMILIES = (
    COMPRESS,
    QUANTIZE,
    Family("onnxruntime", "#0072B2", "s", _ONNXRUNTIME),
    Family("GPTQ, SVD and others", "#00785A", "^", _begins("")),
)
BASE = "float32"
_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
# smaller distances are drawn here: float16 would otherwise take half of the axis
_LEAST = 1e-5


def family(side: str) -> Family:
    """The maker of a side, by its name."""
    return next(one for one in FAMILIES if one.belongs(side))


def ours(side: str) -> bool:
    return family(side) in (COMPRESS, QUANTIZE)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The sides that no other beats in both: (cost, accuracy), in the order of the cost."""
    kept: list[str] = []
    best = -math.inf
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            kept.append(name)
            best = accuracy
    return kept


def nines(cosine: float) -> float:
    """-log10(1 - cosine): 2 for 0.99, 3 for 0.999."""
    return -math.log10(max(1 - cosine, _LEAST))


def _segment(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Bbox:
    """The box of a line, in pixels."""
    return Bbox(axes.transData.transform([start, end])).padded(1)


def _draw(axes: Axes, sides: Mapping[str, Side], panel: Panel) -> None:
    costs = {name: panel.cost(side) for name, side in sides.items()}
    points = {name: (costs[name], nines(side["cosine"])) for name, side in sides.items() if name != BASE}
    for name, (x, y) in points.items():
        found = family(name)
        axes.plot(x, y, found.marker, color=found.colour, markersize=9 if found is COMPRESS else 6, zorder=3)
    best = [points[name] for name in front(points)]
    corners = [best[0], *(corner for before, after in pairwise(best) for corner in ((after[0], before[1]), after))]
    axes.plot(*zip(*corners, strict=True), color="#999999", linewidth=1, zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(min(costs.values()) / 1.25, max(costs.values()) * 1.35)
    low, high = (limit(y for _, y in points.values()) for limit in (min, max))
    room = 0.13 * max(high - low, 0.1)
    axes.set_ylim(low - room, high + room)
    axes.axvline(costs[BASE], color="#555555", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    original = axes.annotate(
        f"{BASE}, {costs[BASE]:.3g} {panel.unit}", (costs[BASE], axes.get_ylim()[0]), xytext=(-4, 4),
        textcoords="offset points", fontsize=8.5, color="#555555", ha="right", va="bottom", rotation=90,
    )  # fmt: skip
    axes.set_xlabel(panel.title)
    axes.set_ylabel("cosine to the original's embeddings")
    axes.yaxis.set_major_locator(FixedLocator([nines(tick) for tick in _TICKS]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{'≥ ' if value >= nines(1) else ''}{1 - 10**-value:.6g}")
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    base = [(costs[BASE], y) for y in axes.get_ylim()]
    taken = [
        original.get_window_extent(),
        *(_segment(axes, *pair) for pair in ((base[0], base[1]), *pairwise(corners))),
    ]
    label(axes, [(x, y, name, family(name).colour) for name, (x, y) in points.items()], 8.5, taken)


def _legend(axes: Axes, sides: Mapping[str, Side]) -> None:
    seen = {family(name).name for name in sides if name != BASE}
    handles = [
        Line2D([], [], color=one.colour, marker=one.marker, linestyle="", markersize=6, label=one.name)
        for one in FAMILIES
        if one.name in seen
    ]
    handles.append(Line2D([], [], color="#999999", linewidth=1, label="Pareto front"))
    axes.legend(
        handles=handles, frameon=False, fontsize=8, ncols=len(handles), loc="lower left",
        bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.1, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def _figure(result: Mapping[str, Any], *panels: Panel) -> Figure:
    height = 0.5 + 4.9 * len(panels)
    figure, grid = plt.subplots(len(panels), 1, figsize=(9, height), squeeze=False)
    figure.subplots_adjust(left=0.105, right=0.985, top=1 - 0.34 / height, bottom=0.5 / height, hspace=0.14)
    _legend(grid[0, 0], result["sides"])
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        _draw(axes, result["sides"], panel)
    return figure


def bytes_of_the_file(results: dict[str, Any]) -> Figure:
    """Cosine against the bytes of the model file."""
    title = "MB of the model file, log scale; better: further up and to the left"
    return _figure(results["compress"], Panel(title, "MB", lambda side: side["file_bytes"] / 1e6))


def bytes_of_the_layers(results: dict[str, Any]) -> Figure:
    """Cosine against the bytes of the linear layers: embeddings, which some rivals leave in float32, do not count."""
    title = "MB of the linear layers, log scale; better: further up and to the left"
    return _figure(results["compress"], Panel(title, "MB", lambda side: side["linear_bytes"] / 1e6))


def latency(results: dict[str, Any]) -> Figure:
    """Cosine against latency, for one text and for a batch of 16."""
    threads, tokens = results["compress"]["environment"]["threads"], results["compress"]["tokens"]
    where = f"{'one CPU thread' if threads == 1 else f'{threads} CPU threads'}, log scale"

    def panel(size: int) -> Panel:
        texts = "1 text" if size == 1 else f"a batch of {size} texts"
        title = f"median ms for {texts} of {tokens} tokens, {where}"
        return Panel(title, "ms", lambda side: side[f"median_ms_{size}"])

    return _figure(results["compress"], panel(1), panel(16))


PICTURES: dict[str, tuple[Callable[[dict[str, Any]], Figure], tuple[str, ...]]] = {
    "accuracy-over-bytes": (bytes_of_the_file, ("compress",)),
    "accuracy-over-linear-bytes": (bytes_of_the_layers, ("compress",)),
    "accuracy-over-latency": (latency, ("compress",)),
}
"""Name: the function that draws it, and the results that it needs."""
