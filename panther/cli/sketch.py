"""`panther compress` to sketched weights: inputs from a file, the conversion, and the written file."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

import panther
from panther.checkpoint import CheckpointError
from panther.convert.api import sketch_
from panther.convert.distill import DistillResult, distill_
from panther.convert.errors import ConversionError
from panther.convert.gradual import of_first, sketch_and_distill
from panther.runs.processes import check_device, process_group


@dataclass(frozen=True)
class Distillation:
    """Options of the training after a conversion, see `panther.distill_`; no training if steps is None."""

    steps: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    shard: bool = False
    checkpoints: Path | None = None
    resume: bool = True


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
    how: dict[str, Any] = {
        "precision": distill.precision,
        "shard": distill.shard,
        "checkpoints": distill.checkpoints,
        "resume": distill.resume,
    }
    if distill.steps is not None and ratio is not None:
        how |= {"skip": options["skip"], "memory": options["memory"]}
        made = sketch_and_distill(model, batches, ratio=ratio, steps=distill.steps, **how)
        console.print(made.report)
        for stage in made.stages:
            console.print(f"ratio {stage.ratio:g}, {_gain(stage.distillation)}")
        return made.model
    teacher = copy.deepcopy(model) if distill.steps is not None else None
    with progress_bar(console) as show:
        report = sketch_(model, ratio=ratio, calibration=batches, on_step=show, **options)
    if teacher is not None:
        model, report = of_first(model, report, teacher)
    console.print(report)
    if teacher is not None and report.replaced:
        console.print(_gain(distill_(model, teacher, batches, steps=distill.steps or 1, **how)))
    return model


def _gain(result: DistillResult) -> str:
    return (
        f"distilled for {result.steps} steps: relative error {result.error_before:.4f} → {result.error:.4f}, "
        f"mean cosine {result.cosine_before:.4f} → {result.cosine:.4f}"
        + (" on held-out inputs" if result.held_out else " on the training inputs")
    )


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each kind of step; a callback for `on_step`."""
    with Progress(console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show


def load_batches(path: Path, model: nn.Module, batch_size: int) -> Sequence[Mapping[str, Tensor] | tuple[Tensor]]:
    """Read calibration inputs: an .npz file with an array for each input of the model, rows along the first axis.

    Arrays are passed by name if forward takes all of these names; a single array is passed as the first argument.

    Raises:
        ConversionError: the file can't be read, or its arrays don't fit.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: torch.from_numpy(archive[key]) for key in archive.files}
    except FileNotFoundError:
        raise ConversionError(f"calibration {path} does not exist") from None
    except Exception as error:
        raise ConversionError(f"calibration {path} cannot be read as an .npz file: {error}") from error
    rows = {key: len(array) if array.dim() else 0 for key, array in arrays.items()}
    if not rows or 0 in rows.values() or len(set(rows.values())) > 1:
        raise ConversionError(f"calibration {path}: arrays must have the same number of rows, 1 at least; found {rows}")
    count = next(iter(rows.values()))
    # floats become the model's type; integers, such as token ids, stay
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    arrays = {key: array.to(dtype) if array.is_floating_point() else array for key, array in arrays.items()}
    parameters = inspect.signature(model.forward).parameters
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    starts = range(0, count, batch_size)
    if len(arrays) == 1 and not arrays.keys() <= parameters.keys():
        (only,) = arrays.values()
        return [(only[start : start + batch_size],) for start in starts]
    unknown = [] if any_name else sorted(arrays.keys() - parameters.keys())
    if unknown:
        raise ConversionError(
            f"calibration {path}: {unknown[0]!r} is not an input of {type(model).__name__}, which takes "
            f"{', '.join(parameters)}"
        )
    return [{key: array[start : start + batch_size] for key, array in arrays.items()} for start in starts]
