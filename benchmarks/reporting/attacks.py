"""The tables of docs/reliability.md: runs and findings of 'make soak' and 'make fuzz'."""

from __future__ import annotations

from typing import Any

from reporting.results import load, provenance

_TARGETS = {
    "plain_json": "plain JSON",
    "protocol": "the inference protocol, JSON and binary",
    "npy": "`.npy`",
    "octets": "raw rows",
    "csv": "CSV",
    "encoded": "compressed bodies",
    "card": "model cards",
    "protobuf": "the reader of protocol buffers",
    "checkpoint": "checkpoints",
}


def soak() -> str:
    """The soak's counts."""
    result = load("soak")
    if result is None:
        return "Not run here yet: `make soak`."
    answers: dict[str, int] = result["answers"]
    compared = sum(n for name, n in answers.items() if name.endswith(" 200") and not name.startswith(("look", "load")))
    busy = sum(n for name, n in answers.items() if name.endswith(" 503"))
    bad = sum(n for name, n in answers.items() if name.startswith("bad"))
    rows = [
        ("requests", f"{result['requests']:,} in {result['settings']['minutes']:g} minutes"),
        ("of these answered and compared", f"{compared:,}"),
        ("wrong answers", result["wrong answers"]),
        (
            "statuses that were not expected",
            f"{result['unexpected statuses']} (503 is expected during a burst only: {busy})",
        ),
        ("clients that gave up", f"{answers['gave up']:,}"),
        ("reloads under that load", answers["load 200"]),
        ("bad requests, each with its 4xx and a message", f"{bad:,}"),
        ("resident memory, last quarter over second", f"{result['memory, last quarter over second']:.2f}"),
        ("open files, first and last", f"{result['open files']['first']}, {result['open files']['last']}"),
        ("tracebacks in the log", result["tracebacks in the log"]),
        ("exit status after SIGTERM", result["exit status"]),
    ]
    return _table(("soak", ""), rows) + f"\n\n{provenance('soak', result)} Again: `make soak`."


def fuzz() -> str:
    """The fuzzer's counts."""
    result = load("fuzz")
    if result is None:
        return "Not run here yet: `make fuzz`."
    targets: dict[str, dict[str, Any]] = result["targets"]
    rows: list[tuple[object, ...]] = []
    for name, what in _TARGETS.items():
        found = targets[name]
        rows.append(
            (
                what,
                f"{found['inputs']:,}",
                f"{found['accepted']:,}",
                f"{found['slowest_ms']:.0f} ms",
                f"{found['resident_growth_bytes'] / 2**20:.1f} MiB",
                len(found["findings"]),
            )
        )
    models, files, http = targets["models"], targets["files"], targets["http"]
    kept = models["too much memory"] + models["too long"]
    text = _table(("decoder", "inputs", "accepted", "slowest", "memory grew", "findings"), rows)
    return (
        f"{text}\n\n"
        f"Beside these {result['decoder_inputs']:,} inputs: {models['inputs']:,} changed model files, of which "
        f"{models['loaded']:,} loaded, {models['refused']:,} were refused and {kept} were kept from the server by "
        f"the trial (they wanted too much memory or time); {files['truncated']:,} truncated and {files['flipped']:,} "
        f"flipped files and {files['loads_of_a_file_being_replaced']:,} loads of a file that was being replaced, "
        f"at a real server; {http['requests']:,} requests made from the OpenAPI description. "
        f"Findings: {result['findings']}. It took {result['seconds'] / 60:.0f} minutes."
        f"\n\n{provenance('fuzz', result)} Again: `make fuzz`."
    )


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [head, ("---", *["--:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
