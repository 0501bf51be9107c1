"""Options of the `panther` command for the computation of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Device of the training, cpu or cuda; under torchrun one GPU a process.")]
Precision = Annotated[
    str, typer.Option(help="Autocast type of the training's forward pass: float32, bfloat16 or float16.")
]
Shard = Annotated[bool, typer.Option("--shard", help="Under torchrun: shard parameters and optimizer states (FSDP2).")]
Checkpoints = Annotated[
    Path | None, typer.Option(help="Folder for the state of the training; the same command resumes from it.")
]
Resume = Annotated[bool, typer.Option(help="Resume from --checkpoints, or start over.")]
