"""`panther compress` to sketched weights: inputs from a file, the conversion, and the written file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

import panther
from panther.checkpoint import CheckpointError
from panther.cli.calibration import load_batches, progress_bar
from panther.cli.training import Distillation, gain
from panther.convert.api import sketch_
from panther.convert.distill import distill_
from panther.convert.errors import ConversionError
from panther.convert.gradual import of_first, sketch_and_distill
from panther.runs.processes import check_device, process_group


def run(
    model: nn.Module,
    *,
    out: Path,
    ratio: float | None,
    max_bytes: int | None,
    max_error: float | None,
    calibration: Path | None,
    batch_size: int,
    skip: Sequence[str],
    distill: Distillation,
    memory: str | None,
    console: Console,
) -> None:
    """Convert a model, optionally train it, write its weights, and print the report.

    Under ``torchrun`` the processes train together; the first one alone prints and writes.

    Raises:
        ConversionError: a file can't be read or written, or the model can't be converted.
        ValueError: the budget or another argument is out of range, or a state of the training is of another run.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"out ({out}) must end in .safetensors")
    if distill.steps is not None and calibration is None:
        raise ValueError("distillation needs inputs; give --calibration")
    check_device(distill.device)
    batches = None if calibration is None else load_batches(calibration, model, batch_size)
    with process_group() as rank:
        if rank > 0:
            console = Console(quiet=True)
        try:
            made = _convert(
                model.to(distill.device), batches, distill, console, skip=skip, ratio=ratio, max_bytes=max_bytes,
                max_error=max_error, memory=memory,
            )  # fmt: skip
        except (RuntimeError, TypeError, IndexError) as error:
            # signature of the model's own forward
            raise ConversionError(f"calibration {calibration} could not be run: {error}") from error
        if rank > 0:
            return
    try:
        size = panther.save(made, out)
    except CheckpointError as error:
        raise ConversionError(str(error)) from error
    console.print(f"wrote {out} ({size:,} bytes)", soft_wrap=True)


def _convert(
    model: nn.Module, batches: Any, distill: Distillation, console: Console, *, ratio: float | None, **options: Any
) -> nn.Module:
    """Convert the model, optionally train it, and print the reports."""
    how = distill.options
    if distill.steps is not None and ratio is not None:
        how |= {"skip": options["skip"], "memory": options["memory"]}
        made = sketch_and_distill(model, batches, ratio=ratio, steps=distill.steps, **how)
        console.print(made.report)
        for stage in made.stages:
            console.print(f"ratio {stage.ratio:g}, {gain(stage.distillation)}")
        return made.model
    teacher = copy.deepcopy(model) if distill.steps is not None else None
    with progress_bar(console) as show:
        report = sketch_(model, ratio=ratio, calibration=batches, on_step=show, **options)
    if teacher is not None:
        model, report = of_first(model, report, teacher)
    console.print(report)
    if teacher is not None and report.replaced:
        console.print(gain(distill_(model, teacher, batches, steps=distill.steps or 1, **how)))
    return model
