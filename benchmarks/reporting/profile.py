"""The table of docs/results.md on where the time of a request goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reporting.blocks import block
from reporting.results import table

_HTTP, _GRPC = "whole request, {} rows {}, {} at a time", "whole call over gRPC, {} rows, {} at a time"
# Rows and clients of a cell, its whole in the process, its decoder and encoder, and the rows of a run.
_CELLS = {
    "1 row JSON, 1 client": (1, 1, _HTTP.format(1, "json", 1), "decode JSON, 1 rows", 1),
    "1 row JSON, 64 clients": (1, 64, _HTTP.format(1, "json", 64), "decode JSON, 1 rows", 64),
    "32 rows JSON, 8 clients": (32, 8, _HTTP.format(32, "json", 8), "decode JSON, 32 rows", 256),
    "32 rows binary, 8 clients": (32, 8, _HTTP.format(32, "binary", 8), "decode binary, 32 rows", 256),
    "gRPC, 1 row, 1 client": (1, 1, _GRPC.format(1, 1), None, 1),
    "gRPC, 1 row, 64 clients": (1, 64, _GRPC.format(1, 64), None, 64),
    "gRPC, 32 rows, 8 clients": (32, 8, _GRPC.format(32, 8), None, 256),
}


def _parts(cell: str, us: Mapping[str, float], sockets: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """Microseconds of a request by part; None where a part is not measured apart."""
    rows, _, whole, decoder, run_rows = _CELLS[cell]
    run = us[f"session.run, {run_rows} rows"] * rows / run_rows
    decoded = None if decoder is None else us[decoder]
    total = sockets["ours"][cell]
    return {
        "in total": total,
        "session.run": run,
        "decoding": decoded,
        "rest in the process": us[whole] - run - (decoded or 0),
        "sockets, event loop": total - us[whole],
        "bare uvicorn in total": sockets["bare uvicorn"].get(cell),
    }


def profile() -> str:
    """Where the time of a request goes, by kind of load."""

    def make(result: dict[str, Any]) -> str:
        parts = {cell: _parts(cell, result["in_process_us"], result["over_sockets_us"]) for cell in _CELLS}
        head = ("processor time, µs", *next(iter(parts.values())))
        rows = ((cell, *("–" if us is None else f"{us:,.0f}" for us in row.values())) for cell, row in parts.items())
        return table(head, rows)

    return block("profile", make)
