"""The `panther` command. What needs torch is imported when a command runs, so that --help answers at once."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

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

    with _errors_as_lines():
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


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="MODULE:FACTORY, importable from here; FACTORY() returns the torch module.")
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", help="An input in the order of forward: NAME:DTYPE[SIZE,...]; a name for a size that varies."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or a state_dict by torch.save.")
    ] = None,
    to: Annotated[
        Path, typer.Option(help="The model repository, where it becomes the next version; or a path ending in .onnx.")
    ] = Path("models"),
    data: Annotated[
        Path | None, typer.Option(help="An .npz file with real rows for each input, to check on; random if left out.")
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option(help="Name of an output, in the order of forward's return.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the classes of the first output, comma-separated.")
    ] = None,
    plan: Annotated[str, typer.Option(help="auto measures; or two_products, dense.")] = "auto",
    u_storage: Annotated[str, typer.Option(help="bits or float: how fixed sign matrices lie in the file.")] = "bits",
    precision: Annotated[str, typer.Option(help="float32, float16 (for CUDA) or int8 (weights, for CPU).")] = "float32",
    target: Annotated[str, typer.Option(help="cpu or cuda: what the plans are measured on.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the target; all cores if left out.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="A batch size to measure at; 1, 8 and 64 if left out.")
    ] = None,
    max_weight_bytes: Annotated[int | None, typer.Option(min=1, help="Limit on the weights when loaded.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest relative error; by precision if left out.")
    ] = None,
    conditional: Annotated[
        str | None, typer.Option(help="sketched or standard: the branch of layers that choose by the number of rows.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For the card: what the model is.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="For the card.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="For the card; may be given several times.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="For the card: what is done to raw data before it is sent.")
    ] = None,
) -> None:
    """Export a model to ONNX, proven against torch, into a repository that the server reads."""
    _require("torch", "onnx", "onnxscript", extra="train")
    _require("onnxruntime", extra="cpu")
    from panther.export import Input, Output, command, export_onnx
    from panther.export.inspection import inspect_file, print_inspection

    with _errors_as_lines():
        specs = [command.InputSpec.parse(text) for text in inputs]
        module = command.load_model(model, checkpoint)
        examples = command.example_tensors(specs, data)
        class_labels = tuple(labels.split(",")) if labels is not None else None
        outputs = None
        if output or class_labels:
            first, *rest = output or ["output"]
            outputs = [Output(first, kind="logits" if class_labels else None, labels=class_labels), *map(Output, rest)]
        report = export_onnx(
            module,
            list(examples.values()),
            to,
            name=name,
            inputs=[Input(spec.name) for spec in specs],
            outputs=outputs,
            dynamic_axes={spec.name: spec.dynamic_axes for spec in specs},
            plan=plan,
            u_storage=u_storage,
            precision=precision,
            target=target,
            num_threads=threads,
            batch_sizes=tuple(batch_size or (1, 8, 64)),
            max_weight_bytes=max_weight_bytes,
            tolerance=tolerance,
            conditional=conditional,
            description=description,
            license=license_name,
            authors=tuple(author or ()),
            preprocessing=preprocessing,
        )
        print_inspection(inspect_file(report.path), Console())


@app.command()
def compress(
    model: Annotated[
        str, typer.Argument(help="MODULE:FACTORY, importable from here; FACTORY() returns the torch module.")
    ],
    out: Annotated[Path, typer.Option(help="Where the weights go: a .safetensors file.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or a state_dict by torch.save.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Budget: stored parameters of the linear layers, as a share of now.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Budget: bytes of the whole model.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Budget: relative error of the outputs; of each weight without --calibration.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="An .npz file of inputs by name, a few hundred rows: far better results.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of --calibration in a batch.")] = 32,
    skip: Annotated[
        list[str] | None, typer.Option(help="A layer to leave out, or a pattern such as '*.query'.")
    ] = None,
    distill: Annotated[
        int | None, typer.Option(min=1, help="Steps to train on --calibration towards the original's outputs.")
    ] = None,
) -> None:
    """Replace a trained model's linear layers by sketched ones that keep its outputs best; write the weights."""
    _require("torch", "safetensors", extra="train")
    from panther.convert import ConversionError, command
    from panther.export.command import load_model

    with _errors_as_lines():
        try:
            command.run(
                load_model(model, checkpoint),
                out=out,
                ratio=ratio,
                max_bytes=max_bytes,
                max_error=max_error,
                calibration=calibration,
                batch_size=batch_size,
                skip=skip or (),
                distill_steps=distill,
                console=Console(),
            )
        except ConversionError as error:
            _fail(str(error))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file, of any origin.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a model file is: its card, sizes, plan, sketched layers, and the graph that onnxruntime runs."""
    _require("onnx", extra="train")
    import json

    from panther.export.inspection import inspect_file, print_inspection

    with _errors_as_lines():
        inspection = inspect_file(file)
        if as_json:
            typer.echo(json.dumps(inspection, indent=2, ensure_ascii=False))
        else:
            print_inspection(inspection, Console())


@app.command()
def predict(
    url: Annotated[str, typer.Argument(help="Where the server is, such as http://127.0.0.1:8000.")],
    rows: Annotated[Path, typer.Option("--input", help="A .npy file of rows for the model's only input.")],
    model: Annotated[str | None, typer.Option(help="Name of the model; the server's default if left out.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; the server's default if left out.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many labels to rank.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the outputs there: .npz, or .npy where there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="PANTHER_API_KEY", help="Where the server asks for one.", show_default=False)
    ] = None,
) -> None:
    """Ask a server for predictions on rows of a file."""
    _require("httpx", extra="client")
    from panther_client.command import CommandError, run

    try:
        run(
            url,
            rows,
            model=model,
            version=version,
            top_k=top_k,
            output=output,
            as_json=as_json,
            api_key=api_key or None,
            console=Console(),
        )
    except CommandError as error:
        _fail(str(error))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    help="Serve the models of a folder over HTTP; all flags are those of the server: panther serve --help.",
)
def serve(context: typer.Context) -> None:
    """Become the server; it is a program of its own, of which this package knows only how to start it."""
    _require("app", "fastapi", "uvicorn", extra="cpu")
    if importlib.util.find_spec("onnxruntime") is None:
        _fail("onnxruntime is not installed; install it: pip install 'panther-sketch[cpu]', or [gpu] for CUDA")
    os.environ["_PANTHER_PROGRAM"] = "panther serve"
    # -P: a folder 'app' of the user's own, where the command is called, is not the server.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "app", *context.args])  # noqa: S606 - our own program  # nosec B606


@contextlib.contextmanager
def _errors_as_lines() -> Iterator[None]:
    """What users can mend is told in a line, without a traceback."""
    from panther.export.errors import ExportError

    try:
        yield
    except (ExportError, ValueError) as error:
        _fail(str(error))


def _require(*modules: str, extra: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        _fail(f"{', '.join(missing)} is not installed; install the extra: pip install 'panther-sketch[{extra}]'")


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
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
