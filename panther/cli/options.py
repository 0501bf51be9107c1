"""Options of the `panther` command that say how a training run is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="Of the training: cpu or cuda; under torchrun each process has its own GPU.")]
Precision = Annotated[
    str, typer.Option(help="Of the training's forward pass, by autocast: float32, bfloat16 or float16.")
]
Shard = Annotated[
    bool, typer.Option("--shard", help="Under torchrun: share parameters and optimizer states out (FSDP2).")
]
Checkpoints = Annotated[
    Path | None, typer.Option(help="A folder for the state of the training; the same command goes on from it.")
]
Resume = Annotated[bool, typer.Option(help="Go on from --checkpoints, or start over.")]
