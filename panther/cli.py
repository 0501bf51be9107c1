"""The `panther` command. What needs torch is imported when a command runs, so that --help answers at once."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="panther",
    help="Sketched linear layers: train, export and inspect models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _commands() -> None:
    """Make `panther train` a command of its own also while it is the only one."""


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with arrays x (rows, features) and y (rows,); the handwritten digits if left out."
        ),
    ] = None,
    to: Annotated[Path, typer.Option(help="The model repository to write into.")] = Path("models"),
    name: Annotated[str | None, typer.Option(help="Name of the model; 'digits', or the name of the data file.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 64,
    lr: Annotated[
        float, typer.Option(min=1e-8, help="Learning rate of Adam at the start; falls along a cosine.")
    ] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the weights, U and the order of rows.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice if left out.")] = None,
) -> None:
    """Train the tutorial's network, dense and sketched, side by side; export the sketched one.

    Prints what each costs and how well it does on held-out rows, and writes NAME/<next version>/model.onnx.
    """
    _require("torch", "onnx", "onnxscript", "sklearn", extra="train")
    _require("onnxruntime", extra="cpu")
    from panther.train.command import run

    run(
        data,
        to=to,
        name=name if name is not None else (data.stem if data is not None else "digits"),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        threads=threads,
        console=Console(),
    )


def _require(*modules: str, extra: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        _fail(f"{', '.join(missing)} is not installed; install the extra: pip install 'panther-sketch[{extra}]'")


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def main() -> None:
    """Run the command; the errors that users can mend are printed as a line."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
