"""The model folder on disk: ``NAME/VERSION/model.onnx``, and entries with invalid names."""

import logging
import os
from pathlib import Path

from app.errors import LoadError
from app.repository.versions import NAME_RULE, VERSION_RULE, valid_name, valid_version
from app.system.files import require_regular
from app.system.users import process_user

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_MOST_SKIPPED = 1000


class ModelFolder:
    """A folder of models.

    Args:
        root: The folder.

    Attributes:
        skipped: Misplaced or misnamed models by (name, version), with the remedy, from the last scan.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: dict[tuple[str, str], str] = {}
        self._told: set[tuple[str, str]] = set()

    def scan(self) -> dict[str, list[str]]:
        """Names and versions on disk, loaded or not; skipped entries are logged once.

        Raises:
            OSError: The folder is not readable, for example because the process has no free file descriptor.
        """
        found: dict[str, list[str]] = {}
        skipped: dict[tuple[str, str], str] = {}
        if not self.root.is_dir():
            return found
        for item in sorted(self.root.iterdir()):
            versions = self.versions(item.name) if valid_name(item.name) else []
            if versions:
                found[item.name] = versions
            if len(skipped) < _MOST_SKIPPED:
                skipped.update(_misplaced(item))
        self.skipped = skipped
        for key in [key for key in skipped if key not in self._told]:
            log.warning("%s is skipped: %s", "/".join(part for part in key if part), skipped[key])
        self._told = set(skipped)
        return found

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the oldest first.

        Raises:
            OSError: The folder is temporarily unreadable, for example because the process has no free file descriptor.
        """
        folder = self.root / name
        try:
            versions = [
                item.name
                for item in folder.iterdir()
                if valid_version(item.name) and _may_be_file(self.file(name, item.name))
            ]
        except PermissionError as error:
            reason = f"{process_user()} has no permission to read its folder {folder}"
            log.error("model %s is skipped: %s: %s", name, reason, error.strerror)
            return []
        except (FileNotFoundError, NotADirectoryError):  # or removed since the scan
            return []
        return sorted(versions, key=int)

    def file(self, name: str, version: str) -> Path:
        """Path of the ONNX file of a version."""
        return self.root / name / version / MODEL_FILE


def require_model_file(name: str, version: str, path: Path) -> None:
    """Check that a model file is a regular file: onnxruntime would block on a FIFO.

    Raises:
        LoadError: It is not a regular file, or this process has no permission to read it.
    """
    where = f"model {name!r} version {version}"
    shown = f"{name}/{version}/{path.name}"  # without the path of the model folder, because clients see it
    try:
        found = require_regular(path)
        if os.access(path, os.R_OK):
            return
        mode = f" (its mode is {found.st_mode & 0o7777:o}, its owner has uid {found.st_uid})"
    except PermissionError:
        mode = ""
    except OSError as error:
        raise LoadError(f"{where}: {path.name} can't be read: {error.strerror}") from None
    raise LoadError(f"{where}: {process_user()} has no permission to read {shown}{mode}")


def _may_be_file(path: Path) -> bool:
    """Whether a version exists. If its file is unreadable or not regular, the load reports the reason."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _misplaced(item: Path) -> dict[tuple[str, str], str]:
    """Find misplaced or misnamed models in a part of the model folder: (name, version) and the reason."""
    if item.name.startswith("."):
        return {}
    if item.suffix == ".onnx" and not item.is_dir():
        return {(item.name, ""): f"a model requires folders with its name and version: {item.stem}/1/{MODEL_FILE}"}
    try:
        parts = sorted(part for part in item.iterdir() if _holds_onnx(part))
        if parts and not valid_name(item.name):
            return {(item.name, ""): f"its name is not a valid model name: {NAME_RULE}"}
        reasons = {(item.name, part.name): _why_no_version(part) for part in parts}
    except OSError:  # not a folder, not readable, or removed since the scan
        return {}
    return {key: why for key, why in reasons.items() if why is not None}


def _why_no_version(part: Path) -> str | None:
    """The reason why an entry with an ONNX file is not a version of a model; None if it is one."""
    if not part.is_dir():
        return f"the file must be in a folder for its version: {part.parent.name}/1/{MODEL_FILE}"
    if not valid_version(part.name):
        return f"its name is not a version: {VERSION_RULE}"
    return None if _may_be_file(part / MODEL_FILE) else f"it has no file {MODEL_FILE}"


def _holds_onnx(part: Path) -> bool:
    """Whether a path is an ONNX file, or a folder with one."""
    if part.name.startswith("."):
        return False
    if not part.is_dir():
        return part.suffix == ".onnx"
    return any(item.suffix == ".onnx" for item in part.iterdir())
