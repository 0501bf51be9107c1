"""The pictures of the documents: SVG, the same bytes for the same results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reporting.pareto import PICTURES as PARETO
from reporting.results import load

STYLE = {
    "svg.hashsalt": "panther-sketch",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
# Okabe and Ito's palette for the color-blind; markers differ too, so that no color is needed
SERIES = {
    "sketched": ("#D55E00", "o", "sketched"),
    "low rank": ("#0072B2", "s", "low rank, both factors learned"),
    "pruned": ("#009E73", "^", "pruned by magnitude, trained on"),
    "dense": ("#777777", "D", "dense, narrower"),
}


def accuracy(results: dict[str, Any]) -> Figure:
    """Accuracy against what is stored (above) and against bytes in a file (below), for each data set."""
    summary = [row for row in results["accuracy"]["summary"] if row["bits"] == 32]
    data_sets = list(dict.fromkeys(row["data"] for row in summary))
    figure, grid = plt.subplots(2, len(data_sets), figsize=(9, 6.2), layout="constrained", squeeze=False)
    sizes = (
        ("stored", "values stored, learnable and fixed"),
        ("file_bytes", "bytes in a file; a fixed sign is one bit"),
    )
    for column, data in enumerate(data_sets):
        for line, (key, label) in enumerate(sizes):
            axes: Axes = grid[line][column]
            for method, (colour, marker, name) in SERIES.items():
                rows = sorted((r for r in summary if (r["data"], r["method"]) == (data, method)), key=lambda r: r[key])
                means = [100 * row["accuracy_mean"] for row in rows]
                spread = [
                    [mean - 100 * row["accuracy_min"] for row, mean in zip(rows, means, strict=True)],
                    [100 * row["accuracy_max"] - mean for row, mean in zip(rows, means, strict=True)],
                ]
                axes.errorbar(
                    [row[key] for row in rows], means, spread, color=colour, marker=marker, markersize=4.5,
                    linewidth=1.2, elinewidth=0.6, capsize=1.5, label=name,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.set_ylim(88 if data == "digits" else 92, 99)
            axes.set_ylabel("held-out accuracy, %")
            axes.set_title(data, loc="left", fontweight="bold")
    grid[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def latency(results: dict[str, Any]) -> Figure:
    """Microseconds of a layer against the bytes of its file: each sketched layer beside its dense twin."""
    figure, grid = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained", sharey=True)
    cells = results["export"]["cells"]
    batches = [entry["batch"] for entry in cells[0]["batches"]]
    for axes, index in zip(grid, (0, len(batches) - 1), strict=True):
        for position, cell in enumerate(cells):
            us, size = cell["batches"][index]["median_us"], cell["file_bytes"]
            ours, dense = (size["ours"] / 1e6, us["ours"]), (size["dense"] / 1e6, us["dense"])
            axes.plot(*zip(dense, ours, strict=True), color="#bbbbbb", linewidth=0.8, zorder=1)
            first = position == 0
            axes.plot(*dense, "D", color="#777777", markersize=5, label="dense" if first else None)
            axes.plot(*ours, "o", color="#D55E00", markersize=5.5, label="sketched, as exported" if first else None)
            d_in, d_out, L, k = (cell[key] for key in ("in_features", "out_features", "num_terms", "low_rank"))
            if d_in >= 2048:
                text = f"{d_in}→{d_out}, L={L}, k={k}"
                axes.annotate(text, ours, xytext=(5, -9), textcoords="offset points", fontsize=6.5, color="#555555")
        small = min((cell["file_bytes"]["ours"] / 1e6, cell["batches"][index]["median_us"]["ours"]) for cell in cells)
        axes.annotate(
            "784 to 1024 wide", small, xytext=(0, -10), textcoords="offset points", fontsize=6.5, color="#555555"
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.08)
        axes.set_xlabel("MB of the model file")
        rows = batches[index]
        axes.set_title(f"{rows} row{'s' if rows > 1 else ''} at a time", loc="left", fontweight="bold")
    grid[0].set_ylabel("µs, onnxruntime, one CPU thread")
    grid[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def savings(results: dict[str, Any]) -> Figure:
    """The layers of the shipped model: parameters, and bytes on disk, each above its dense twin's."""
    layers = results["savings"]["layers"]
    figure, (parameters, disk) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    names = []
    for position, layer in enumerate(layers):
        count, y = layer["parameters"], 3 * position
        names += [(y, f"{layer['name']}, dense"), (y + 1, f"{layer['name']}, sketched")]
        parameters.barh(y, count["dense"], color="#999999", height=0.85)
        parameters.barh(
            y + 1, count["learnable"], color="#D55E00", height=0.85, label=None if position else "learnable"
        )
        parameters.barh(
            y + 1, count["fixed"], left=count["learnable"], color="#F4C7A5", height=0.85, hatch="///",
            edgecolor="white", linewidth=0, label=None if position else "fixed",
        )  # fmt: skip
        disk.barh(y, 4 * count["dense"] / 1e6, color="#999999", height=0.85)
        disk.barh(y + 1, 4 * count["learnable"] / 1e6, color="#D55E00", height=0.85)
        disk.barh(
            y + 1, count["fixed"] / 8 / 1e6, left=4 * count["learnable"] / 1e6, color="#F4C7A5", height=0.85,
            hatch="///", edgecolor="white", linewidth=0,
        )  # fmt: skip
    for axes, title in ((parameters, "parameters"), (disk, "MB on disk, a fixed sign at one bit")):
        axes.set_yticks([y for y, _ in names], [name for _, name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_title(title, loc="left", fontweight="bold")
    parameters.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
    parameters.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


PICTURES: dict[str, tuple[Callable[[dict[str, Any]], Figure], tuple[str, ...]]] = {
    "accuracy": (accuracy, ("accuracy",)),
    "latency": (latency, ("export",)),
    "savings": (savings, ("savings",)),
    **PARETO,
}
"""Name: what draws it, and the results that it needs."""


def draw(name: str, folder: Path) -> Path:
    """Write one picture; the bytes depend on the results and on matplotlib's version alone.

    Raises:
        FileNotFoundError: a result that it needs is missing.
    """
    make, needed = PICTURES[name]
    results = {key: load(key) for key in needed}
    missing = [key for key, found in results.items() if found is None]
    if missing:
        raise FileNotFoundError(f"{name}: there is no benchmarks/results/{missing[0]}.json")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    with mpl.rc_context(STYLE):
        figure = make(results)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    # remove the trailing blanks that matplotlib leaves
    path.write_text("\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines()) + "\n", encoding="utf-8")
    return path
