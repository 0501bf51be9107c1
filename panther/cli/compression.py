"""The commands `panther compress` and `panther quantize`; torch is imported only when they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from panther.cli import options
from panther.cli.errors import errors_as_lines, fail, require


def compress(
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option(
            help="A model repository or a path ending in .onnx: bits and rank are chosen for every layer, and the file "
            "is exported. A path ending in .safetensors: sketched layers alone, as weights."
        ),
    ],
    checkpoint: options.Checkpoint = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="An .npz file of inputs by name, a few hundred rows. Required, except for .safetensors."),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Budget: bytes of the whole model.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Budget: relative error of the outputs; of each weight without --calibration.")
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="Budget: speedup over the original's file.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Budget: MODULE:FUNCTION, importable from here, that takes the model.")
    ] = None,
    at_least: Annotated[float | None, typer.Option(help="Smallest accepted result of --metric.")] = None,
    name: options.ExportedName = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="A kind that layers may become; repeat for several. All if left out.")
    ] = None,
    batch_size: options.CalibrationRows = 32,
    run_size: Annotated[int, typer.Option(min=1, help="Rows in a run that --speedup is measured with.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads that --speedup is measured with.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also report the result of onnxruntime's quantize_dynamic.")
    ] = False,
    curve: Annotated[Path | None, typer.Option(help="Write the curve of error over bytes there, as .svg.")] = None,
    skip: options.Skip = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Budget for .safetensors: stored parameters of the linear layers, as a share of now."),
    ] = None,
    distill: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps to train the result on --calibration, without labels: in its bits, or for .safetensors with "
            "--ratio in stages (0.75, 0.5, 0.25).",
        ),
    ] = None,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    shard: options.Shard = False,
    checkpoints: options.Checkpoints = None,
    resume: options.Resume = True,
) -> None:
    """Compress a trained model to a budget of bytes, error, speed or a metric, and export it; or sketch its layers."""
    require("torch", "safetensors", "onnx", "onnxscript", extra="train")
    from panther.cli import budget, sketch
    from panther.cli.export import load_model
    from panther.cli.training import Distillation

    distillation = Distillation(distill, device, precision, shard, checkpoints, resume)
    for_sketch = ratio is not None or out.suffix == ".safetensors"
    chosen = {"speedup": speedup, "metric": metric, "at-least": at_least, "name": name, "kind": kind, "curve": curve}
    with _errors_as_lines():
        if for_sketch:
            budget.refuse(out, chosen)
            sketch.run(
                load_model(model, checkpoint),
                out=out,
                ratio=ratio,
                max_bytes=max_bytes,
                max_error=max_error,
                calibration=calibration,
                batch_size=batch_size,
                skip=skip or (),
                distill=distillation,
                memory=memory,
                console=Console(),
            )
        else:
            require("onnxruntime", extra="cpu")
            wanted = budget.Wanted(
                max_bytes, max_error, speedup, metric, at_least, tuple(kind or ()), tuple(skip or ())
            )
            measured = budget.Measured(batch_size, run_size, threads, compare=compare, memory=memory)
            files = budget.Files(out, calibration, curve, _name_or_module(name, model))
            budget.run(load_model(model, checkpoint), wanted, measured, files, distillation, Console())


def quantize(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="A model repository or a path ending in .onnx.")],
    calibration: Annotated[Path, typer.Option(help="An .npz file of inputs by name, a few hundred rows.")],
    checkpoint: options.Checkpoint = None,
    name: options.ExportedName = None,
    weights: Annotated[
        str, typer.Option(help="Format of linear layers and convolutions: int8 (fastest) or int4 (smallest).")
    ] = "int8",
    block_size: Annotated[
        int | None,
        typer.Option(help="Entries that share a scale: 16 to 256. If left out, 128 for int4; int8 has no blocks."),
    ] = None,
    embeddings: Annotated[str, typer.Option(help="Format of embeddings: int8, int4, or float32 (unchanged).")] = "int8",
    max_error: Annotated[
        float | None, typer.Option(help="Relative error of the outputs; layers over it stay in float32.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="A strength of smoothing to try for int8, from 0 (none) to 1; repeat for several."),
    ] = None,
    skip: options.Skip = None,
    batch_size: options.CalibrationRows = 32,
    distill: Annotated[
        int | None, typer.Option(min=1, help="Steps to train the result in its bits on --calibration, without labels.")
    ] = None,
    memory: options.Memory = None,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    checkpoints: options.Checkpoints = None,
    resume: options.Resume = True,
) -> None:
    """Quantize a trained model to 8 or 4 bits, and export it."""
    require("torch", "safetensors", "onnx", "onnxscript", extra="train")
    require("onnxruntime", extra="cpu")
    from panther.cli import quantize as command
    from panther.cli.export import load_model
    from panther.cli.training import Distillation

    distillation = Distillation(distill, device, precision, False, checkpoints, resume)  # noqa: FBT003
    with _errors_as_lines():
        formats = command.Formats(weights, block_size, embeddings, max_error, tuple(alpha or ()), tuple(skip or ()))
        inputs = command.Calibration(calibration, batch_size, memory)
        network = load_model(model, checkpoint)
        command.run(network, formats, inputs, distillation, out, _name_or_module(name, model), Console())


def _name_or_module(name: str | None, model: str) -> str:
    return name if name is not None else model.partition(":")[0]


@contextlib.contextmanager
def _errors_as_lines() -> Iterator[None]:
    """Print errors of conversions as one line too."""
    from panther.convert import ConversionError

    with errors_as_lines():
        try:
            yield
        except ConversionError as error:
            fail(str(error))
