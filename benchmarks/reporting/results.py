"""Committed results, their provenance, and their formatting."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any] | None:
    """The JSON of one benchmark; None where it was not run yet."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def head(result: dict[str, Any]) -> dict[str, Any]:
    """Commit, machine and versions, wherever a benchmark has them."""
    found = {**result, **result.get("environment", {})}
    machine = found.get("machine") or {"cpu": found.get("processor"), "cores": found.get("cores")}
    versions = found.get("versions") or {key: found[key] for key in ("python", "torch") if key in found}
    threads = found.get("threads", found.get("settings", {}).get("onnxruntime_threads"))
    return {"commit": found.get("commit"), "machine": machine, "versions": versions, "threads": threads}


def provenance(name: str, result: dict[str, Any]) -> str:
    """A line that says where the figures of a result come from."""
    said = head(result)
    machine = said["machine"]
    where = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('cpu')}"
    versions = ", ".join(f"{package} {version}" for package, version in said["versions"].items())
    threads = "" if said["threads"] is None else f", threads: {said['threads']}"
    return f"`benchmarks/results/{name}.json`: commit `{str(said['commit'])[:9]}`, {where}{threads}; {versions}."


def table(head: Iterable[str], rows: Iterable[Iterable[object]], *, numbers: bool = True) -> str:
    """A Markdown table; numbers are set flush right."""
    titles = list(head)
    marks = ["---", *["--:" if numbers else "---"] * (len(titles) - 1)]
    lines = [titles, marks, *([str(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"
