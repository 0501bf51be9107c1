"""The table of docs/compress.md on the pitch estimator, a network of convolutions."""

from __future__ import annotations

from reporting.results import load, provenance, table


def pitch() -> str:
    """Accuracy, bytes and milliseconds of each side."""

    result = load("pitch")
    if result is None:
        return "Not measured here yet: `python benchmarks/bench_pitch.py` says how."
    rows = (
        (
            side,
            f"{100 * found['within_20_cents']:.1f} %",
            f"{found['cosine']:.4f}",
            f"{found['file_bytes'] / 1000:,.0f}",
            f"{found['median_ms_1']:.2f} · {found['median_ms_16']:.1f}",
        )
        for side, found in result["sides"].items()
    )
    head = ("side", "pitch within 20 cents", "cosine", "kB", "ms for 1 · 16 frames")
    return f"{table(head, rows)}\n\n{provenance('pitch', result)}"
