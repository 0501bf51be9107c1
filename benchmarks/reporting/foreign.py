"""The tables of docs/results.md about models of other tools."""

from __future__ import annotations

from typing import Any

from reporting.blocks import block, not_measured, rules
from reporting.results import load, table


def foreign() -> str:
    """Each model with what was decided of it, its rate, and its time to load."""
    return block("foreign", _models)


def _models(result: dict[str, Any]) -> str:
    rows = [_row(model) for model in result["models"].values()]
    head = (
        "model",
        "batched",
        "wrong answers",
        "requests/s",
        "joined another's run",
        "load, ms",
        "load without batching, ms",
        "proof, ms",
    )
    left = "".join(f"\n\nNot measured: {name} ({why})." for name, why in result["left_out"].items())
    return f"{table(head, rows)}{left}"


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    load_ms = model["load_ms"]
    return (
        model["tool"],
        "yes" if model["batched"] else f"no: {model['op_type']}",
        f"{model['wrong']} of {model['requests']}",
        f"{model['requests_per_s']:,.0f}",
        f"{100 * model['joined_a_run'] / model['requests']:.0f}%",
        *(f"{load_ms[key]:,.0f}" for key in ("auto", "off")),
        f"{load_ms['proof']:,.1f}",
    )


def foreign_rules() -> str:
    """What must be reached, and all models at once."""
    result = load("foreign")
    return not_measured("foreign") if result is None else rules(result)


def foreign_large() -> str:
    """The model of gigabytes."""
    result = load("foreign")
    if result is None or result["large"] is None:
        return not_measured("foreign")
    large = result["large"]
    size = large["file_bytes"]

    def share(value: int) -> str:
        return f"{value / 1e9:.2f} GB, {value / size:.1f} times the file"

    rows = [
        ("file and weights", f"{size / 1e9:.2f} GB"),
        ("from the start of the process until it is ready, trial load included", f"{large['ready_s']} s"),
        ("of that the load itself", f"{large['load_s']} s"),
        ("most memory of the server's process", share(large["peak_bytes"]["server"])),
        ("most memory with the process of the trial load", share(large["peak_bytes"]["with_the_trial_load"])),
        ("memory after the first request", share(large["resident_bytes"])),
        ("largest difference to numpy", f"{large['max_absolute_error']:.0e}"),
    ]
    return table(("a model with external data", "measured"), rows, numbers=False)
