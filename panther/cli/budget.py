"""`panther compress` to a budget: inputs from a file, the search, and the exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import nn

from panther.cli.calibration import load_batches, progress_bar
from panther.cli.export import check_output, load_function
from panther.cli.training import Distillation, check_single, train_in_bits
from panther.compression import KINDS, compress


@dataclass(frozen=True)
class Wanted:
    """The budget and the eligible layers: arguments of `panther.compress`, with the metric as MODULE:FUNCTION."""

    max_bytes: int | None
    max_error: float | None
    speedup: float | None
    metric: str | None
    at_least: float | None
    kinds: tuple[str, ...]
    skip: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """Options of the measurements.

    Attributes:
        batch_size: rows of the calibration inputs in a batch.
        run_size: rows in a run that a speedup is measured with.
        threads: CPU threads for it.
        compare: whether onnxruntime's dynamic quantization is measured too.
        memory: limit of the calibration, as a text; None for half of the free memory.
    """

    batch_size: int
    run_size: int
    threads: int
    compare: bool
    memory: str | None


@dataclass(frozen=True)
class Files:
    """Input and output files.

    Attributes:
        out: a model repository, or a path ending in ``.onnx``.
        calibration: an .npz file.
        curve: a path ending in ``.svg``; None for no picture.
        name: of the exported model.
    """

    out: Path
    calibration: Path | None
    curve: Path | None
    name: str


def run(
    model: nn.Module, wanted: Wanted, measured: Measured, files: Files, distillation: Distillation, console: Console
) -> None:
    """Compress a model, optionally train it in its bits, print the report, and export it.

    Raises:
        ConversionError: a file can't be read, or the model can't be compressed.
        ExportError: it can't be exported.
        ValueError: the budget or another argument is out of range.
    """
    check_output(files.out, or_else=", or end in .safetensors for sketched weights")
    if files.calibration is None:
        raise ValueError("compression to a budget needs calibration inputs; give --calibration")
    if files.curve is not None and files.curve.suffix != ".svg":
        raise ValueError(f"curve ({files.curve}) must end in .svg")
    metric = (
        None
        if wanted.metric is None
        else load_function(wanted.metric, "metric", "MODULE:FUNCTION, for example 'mynet:accuracy'")
    )
    check_single(distillation)
    batches = load_batches(files.calibration, model, measured.batch_size)
    with progress_bar(console) as show:
        compressed = compress(
            model,
            calibration=batches,
            max_bytes=wanted.max_bytes,
            max_error=wanted.max_error,
            speedup=wanted.speedup,
            metric=metric,
            at_least=wanted.at_least,
            kinds=wanted.kinds or KINDS,
            skip=wanted.skip,
            batch_size=measured.run_size,
            threads=measured.threads,
            compare=measured.compare,
            memory=measured.memory,
            on_step=show,
        )
    console.print(compressed.report)
    if files.curve is not None:
        compressed.curve.save(files.curve)
        console.print(f"wrote {files.curve}", soft_wrap=True)
    if distillation.steps is not None:
        train_in_bits(compressed.model, model, batches, distillation, console)
    exported = compressed.export(files.out, name=files.name)
    console.print(f"wrote {exported.path} ({exported.file_bytes:,} bytes)", soft_wrap=True)


def refuse(out: Path, options: Mapping[str, object]) -> None:
    """Refuse options that need an exported model when the output is sketched weights.

    Raises:
        ValueError: one is given; the message names it.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"--{given[0]} is for an exported model; {out} or --ratio asks for sketched weights: give --out a folder "
            "or a path ending in .onnx, and no --ratio"
        )
