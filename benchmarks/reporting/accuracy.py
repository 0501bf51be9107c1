"""Accuracy against size: the tables of networks that were trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reporting.blocks import block
from reporting.results import percent, table

# bits of an unquantized value
_WHOLE_BITS = 32
# budgets for which one network of each method is chosen
_BUDGETS_KB = {"digits": (10, 15, 20, 30, 50, 90, 150, 300), "breast cancer": (1, 2, 5, 15, 30)}


def accuracy_digits() -> str:
    return block("accuracy", lambda result: _accuracy(result, "digits"))


def accuracy_table() -> str:
    return block("accuracy", lambda result: _accuracy(result, "breast cancer"))


def accuracy_bits() -> str:
    """The best network of each method for a file of so many kilobytes, whatever its width, rank and bits."""

    def make(result: dict[str, Any]) -> str:
        methods = tuple(dict.fromkeys(row["method"] for row in result["summary"]))
        rows = []
        for data, budgets in _BUDGETS_KB.items():
            for kilobytes in budgets:
                cells = [_best(result["summary"], data, method, 1000 * kilobytes) for method in methods]
                rows.append((data, f"{kilobytes:g}", *cells))
        return table(("data", "kB in a file", *methods), rows)

    return block("accuracy", make)


def _best(summary: Sequence[dict[str, Any]], data: str, method: str, limit: float) -> str:
    fits = [row for row in summary if (row["data"], row["method"]) == (data, method) and row["file_bytes"] <= limit]
    if not fits:
        return ""
    best = max(fits, key=lambda row: row["accuracy_mean"])
    return f"{percent(best['accuracy_mean'])} ({best['setting'].removeprefix('as ')}, {best['bits']} bits)"


def _accuracy(result: dict[str, Any], data: str) -> str:
    whole = (row for row in result["summary"] if row["data"] == data and row["bits"] == _WHOLE_BITS)
    rows = sorted(whole, key=lambda row: row["file_bytes"])
    return table(
        ("network", "learnable", "fixed", "stored", "kB in a file", "accuracy %", "lowest to highest"),
        (
            (
                f"{row['method']}, {row['setting']}",
                f"{row['learnable']:,}",
                f"{row['fixed']:,}",
                f"{row['stored']:,}",
                f"{row['file_bytes'] / 1000:,.1f}",
                percent(row["accuracy_mean"]),
                f"{percent(row['accuracy_min'])} to {percent(row['accuracy_max'])}",
            )
            for row in rows
        ),
    )
