"""The tables of docs/gpu.md on a training step beside two nn.Linear of the same rank."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from reporting.results import load, provenance, table

RESULTS = ("gpu_pair", "gpu_pair_float32")
TRANSFORMER = ("ours", "kernels", "products", "pair", "dense")


def gpu_pair_source() -> str:
    """Where the figures come from."""
    found = [(name, load(name)) for name in RESULTS]
    lines = [provenance(name, result) for name, result in found if result is not None]
    return "\n".join(lines) if lines else "Not measured yet."


def gpu_pair_transformer() -> str:
    """Steps of a whole transformer, by the clock and on the device."""

    def make(result: dict[str, Any]) -> str:
        rows = []
        for cell in result["transformer"]:
            clock, device = cell["median_ms"], cell["device_ms"]
            sides = (f"{clock[side]:.1f} · {device[side]:.1f}" if side in clock else "" for side in TRANSFORMER)
            rows.append((f"{cell['batch']} × {cell['length']}, {cell['way']}", *sides))
        head = ("batch × tokens", "SKLinear", "by kernels", "by products", "two nn.Linear", "nn.Linear")
        return table(head, rows)

    return _block(make)


def gpu_pair_layers() -> str:
    """How many times as fast as the pair the layers are: geometric mean, smallest, and how many are slower."""

    def make(result: dict[str, Any]) -> str:
        more = load("gpu_pair_float32")
        cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in [*result["layers"], *([] if more is None else more["layers"])]:
            cells.setdefault((row["mode"], row["way"]), []).append(row)
        rows = []
        for (mode, way), found in cells.items():
            ratios = [row["pair_over_ours"] for row in found]
            least = min(found, key=lambda row: row["pair_over_ours"])
            where = (
                f"{'→'.join(map(str, least['shape']))} L{least['num_terms']} k{least['low_rank']}, {least['rows']} rows"
            )
            mean = prod(ratios) ** (1 / len(ratios))
            slower = sum(ratio < 1 for ratio in ratios)
            rows.append((mode, way, len(found), f"{mean:.2f}", f"{min(ratios):.2f} ({where})", slower))
        head = ("computed in", "way", "cells", "times the pair's speed", "the smallest", "slower cells")
        return table(head, rows)

    return _block(make)


def _block(make: Callable[[dict[str, Any]], str]) -> str:
    result = load("gpu_pair")
    return "Not measured yet." if result is None else make(result)


BLOCKS = (gpu_pair_source, gpu_pair_transformer, gpu_pair_layers)
