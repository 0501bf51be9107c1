"""Options of a training without labels, and the training of a quantized model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from panther.convert.distill import DistillResult, distill_
from panther.convert.trained import can_train
from panther.runs.processes import check_device, started_by_torchrun


@dataclass(frozen=True)
class Distillation:
    """Options of the training after a conversion, see `panther.distill_`; no training if steps is None."""

    steps: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    shard: bool = False
    checkpoints: Path | None = None
    resume: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `panther.distill_` except the steps."""
        return {
            "precision": self.precision,
            "shard": self.shard,
            "checkpoints": self.checkpoints,
            "resume": self.resume,
        }


def check_single(distillation: Distillation) -> None:
    """Check the options of a training in one process.

    Raises:
        ValueError: the device is not available, or several processes or shards are asked for.
    """
    if distillation.steps is None:
        return
    check_device(distillation.device)
    if started_by_torchrun():
        raise ValueError("--distill of an exported model runs in one process; start it without torchrun")
    if distillation.shard:
        raise ValueError("--shard needs sketched weights: give --out a path ending in .safetensors")


def train_in_bits(
    student: nn.Module, teacher: nn.Module, batches: Sequence[Any], distillation: Distillation, console: Console
) -> None:
    """Train a quantized model to match the original, move it to the CPU, and print the gain.

    Args:
        student: is changed in place.
        teacher: the original.
        batches: inputs without labels.
        distillation: with steps.
        console: for the result.
    """
    if not can_train(student):
        console.print("not distilled: no layer was converted")
        return
    device = distillation.device
    found = distill_(
        student.to(device), teacher.to(device), batches, steps=distillation.steps or 1, **distillation.options
    )
    student.cpu()
    console.print(gain(found))


def gain(result: DistillResult) -> str:
    """The result of a distillation in a line."""
    return (
        f"distilled for {result.steps} steps: relative error {result.error_before:.4f} → {result.error:.4f}, "
        f"mean cosine {result.cosine_before:.4f} → {result.cosine:.4f}"
        + (" on held-out inputs" if result.held_out else " on the training inputs")
    )
