"""Options that several commands of `panther` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="MODULE:FACTORY, importable from here; FACTORY() returns the torch module.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: .safetensors, or a state_dict by torch.save.")]

CalibrationRows = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of --calibration in a batch.")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory of the calibration, such as 8GB, not of a training; half of the free memory if left out."
    ),
]
Skip = Annotated[list[str] | None, typer.Option(help="A layer to leave out, or a pattern such as '*.query'.")]
ExportedName = Annotated[
    str | None, typer.Option("--name", help="Name of the exported model; FACTORY's module if left out.")
]

Device = Annotated[str, typer.Option(help="Device of the training, cpu or cuda; under torchrun one GPU a process.")]
Precision = Annotated[
    str, typer.Option(help="Autocast type of the training's forward pass: float32, bfloat16 or float16.")
]
Shard = Annotated[bool, typer.Option("--shard", help="Under torchrun: shard parameters and optimizer states (FSDP2).")]
Checkpoints = Annotated[
    Path | None, typer.Option(help="Folder for the state of the training; the same command resumes from it.")
]
Resume = Annotated[bool, typer.Option(help="Resume from --checkpoints, or start over.")]
