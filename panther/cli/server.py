"""The server's folder: beside this package in a checkout, within ``panther_server`` where a wheel is installed.

See docs/decisions/0081-server-inside-panther-server.md.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_PLACE = Path(__file__).resolve().parents[2]
"""Of the packages: the checkout, or site-packages."""


def folder(place: Path = _PLACE) -> Path | None:
    """The folder with the server's package ``app``, or None.

    Args:
        place: the folder of the package ``panther``.
    """
    for candidate in (place / "panther_server", place):
        # the marker tells our folder from another package of the same name in site-packages
        if (candidate / "app" / "application.py").is_file() and (candidate / "app" / "repository").is_dir():
            return candidate
    return None


def python_path(server: Path) -> str:
    """``PYTHONPATH`` for the server's process: its folder first, then the user's own path."""
    return os.pathsep.join(filter(None, (str(server), os.environ.get("PYTHONPATH"))))


def copy_sample(models: Path, place: Path = _PLACE) -> Path:
    """Copy the sample model into a folder of models, and an input for it beside that folder.

    Args:
        models: the folder of models; created if missing.
        place: the folder of the package ``panther``.

    Returns:
        The path of the input.

    Raises:
        ValueError: there is a model of that name already, or this installation has no sample.
        OSError: it can't be written.
    """
    source = folder(place)
    if source is None or not (source / "models" / "digits").is_dir():
        raise ValueError("this installation has no sample model; install a wheel of panther-sketch")
    if (models / "digits").exists():
        raise ValueError(f"{models / 'digits'} already exists; name another folder with --to")
    shutil.copytree(source / "models" / "digits", models / "digits")
    example = models.parent / "digit.json"
    if not example.exists():
        shutil.copy(source / "examples" / "digit.json", example)
    return example
