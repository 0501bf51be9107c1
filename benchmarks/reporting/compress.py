"""The table of quantizers on the sentence encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reporting.blocks import block
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


BLOCKS: tuple[Callable[[], str], ...] = (quantizers,)
