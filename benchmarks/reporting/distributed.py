"""The tables of docs/training.md on training with several GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reporting.results import load, provenance, table

NAME = "gpu_distributed"
WAYS = {"one": "one process", "ddp": "DistributedDataParallel", "fsdp2": "FSDP2"}


def gpu_distributed_speed() -> str:
    """Samples per second on one GPU and on two, with the ratios of weak and strong scaling."""

    def make(result: dict[str, Any]) -> str:
        rows = []
        for part, title in (("scaling", "fit"), ("distill", "distill_")):
            for cell in result.get(part, ()):
                ratios = (f"{cell[key]:.2f}" if key in cell else "" for key in ("weak_ratio", "strong_ratio"))
                figures = (cell["batch"], f"{cell['median_ms']:.1f}", f"{cell['samples_per_s']:.0f}", *ratios)
                rows.append((f"`{title}`, {WAYS[cell['way']]}", cell["gpus"], *figures, f"{max(cell['peak_mib']):,}"))
        head = ("", "GPUs", "global batch", "ms a step", "samples/s", "weak", "strong", "peak MiB a GPU")
        return table(head, rows)

    return _block(make)


def gpu_distributed_parity() -> str:
    """Largest relative differences from one process, and from a run that was not killed."""

    def make(result: dict[str, Any]) -> str:
        rows: list[tuple[str, ...]] = []
        if "parity" in result:
            found = result["parity"]
            for way in ("ddp", "fsdp2"):
                errors = found[way]
                title = f"{WAYS[way]} against one process, float32, {found['steps']} steps"
                rows.append((title, f"{errors['loss']:.2g}", f"{errors['parameters']:.2g}", f"{errors['update']:.2g}"))
        if "resume" in result:
            found = result["resume"]
            rows.append(
                (f"FSDP2 killed and resumed, bfloat16, {found['steps']} steps", f"{found['error']:.2g}", "", "")
            )
        return table(("", "loss", "parameters", "their change"), rows)

    return _block(make)


def gpu_distributed_source() -> str:
    """Where the figures come from."""
    return _block(lambda result: provenance(NAME, result))


def _block(make: Callable[[dict[str, Any]], str]) -> str:
    result = load(NAME)
    return "Not measured yet." if result is None else make(result)


BLOCKS = (gpu_distributed_speed, gpu_distributed_parity, gpu_distributed_source)
