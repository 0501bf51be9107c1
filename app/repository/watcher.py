"""Watcher: notice changes in the model folder by polling.

Polling works on any file system: a bind mount, a volume, NFS, a symbolic link that is replaced. Kernel notifications
do not.

See docs/decisions/0016-watch-the-repository-by-polling.md.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.repository.folder import MODEL_FILE
from app.repository.model_settings import SETTINGS_FILE
from app.repository.versions import valid_name, valid_version

log = logging.getLogger(__name__)

_Stat = tuple[str, int, int, int]
Prints = Mapping[str, tuple[_Stat, ...]]
"""Identity of a model's files: of each version by its number, and of the model's settings by ''."""


@dataclass(frozen=True)
class Change:
    """A change of one model: versions to load, or a model to forget."""

    name: str
    versions: frozenset[str] = field(default_factory=frozenset)
    gone: bool = False


class Watcher:
    """Finds changes in a model folder since it was loaded.

    A change is reported once two consecutive polls find the same state: a file that is still being copied is
    ignored. If a copy pauses for that long, the change is reported twice, the second time for the complete file.

    Args:
        root: The folder; its contents count as loaded.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._device = 0
        self._lost = False
        try:
            self._told: dict[str, Prints] = self._look()
        except OSError:
            self._told = {}
        self._last = self._told

    def poll(self) -> list[Change]:
        """Scan the folder once."""
        before = self._device
        try:
            now = self._look()
        except OSError as error:
            self._say_lost(error.strerror or type(error).__name__)
            return []
        if not now and self._told and before != self._device:
            # A removed volume leaves an empty folder; it must not unload all models.
            self._device = before
            self._say_lost("another file system is mounted there, and it is empty")
            return []
        self._lost = False
        changes = [
            self._change(name, now.get(name))
            for name in sorted({*now, *self._told})
            if now.get(name) != self._told.get(name) and now.get(name) == self._last.get(name)
        ]
        self._last = now
        return changes

    def _change(self, name: str, now: Prints | None) -> Change:
        before = self._told.get(name, {})
        if now is None:
            self._told = {key: prints for key, prints in self._told.items() if key != name}
            return Change(name, gone=True)
        self._told = {**self._told, name: now}
        if now.get("") != before.get(""):
            return Change(name, frozenset(now) - {""})
        return Change(name, frozenset(version for version in now if now[version] != before.get(version)))

    def _say_lost(self, why: str) -> None:
        if not self._lost:
            log.error("the model folder can't be read (%s); served models stay", why)
        self._lost = True

    def _look(self) -> dict[str, Prints]:
        self._device = self._root.stat().st_dev
        with os.scandir(self._root) as folders:
            names = [folder.name for folder in folders if valid_name(folder.name)]
        found: dict[str, Prints] = {}
        for name in names:
            prints = _prints(self._root / name)
            if any(prints):
                found[name] = prints
        return found


def _prints(folder: Path) -> dict[str, tuple[_Stat, ...]]:
    try:
        with os.scandir(folder) as items:
            names = [item.name for item in items]
    except OSError:  # not a folder, or removed since the scan
        return {}
    found = {"": tuple(_stat(folder, SETTINGS_FILE))}
    for name in names:
        if valid_version(name):
            stats = _version(folder / name)
            if any(stat[0] == MODEL_FILE for stat in stats):
                found[name] = stats
    return found if len(found) > 1 else {}


def _version(folder: Path) -> tuple[_Stat, ...]:
    try:
        with os.scandir(folder) as items:
            names = sorted(item.name for item in items)
    except OSError:
        return ()
    return tuple(stat for name in names for stat in _stat(folder, name))


def _stat(folder: Path, name: str) -> Iterator[_Stat]:
    try:
        found = (folder / name).stat()
    except OSError:
        return
    yield name, found.st_size, found.st_mtime_ns, found.st_ino
