"""`panther quantize`: inputs from a file, the quantization, and the exported model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import nn

from panther.cli.calibration import load_batches, progress_bar
from panther.cli.export import check_output
from panther.cli.training import Distillation, check_single, train_in_bits
from panther.compression.inputs import Inputs
from panther.export import export_onnx
from panther.quantize import Blocks, quantize_
from panther.quantize.api import ALPHAS

WEIGHTS: Mapping[str, int] = {"int8": 8, "int4": 4}
"""Bits by the name of a format of weights."""
EMBEDDINGS: Mapping[str, int | None] = {**WEIGHTS, "float32": None}
"""Bits by the name of a format of embeddings; None leaves them unchanged."""


@dataclass(frozen=True)
class Formats:
    """The requested formats, see `panther.quantize_`.

    Attributes:
        weights: a key of WEIGHTS.
        block_size: entries of a weight's row that share a scale; None for the format's default.
        embeddings: a key of EMBEDDINGS.
        max_error: limit on the relative error of the outputs; None for no limit.
        alphas: smoothing strengths to try; all if empty.
        skip: layers to leave out.
    """

    weights: str
    block_size: int | None
    embeddings: str
    max_error: float | None
    alphas: Sequence[float]
    skip: Sequence[str]


@dataclass(frozen=True)
class Calibration:
    """The file of inputs, rows in a batch, and the limit on memory as a text; None for half of the free memory."""

    file: Path
    batch_size: int
    memory: str | None


def run(
    model: nn.Module,
    formats: Formats,
    calibration: Calibration,
    distillation: Distillation,
    out: Path,
    name: str,
    console: Console,
) -> None:
    """Quantize a model, optionally train it in its bits, print the report, and export it.

    Args:
        model: changed in place.
        formats: of weights and embeddings.
        calibration: of ranges and errors.
        distillation: of the quantized model, on the same inputs.
        out: a model repository, or a path ending in ``.onnx``.
        name: of the exported model.
        console: for progress and the report.

    Raises:
        ConversionError: the file can't be read, or the model can't be quantized.
        ExportError: it can't be exported.
        ValueError: an argument is out of range.
    """
    check_output(out)
    weights = _weights(formats)
    _check_format("embeddings", formats.embeddings, EMBEDDINGS)
    check_single(distillation)
    batches = load_batches(calibration.file, model, calibration.batch_size)
    inputs = Inputs.of(model.eval(), batches, None)
    teacher = None if distillation.steps is None else copy.deepcopy(model)
    with progress_bar(console) as show:
        report = quantize_(
            model,
            calibration=batches,
            weights=weights,
            max_error=formats.max_error,
            embedding_bits=EMBEDDINGS[formats.embeddings],
            alphas=formats.alphas or ALPHAS,
            skip=formats.skip,
            memory=calibration.memory,
            on_step=show,
        )
    console.print(report)
    if teacher is not None:
        train_in_bits(model, teacher, batches, distillation, console)
    exported = export_onnx(model, inputs.examples(), out, name=name, dynamic_axes=inputs.dynamic_axes)
    console.print(f"wrote {exported.path} ({exported.file_bytes:,} bytes)", soft_wrap=True)


def _weights(formats: Formats) -> str | Blocks:
    """The format of weights, as `quantize_` takes it."""
    _check_format("weights", formats.weights, WEIGHTS)
    if formats.block_size is None:
        return formats.weights
    return Blocks(bits=WEIGHTS[formats.weights], block_size=formats.block_size)


def _check_format(option: str, given: str, allowed: Iterable[str]) -> None:
    if given not in allowed:
        raise ValueError(f"{option} ({given!r}) must be one of {', '.join(allowed)}")
