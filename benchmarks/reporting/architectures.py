"""The table of architectures: the result of each step for each family."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from reporting.results import table

# names of modules in a reason
_NAMES = re.compile(r" \([\w.]+\)|(?<=that of) [\w.]+(?=,)|; the weight of .*")
_HEAD = (
    "family",
    "result",
    "reach",
    "change of outputs",
    "file",
    "file against torch",
    "varies",
    "other sizes",
    "served",
)


def matrix(result: dict[str, Any]) -> str:
    """A table for each group of families."""
    parts = []
    for group in dict.fromkeys(row["group"] for row in result["families"]):
        rows = [_row(row) for row in result["families"] if row["group"] == group]
        parts.append(f"**{group.capitalize()}**\n\n{table(_HEAD, rows, numbers=False)}")
    return "\n\n".join([summary(result), *parts, reasons(result)])


def summary(result: dict[str, Any]) -> str:
    """How many families there are, and what became of them."""
    families = result["families"]
    count = {kind: sum(row["status"] == kind for row in families) for kind in ("works", "stays dense", "refused")}
    worst = max(row[key] for row in families for key in ("parity", "other_shape", "served") if row[key] is not None)
    return (
        f"{len(families)} families. Converted and served: {count['works']}. "
        f"Served as they are: {count['stays dense']}. Refused: {count['refused']}. "
        f"The largest difference from torch, over the largest value of an output, is {worst:.0e}: in the export's "
        "check, at another batch size and length, or in an answer of the server."
    )


def reasons(result: dict[str, Any]) -> str:
    """Why layers of the families that work stay dense."""
    layers: Counter[str] = Counter()
    families: Counter[str] = Counter()
    for row in result["families"]:
        kept: Counter[str] = Counter()
        for reason, count in (row["kept"] or {}).items():
            kept[_NAMES.sub("", reason).replace("that of,", "that of another module,")] += count
        layers.update(kept)
        families.update(kept.keys())
    rows = [(reason, str(count), str(families[reason])) for reason, count in layers.most_common()]
    return "**Layers that stay dense in families that work**\n\n" + table(("reason", "layers", "families"), rows)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    if row["status"] == "refused":
        return (row["name"], f"refused: {row['reason']}", *[""] * (len(_HEAD) - 2))
    dense = row["status"] == "stays dense"
    return (
        row["name"],
        f"stays dense: {row['reason']}" if dense else "works",
        f"{row['reached']:.0%}",
        "" if row["output_error"] is None else f"{row['output_error']:.1%}",
        f"{row['file_bytes'] / row['dense_bytes']:.0%}",
        f"{row['parity']:.0e}",
        ", ".join(row["varies"]),
        f"{row['other_shape']:.0e}",
        "" if row["served"] is None else f"{row['served']:.0e}",
    )
