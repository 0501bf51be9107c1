"""A block of a document: a table, and the result and the command that it comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reporting.results import load, provenance, table

COMMAND = {
    "ablation": "bench_ablation.py",
    "accuracy": "bench_accuracy.py",
    "architectures": "bench_architectures.py",
    "bench_layer": "bench_layer.py --out benchmarks/results/bench_layer.json",
    "compress": "bench_compress.py --out benchmarks/results/compress.json",
    "compress_avx2": "bench_avx2.py --files FILES --out benchmarks/results/compress_avx2.json",
    "conversion": "bench_conversion.py --out benchmarks/results/conversion.json",
    "export": "bench_export.py",
    "foreign": "bench_foreign.py",
    "gpu_export": "gpu/bench_export.py",
    "grpc": "bench_grpc.py",
    "overload": "bench_overload.py",
    "profile": "profile_serving.py --output benchmarks/results/profile.json",
    "recipe": "bench_recipe.py",
    "regression": "bench_regression.py --base cd4ac48",
    "reload": "bench_reload.py",
    "savings": "bench_savings.py",
    "scaling": "bench_scaling.py",
    "serving": "bench_serving.py",
    "start": "bench_start.py",
}


def block(name: str, make: Callable[[dict[str, Any]], str]) -> str:
    """A table and where it comes from, or how it would be measured."""
    result = load(name)
    if result is None:
        return not_measured(name)
    return f"{make(result)}\n\n{provenance(name, result)} Again: {_command(name)}."


def not_measured(name: str) -> str:
    """What stands where a result is missing."""
    return f"Not measured here yet: {_command(name)}."


def rules(result: dict[str, Any]) -> str:
    """The figures that must be reached, as a table."""
    rows = (
        (item["what"], item["value"], item["rule"], "yes" if item["reached"] else "**no**")
        for item in result["must_reach"]
    )
    return table(("what must be reached", "measured", "rule", "reached"), rows)


def _command(name: str) -> str:
    return f"`python benchmarks/{COMMAND[name]}`"
