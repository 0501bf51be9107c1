"""The model repository: NAME/VERSION/model.onnx under one folder, the layout that the server (and Triton) reads."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from panther.export.errors import ExportError

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9]\d*")
_ASIDE = ".writing-"
_STALE_S = 24 * 3600


class Staged:
    """Files of a model that is being written; nobody reads them before `publish`.

    Attributes:
        folder: where to write: MODEL_FILE, and what it refers to by relative path.
    """

    def __init__(self, folder: Path, target: Path, name: str) -> None:
        self.folder = folder
        self._target = target
        self._name = name

    def publish(self) -> Path:
        """Put what was written into place, all or nothing, and return the model's path."""
        _sync_all(self.folder)
        if _is_file_target(self._target):
            return self._publish_file()
        parent = self.folder.parent
        while True:
            version = max(versions(parent.parent, self._name), default=0) + 1
            try:
                self.folder.rename(parent / str(version))
            except OSError as error:
                # another export took the number between the look and the rename
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _sync(parent)
                return parent / str(version) / MODEL_FILE

    def _publish_file(self) -> Path:
        # what the model refers to first, the model last
        for entry in sorted(self.folder.iterdir(), key=lambda entry: entry.name == MODEL_FILE):
            entry.replace(self._target if entry.name == MODEL_FILE else self._target.parent / entry.name)
        _sync(self._target.parent)
        return self._target


@contextlib.contextmanager
def staged(path_or_repository: Path, name: str) -> Iterator[Staged]:
    """Make a place to write a model aside, on the same file system as where it will be.

    Args:
        path_or_repository: a path ending in .onnx, or the folder of a repository, where the model becomes the next
            version of name: its folder is made under a name that servers pass over and renamed into place, so a server
            that watches sees a whole version or none, and a crash leaves at most a folder that nobody reads.
        name: the model's.

    Raises:
        ExportError: the place can't be written to; what stood there stands there still.
    """
    parent = path_or_repository.parent if _is_file_target(path_or_repository) else path_or_repository / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        folder = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=parent))
        # mkdtemp is for secrets; a model repository is read by the server's own user
        folder.chmod(0o755)
    except OSError as error:
        raise ExportError(f"cannot write to {parent}: {error.strerror}") from error
    try:
        yield Staged(folder, path_or_repository, name)
    except OSError as error:
        raise ExportError(f"cannot write model {name!r} to {parent}: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir())


def write_text_aside(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=_ASIDE, delete=False) as file:
        aside = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            aside.chmod(0o644)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def _is_file_target(path: Path) -> bool:
    return path.suffix == ".onnx"


def _remove_stale(parent: Path) -> None:
    """Remove what exports that were killed left behind."""
    for entry in parent.glob(f"{_ASIDE}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > _STALE_S:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    """Have it on the disk before anything points to it."""
    for entry in folder.iterdir():
        entry.chmod(0o644)
        _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
