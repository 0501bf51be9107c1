"""The `panther` command."""

from panther.cli.commands import app, main

__all__ = ["app", "main"]
