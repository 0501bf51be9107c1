"""Errors of the `panther` command, printed as one line without a traceback."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Print errors that users can fix as one line, without a traceback."""
    from panther.export.errors import ExportError

    try:
        yield
    except (ExportError, ValueError) as error:
        fail(str(error))


def require(*modules: str, extra: str) -> None:
    """Exit if packages of an extra are not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        fail(f"{', '.join(missing)} {verb} not installed; install the extra: pip install 'panther-sketch[{extra}]'")


def fail(message: str) -> NoReturn:
    """Exit with a line on standard error."""
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(1)
