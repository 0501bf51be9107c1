"""Calibration inputs from a file, and a progress bar."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from panther.convert.errors import ConversionError


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
