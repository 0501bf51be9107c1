"""The model repository: NAME/VERSION/model.onnx under one folder, the layout that the server (and Triton) reads.

See docs/decisions/0049-publish-versions-by-rename.md.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from panther.export.errors import ExportError

MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.pbtxt"
# Same rule as the server's (app/repository/versions.py): a model is served under the name of its export.
_MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9]\d*")
_ASIDE = ".writing-"
_STALE_S = 24 * 3600


class Staged:
    """Files of a model that is being written; they are invisible before `publish`.

    Attributes:
        folder: where to write: MODEL_FILE, and what it refers to by relative path.
        in_repository: whether they become a version of a repository; False for a file of the caller's own.
        data_name: what a file with the model's large weights shall be called.
    """

    def __init__(self, root: Path, target: Path, name: str) -> None:
        self.in_repository = not _is_file_target(target)
        self._root = root
        self._target = target
        self._name = name
        self.folder = root / "1"
        # the existing file keeps its data until the new one has replaced it
        self.data_name = f"{MODEL_FILE}.data" if self.in_repository else f"{target.name}.{secrets.token_hex(4)}.data"

    def publish(self, config: str) -> Path:
        """Move the written files into place, all or nothing, and return the model's path.

        Args:
            config: what config.pbtxt shall say; not written beside a file of the caller's own.
        """
        _sync_all(self.folder)
        if not self.in_repository:
            return self._publish_file()
        model = self._target / self._name
        if not model.exists():
            # one rename publishes the first version with its folder and configuration
            write_text_aside(self._root / CONFIG_FILE, config)
            _sync(self._root)
            with _unless_taken():
                self._root.rename(model)
                _sync(self._target)
                return model / "1" / MODEL_FILE
        while True:
            version = max(versions(self._target, self._name), default=0) + 1
            # another export may take the number between the listing and the rename
            with _unless_taken():
                self.folder.rename(model / str(version))
                _sync(model)
                _write_config(model / CONFIG_FILE, config)
                return model / str(version) / MODEL_FILE

    def _publish_file(self) -> Path:
        # data files first, the model last
        for entry in sorted(self.folder.iterdir(), key=lambda entry: entry.name == MODEL_FILE):
            entry.replace(self._target if entry.name == MODEL_FILE else self._target.parent / entry.name)
        _sync(self._target.parent)
        for entry in self._target.parent.glob(f"{glob.escape(self._target.name)}.{'[0-9a-f]' * 8}.data"):
            if entry.name != self.data_name:
                entry.unlink(missing_ok=True)
        return self._target


@contextlib.contextmanager
def staged(path_or_repository: Path, name: str) -> Iterator[Staged]:
    """Make a place to write a model aside, on the same file system as where it will be.

    Args:
        path_or_repository: a path ending in .onnx, or the folder of a repository, where the model becomes the next
            version of name: its folder is made under a name that servers pass over and renamed into place, so a server
            that watches sees a whole version or none, and a crash leaves at most an unused folder.
        name: the model's.

    Raises:
        ExportError: the place can't be written to; what stood there stands there still.
    """
    parent = path_or_repository.parent if _is_file_target(path_or_repository) else path_or_repository
    if not _is_file_target(path_or_repository) and (parent / name).is_dir():
        # may be a separate mount
        parent /= name
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        root = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=parent))
        stage = Staged(root, path_or_repository, name)
        stage.folder.mkdir()
        # mkdtemp makes private folders, but the server runs as another user
        root.chmod(0o755)
        stage.folder.chmod(0o755)
    except OSError as error:
        raise ExportError(f"cannot write to {parent}: {error.strerror}") from error
    try:
        yield stage
    except OSError as error:
        raise ExportError(f"cannot write model {name!r} to {parent}: {error.strerror}") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for folder in missing:
            # remove the folders that this export created; not empty after success
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_name(name: str) -> None:
    """Raise ValueError unless name can be a folder of the repository and a part of a URL."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        raise ValueError(
            f"model name {name!r} must be 1 to {_MAX_NAME_LENGTH} letters, digits, '.', '_' or '-', "
            "and must not begin with '.' or '-'"
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


@contextlib.contextmanager
def _unless_taken() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _write_config(path: Path, config: str) -> None:
    """Write the configuration, unless it exists already or a user has changed it."""
    first_line, _, _ = config.partition("\n")
    before = path.read_text(errors="replace") if path.exists() else first_line
    if before.startswith(first_line) and before != config:
        write_text_aside(path, config)


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
