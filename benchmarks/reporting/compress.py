"""The table of quantizers on the sentence encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reporting.blocks import block
from reporting.pareto import BASE, COMPRESS, family, ours
from reporting.results import table


def quantizers() -> str:
    """Ours beside onnxruntime's: accuracy, bytes, independence of the batch, and speed."""
    return block("compress", _quantizers)


def _quantizers(result: dict[str, Any]) -> str:
    rows = [_row(name, side) for name, side in result["sides"].items()]
    head = ("file", "cosine", "MB of linear layers", "MB of the file", "moved by the batch", "speed, batch 1 / 16")
    ours = next(name for name in result["sides"] if "max_error" in name)
    kept, layers = len(result[ours]["kept_in_float32"]), result["linear_layers"]
    said = f"`{ours}` left {kept} of {layers} linear layers in float32. {result['calibration_texts']} calibration texts"
    said += f" ({result['probes']} probes), {result['held_out_texts']} held-out ones for the figures."
    return f"{table(head, rows)}\n\n{said}"


def _row(name: str, side: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"`{name}`" if name.startswith("quantize_") and "," not in name else name,
        f"{side['cosine']:.4f}",
        f"{side['linear_bytes'] / 1e6:.1f}",
        f"{side['file_bytes'] / 1e6:.1f}",
        f"{side['moved_by_the_batch']:.0e}",
        f"{side['speed_1']:.2f} / {side['speed_16']:.2f}",
    )


def quantizers_avx2() -> str:
    """Ours beside onnxruntime's in both modes of bench_avx2.py: cosine, and speed against float32 in the same mode."""
    return block("compress_avx2", _quantizers_avx2)


def _quantizers_avx2(result: dict[str, Any]) -> str:
    modes = result["modes"]
    head = ("file", *(f"{what}, {mode}" for what in ("cosine", "speed, batch 1 / 16") for mode in modes))
    rows = []
    for name in modes["AVX2"]["sides"]:
        sides = [mode["sides"][name] for mode in modes.values()]
        speeds = [f"{side['speed_1']:.2f} / {side['speed_16']:.2f}" for side in sides]
        shown = f"`{name}`" if name == "quantize_" else name
        rows.append((shown, *(f"{side['cosine']:.4f}" for side in sides), *speeds))
    return f"{table(head, rows)}\n\nLatency: {result['latency']}."


def strongest_rival(sides: dict[str, Any], side: str) -> str:
    """The most accurate rival whose file is at most 5% larger; without one, the rival of the smallest file."""
    rivals = [name for name in sides if name != BASE and not ours(name)]
    as_small = [name for name in rivals if sides[name]["file_bytes"] <= 1.05 * sides[side]["file_bytes"]]
    if as_small:
        return max(as_small, key=lambda name: sides[name]["cosine"])
    return min(rivals, key=lambda name: (sides[name]["file_bytes"], -sides[name]["cosine"]))


def proof_rows(sides: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the README: `quantize_`, and the closest file of `compress`, each beside its strongest rival."""
    compressed = [name for name in sides if family(name) is COMPRESS]
    best = sorted(compressed, key=lambda name: sides[name]["cosine"])[-1:]
    size = sides[BASE]["file_bytes"] / 1e6
    rows = []
    for name in ("quantize_", *best):
        rival = strongest_rival(sides, name)
        what = "in int8 (`quantize_`)" if name == "quantize_" else f"to a budget (`{name.split(',')[0]}`)"
        said = f"a sentence encoder of {size:.1f} MB {what}: file, cosine to the original, speed on one CPU thread"
        rows.append((said, f"{_summary(sides[name])}; {rival}: {_summary(sides[rival])}"))
    return rows


def _summary(side: dict[str, Any]) -> str:
    return f"{side['file_bytes'] / 1e6:.1f} MB, {side['cosine']:.4f}, {side['speed_1']:.1f}×"


BLOCKS: tuple[Callable[[], str], ...] = (quantizers, quantizers_avx2)
