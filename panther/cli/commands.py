"""The `panther` command. torch is imported only when a command needs it, so that --help is fast."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from panther.cli import options
from panther.cli.compression import compress, quantize
from panther.cli.errors import errors_as_lines, fail, require

_URL = "http://127.0.0.1:8000"

app = typer.Typer(
    name="panther",
    help="Sketched linear layers: train, export and inspect models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _commands() -> None:
    """Make `panther train` a subcommand even if it is the only one."""


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file with arrays x (rows, features) and y: classes (rows,), floating-point numbers for a "
            "regression, or zeros and ones (rows, labels); the handwritten digits if left out."
        ),
    ] = None,
    to: Annotated[Path, typer.Option(help="The model repository to write into.")] = Path("models"),
    name: Annotated[str | None, typer.Option(help="Name of the model; 'digits', or the name of the data file.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 64,
    lr: Annotated[
        float, typer.Option(min=1e-8, help="Learning rate of Adam at the start; falls along a cosine.")
    ] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the weights, U and the order of rows.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice if left out.")] = None,
    unit: Annotated[str | None, typer.Option(help="For the card: unit of the targets of a regression.")] = None,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    shard: options.Shard = False,
    checkpoints: options.Checkpoints = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Save after so many steps too.")] = None,
    resume: options.Resume = True,
) -> None:
    """Train the tutorial's network, dense and sketched, side by side; export the sketched one.

    Prints the costs and the held-out scores of both, and writes NAME/<next version>/model.onnx.
    """
    require("torch", "onnx", "onnxscript", "sklearn", extra="train")
    require("onnxruntime", extra="cpu")
    from panther.cli.train import run
    from panther.runs.precision import check_precision
    from panther.train.compare import RunOptions

    with errors_as_lines():
        how = RunOptions(device, check_precision(precision), shard, checkpoints, checkpoint_every, resume)
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
            options=how,
            unit=unit,
        )


@app.command()
def export(
    model: options.Model,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", help="An input in the order of forward: NAME:DTYPE[SIZE,...]; a name for a size that varies."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    checkpoint: options.Checkpoint = None,
    to: Annotated[
        Path, typer.Option(help="The model repository, where it becomes the next version; or a path ending in .onnx.")
    ] = Path("models"),
    data: Annotated[
        Path | None, typer.Option(help="An .npz file of real rows by input, for the check; random rows if left out.")
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option(help="Name of an output, in the order of forward's return.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the classes of the first output, or of its numbers, comma-separated.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="How to read the first output: logits, probabilities, multilabel or regression; logits if it has "
            "labels."
        ),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of the first output if it is a regression.")] = None,
    plan: Annotated[str, typer.Option(help="auto measures; two_products or dense sets it.")] = "auto",
    u_storage: Annotated[str, typer.Option(help="Storage of fixed sign matrices in the file: bits or float.")] = "bits",
    precision: Annotated[str, typer.Option(help="float32, float16 (for CUDA) or int8 (weights, for CPU).")] = "float32",
    target: Annotated[str, typer.Option(help="Device that plans are measured on: cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the target; all cores if left out.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="A batch size to measure at; 1, 8 and 64 if left out.")
    ] = None,
    max_weight_bytes: Annotated[int | None, typer.Option(min=1, help="Limit on the bytes of loaded weights.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest relative error; by precision if left out.")
    ] = None,
    conditional: Annotated[
        str | None, typer.Option(help="sketched or standard: the branch of layers that choose by the number of rows.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For the card: a description of the model.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="For the card.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="For the card; may be given several times.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="For the card: preprocessing of raw data before a request.")
    ] = None,
) -> None:
    """Export a model to ONNX, proven against torch, into a repository that the server reads."""
    require("torch", "onnx", "onnxscript", extra="train")
    require("onnxruntime", extra="cpu")
    from panther.cli.export import InputSpec, example_tensors, load_model
    from panther.export import Input, Output, pipeline
    from panther.export.inspection import inspect_file, print_inspection
    from panther.export.options import About, ExportOptions

    with errors_as_lines():
        specs = [InputSpec.parse(text) for text in inputs]
        module = load_model(model, checkpoint)
        examples = example_tensors(specs, data)
        class_labels = tuple(labels.split(",")) if labels is not None else None
        outputs = None
        if output or class_labels or kind or unit:
            first, *rest = output or ["output"]
            read_as = kind or ("logits" if class_labels else None)
            outputs = [Output(first, kind=read_as, labels=class_labels, unit=unit), *map(Output, rest)]
        export_options = ExportOptions(
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
            about=About(
                description=description, license=license_name, authors=tuple(author or ()), preprocessing=preprocessing
            ),
        )
        report = pipeline.run(module, list(examples.values()), to, export_options)
        print_inspection(inspect_file(report.path), Console())


app.command()(compress)
app.command()(quantize)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="An ONNX file from any exporter.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a model file: card, sizes, plan, sketched layers, and the graph that onnxruntime runs."""
    require("onnx", extra="inspect")
    import json

    from panther.export.inspection import inspect_file, print_inspection

    with errors_as_lines():
        inspection = inspect_file(file)
        if as_json:
            typer.echo(json.dumps(inspection, indent=2, ensure_ascii=False))
        else:
            print_inspection(inspection, Console())


@app.command()
def predict(
    what: Annotated[
        str, typer.Argument(metavar="FILE", help="Rows: a .csv, .npy or .json file. Or the URL, with --input.")
    ],
    rows: Annotated[Path | None, typer.Option("--input", help="The file of rows, where FILE is a URL.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="PANTHER_URL", help=f"URL of the server; {_URL} if left out.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model; the server's default if left out.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; the server's default if left out.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Number of labels to rank.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the outputs there: .npz, or .npy for a single one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="PANTHER_API_KEY", help="API key, if the server needs one.", show_default=False)
    ] = None,
) -> None:
    """Send the rows of a file to a server and print the predictions."""
    require("httpx", extra="client")
    from panther_client.command import CommandError, run

    is_url = what.startswith(("http://", "https://"))
    if is_url and rows is None:
        fail(f"{what} needs the rows: --input FILE")
    if rows is not None and not is_url:
        fail(f"FILE ({what}) and --input ({rows}) are two files; give one")
    try:
        run(
            what if is_url else url or _URL,
            rows if rows is not None else Path(what),
            model=model,
            version=version,
            top_k=top_k,
            output=output,
            as_json=as_json,
            api_key=api_key or None,
            console=Console(),
        )
    except CommandError as error:
        fail(str(error))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    help="Serve a folder of models over HTTP, with the flags of the server: panther serve --help.",
)
def serve(context: typer.Context) -> None:
    """Replace this process by the server, which is a separate program."""
    from panther.cli import server

    folder = server.folder()
    if folder is None:
        fail("the server is not part of this installation; install a wheel of panther-sketch, or serve by its image")
    require("fastapi", "uvicorn", extra="cpu")
    if importlib.util.find_spec("onnxruntime") is None:
        fail("onnxruntime is not installed; install it: pip install 'panther-sketch[cpu]', or [gpu] for CUDA")
    os.environ["_PANTHER_PROGRAM"] = "panther serve"
    os.environ["PYTHONPATH"] = server.python_path(folder)
    # -P: a folder 'app' in the working directory must not shadow the server.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "app", *context.args])  # noqa: S606 - our own program  # nosec B606


@app.command()
def sample(
    to: Annotated[Path, typer.Option(help="Folder of models to copy it to; created if missing.")] = Path("models"),
) -> None:
    """Copy the sample model, a digit classifier, into a folder of models, with a sample input beside it."""
    from panther.cli import server

    try:
        example = server.copy_sample(to)
    except OSError as error:
        fail(f"{error.filename or to}: {error.strerror}")
    except ValueError as error:
        fail(str(error))
    console = Console()
    console.print(f"wrote {to / 'digits'} and {example}; serve and ask it:", soft_wrap=True)
    console.print(f"  panther serve --model-dir {to}", soft_wrap=True)
    console.print(f"  curl -s localhost:8000/predict -d @{example}", soft_wrap=True)


def main() -> None:
    """Run the command; print errors that users can fix as one line."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
