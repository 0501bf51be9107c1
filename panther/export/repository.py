"""The model repository: NAME/VERSION/model.onnx under one folder, the layout that the server (and Triton) reads."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

from panther.export.errors import ExportError

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str) -> None:
    """Raise ValueError unless name can be a folder of the repository and a part of a URL."""
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise ValueError(
            f"model name {name!r} must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )


def versions(repository: Path, name: str) -> list[int]:
    """The versions of a model that are in the repository, ascending."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(
        int(entry.name) for entry in folder.iterdir() if entry.is_dir() and re.fullmatch(r"[1-9]\d*", entry.name)
    )


def publish(model_bytes: bytes, repository: Path, name: str) -> Path:
    """Write a model as the next version of its name.

    The version's folder is made aside, under a name that servers pass over, and renamed into place: a server that
    watches the repository sees a whole version or none, and a crash leaves at most a folder that nobody reads.

    Returns:
        The path of the file.
    """
    check_name(name)
    folder = repository / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    except OSError as error:
        raise ExportError(f"cannot write to the model repository {repository}: {error.strerror}") from error
    try:
        aside.chmod(0o755)
        write_durably(aside / MODEL_FILE, model_bytes)
        while True:
            version = max(versions(repository, name), default=0) + 1
            try:
                aside.rename(folder / str(version))
            except OSError as error:
                # another export took the number between the look and the rename
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _sync_folder(folder)
                return folder / str(version) / MODEL_FILE
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise ExportError(f"cannot write model {name!r} to {repository}: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_file(model_bytes: bytes, path: Path) -> Path:
    """Write a model to a path of the caller's, aside first and renamed into place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
        try:
            write_durably(aside, model_bytes)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    return path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and have it on the disk before anything points to it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
