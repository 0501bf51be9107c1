"""The tables of layer latency, exported and in training."""

from __future__ import annotations

from typing import Any

from reporting.blocks import block
from reporting.results import table


def shape_of(cell: dict[str, Any]) -> tuple[int, int, int, int]:
    """in_features, out_features, num_terms and low_rank."""
    return cell["in_features"], cell["out_features"], cell["num_terms"], cell["low_rank"]


def shape_name(cell: dict[str, Any]) -> str:
    d_in, d_out, L, k = shape_of(cell)
    return f"{d_in}→{d_out}, L={L}, k={k}"


def latency_cpu() -> str:
    return block("export", _latency)


def latency_gpu() -> str:
    return block("gpu_export", _latency)


def _latency(result: dict[str, Any]) -> str:
    rows = []
    for cell in result["cells"]:
        for entry in cell["batches"]:
            us = entry["median_us"]
            rows.append(
                (
                    shape_name(cell),
                    entry["batch"],
                    cell["plan"].replace("_", " "),
                    f"{us['ours']:,.1f}",
                    f"{us['dense']:,.1f}",
                    f"{us['term_by_term']:,.1f}",
                    f"{us['dense'] / us['ours']:.2f}×",
                )
            )
    head = ("layer", "batch", "plan chosen", "µs", "µs dense", "µs term by term", "dense : ours")
    return table(head, rows)


def training_step() -> str:
    def make(result: dict[str, Any]) -> str:
        rows = (
            (
                shape_name(row),
                row["batch"],
                row["pass"],
                f"{row['ours']['median_us']:,.0f}",
                f"{row['batched']['median_us']:,.0f}",
                f"{row['dense']['median_us']:,.0f}",
                f"{row['dense_over_ours']:.2f}×",
            )
            for row in result["rows"]
        )
        return table(("layer", "batch", "pass", "µs", "µs batched products", "µs dense", "dense : ours"), rows)

    return block("bench_layer", make)
