"""Validation of names in a remote repository: only safe paths below the mirror become files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.errors import shortened
from app.repository.folder import MODEL_FILE
from app.repository.versions import NAME_RULE, valid_name, valid_version

MOST_PARTS = 16
_MOST_BYTES, _MOST_PART_BYTES = 1024, 255
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class Names:
    """The classified names of a listing.

    Attributes:
        versions: Files of each version, by ``NAME/VERSION``.
        loose: Files outside the versions, such as ``NAME/panther.toml``.
        refused: Names that are not mirrored, with the reason.
    """

    versions: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def accepted(self) -> list[str]:
        """All names that are mirrored."""
        return [*(name for files in self.versions.values() for name in files), *self.loose]


def sort_names(names: Iterable[str]) -> Names:
    """Classify the names of a listing, relative to the repository's root.

    Hidden files and the empty objects that represent folders are skipped without a message.
    """
    found = Names()
    accepted = []
    for name in sorted(names):
        if name.endswith("/") or _is_hidden(name):
            continue
        reason = why_refused(name)
        if reason is None:
            accepted.append(name)
        else:
            found.refused[name] = reason
    folders = {parent for name in accepted for parent in _parents(name)}
    for name in accepted:
        if name in folders:  # possible in an object store
            found.refused[name] = "both a file and a folder have this name"
            continue
        model, part, *rest = name.split("/")
        if rest and valid_version(part):
            found.versions.setdefault(f"{model}/{part}", []).append(name)
        else:
            found.loose.append(name)
    return found


def why_refused(name: str) -> str | None:
    """The reason why a name cannot be a file in the mirror; None if it can."""
    parts = name.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeError:
        return "it is not Unicode"
    if "" in parts or "." in parts or ".." in parts:
        return "its path has an empty part, '.' or '..'"
    if _ODD.search(name):
        return "it has a control character or a backslash"
    if max(sizes) > _MOST_PART_BYTES or sum(sizes) > _MOST_BYTES or len(parts) > MOST_PARTS:
        return (
            f"a path may have at most {_MOST_BYTES} bytes in {MOST_PARTS} parts, and each of these at most "
            f"{_MOST_PART_BYTES} bytes"
        )
    if len(parts) == 1:
        model = shortened(name.removesuffix(".onnx"), 40)
        return f"a model requires folders with its name and version: {model}/1/{MODEL_FILE}"
    return None if valid_name(parts[0]) else f"its first part is not a valid model name: {NAME_RULE}"


def _is_hidden(name: str) -> bool:
    """Whether a part of a path is hidden (starts with a single dot); '..' and empty parts are refused by name."""
    parts = name.split("/")
    return any(part[:1] == "." and part[1:2] not in ("", ".") for part in parts) and "" not in parts


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
