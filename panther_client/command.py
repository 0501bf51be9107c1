"""``panther predict``: send the rows of a file to a server, and write the response to a terminal or a file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from panther_client.client import Client
from panther_client.errors import AccessDeniedError, ClientError
from panther_client.wire import PredictResult

_SHOWN_ROWS = 20


class CommandError(Exception):
    """An error that the user can fix; its message is one line."""


def run(
    url: str,
    rows: Path,
    *,
    model: str | None,
    version: str | None,
    top_k: int | None,
    output: Path | None,
    as_json: bool,
    api_key: str | None = None,
    console: Console,
) -> None:
    """Send the request and show the response.

    Raises:
        CommandError: The file cannot be read or written, or the server refuses the request.
    """
    inputs = _read(rows)
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"URL ({url}) must start with http:// or https://")
    try:
        with Client(url, api_key=api_key) as client:
            result = client.predict(inputs, model=model, version=version, top_k=top_k)
    except AccessDeniedError as error:
        hint = "" if api_key else "; set it with --api-key or PANTHER_API_KEY"
        raise CommandError(f"{error}{hint}") from None
    except ClientError as error:
        raise CommandError(str(error)) from None
    if output is not None:
        _write(result, output)
    if as_json:
        _print_json(result)
    else:
        _print_table(result, console)


def _read(path: Path) -> Any:
    """The rows of a file: the text of a CSV file, the array of a .npy file, a table or rows of a JSON file."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".npy", ".json"):
        raise CommandError(f"{path} must end in .csv, .npy or .json")
    try:
        if suffix == ".csv":
            return path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            document = json.loads(path.read_text(encoding="utf-8"))
            return document["inputs"] if isinstance(document, dict) and "inputs" in document else document
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if "allow_pickle" in reason:
            reason = "it is not an array of numbers in numpy's format"
        raise CommandError(f"{path} can't be read as a {suffix} file: {reason}") from None
    if not isinstance(array, np.ndarray):
        raise CommandError(f"{path} holds several arrays; use a .npy file with one array")
    return array


def _write(result: PredictResult, output: Path) -> None:
    try:
        if output.suffix == ".npy":
            if len(result.outputs) != 1:
                raise CommandError(f"the model has {len(result.outputs)} outputs; --output must end in .npz")
            np.save(output, next(iter(result.outputs.values())))
        elif output.suffix == ".npz":
            np.savez(output, allow_pickle=False, **result.outputs)
        else:
            raise CommandError(f"--output ({output}) must end in .npy or .npz")
    except OSError as error:
        raise CommandError(f"{output} can't be written: {error.strerror}") from None


def _print_json(result: PredictResult) -> None:
    document: dict[str, Any] = {
        "model": result.model,
        "version": result.version,
        "outputs": {name: array.tolist() for name, array in result.outputs.items()},
    }
    if result.predictions is not None:
        document["predictions"] = [asdict(item) for item in result.predictions]
    print(json.dumps(document, ensure_ascii=False))  # noqa: T201 - the output of the command


def _print_table(result: PredictResult, console: Console) -> None:
    table = Table(title=f"{result.model} version {result.version}")
    table.add_column("row", justify="right")
    if result.predictions is not None:
        table.add_column("label")
        table.add_column("probability", justify="right")
        ranked = any(item.top_k for item in result.predictions)
        if ranked:
            table.add_column("then")
        for number, item in enumerate(result.predictions[:_SHOWN_ROWS]):
            then = ", ".join(f"{label} {probability:.4f}" for label, probability in (item.top_k or [])[1:])
            table.add_row(str(number), item.label, f"{item.probability:.4f}", *([then] if ranked else []))
        count = len(result.predictions)
    else:
        count = min(len(array) if array.ndim else 1 for array in result.outputs.values())
        for name in result.outputs:
            table.add_column(name)
        for number in range(min(count, _SHOWN_ROWS)):
            cells = [
                str(np.array2string(np.atleast_1d(array)[number], threshold=8)) for array in result.outputs.values()
            ]
            table.add_row(str(number), *cells)
    console.print(table)
    if count > _SHOWN_ROWS:
        console.print(f"… and {count - _SHOWN_ROWS} more rows (show all with --json or --output)")
