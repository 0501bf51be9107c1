"""The folder of models, ``NAME/VERSION/model.onnx``, and which of them are served."""

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from app.errors import AppError, LoadError, ModelNotFoundError, ModelUnavailableError
from app.serving import Serving
from app.statistics import Statistics

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z|0\Z")

Loader = Callable[[str, str, Path], Serving]


class State(StrEnum):
    """Where a version stands; the words of the repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass
class Version:
    """One version of a model: its state, the reason of that, and the loaded model when it is READY."""

    version: str
    state: State = State.UNAVAILABLE
    reason: str = "not loaded"
    serving: Serving | None = None
    loaded_at: float | None = None


@dataclass
class Entry:
    """A model of the folder with its versions, the oldest first."""

    name: str
    versions: dict[str, Version] = field(default_factory=dict)
    served: str | None = None

    def ready(self) -> list[Version]:
        """The versions that are served, the oldest first."""
        return [item for item in self.versions.values() if item.state is State.READY]

    @property
    def reason(self) -> str:
        """Why the newest version is not served; empty when it is."""
        return next((item.reason for item in reversed(self.versions.values()) if item.state is not State.READY), "")


def selected(policy: str, versions: list[str]) -> list[str]:
    """The versions that a policy (``latest``, ``all``, ``1,3``) takes from those there are, the oldest first."""
    ordered = sorted(versions, key=int)
    if policy == "latest":
        return ordered[-1:]
    if policy == "all":
        return ordered
    wanted = {part.strip() for part in policy.split(",")}
    return [version for version in ordered if version in wanted]


class Repository:
    """What is on disk, what is loaded, and which version a request gets.

    Args:
        root: the folder of models.
        policy: versions to serve, see ``selected``.
        loader: makes a Serving of a name, a version and a file.
    """

    def __init__(self, root: Path, policy: str, loader: Loader) -> None:
        self.root = root
        self.policy = policy
        self._loader = loader
        self.entries: dict[str, Entry] = {}
        self._retired: list[Serving] = []

    def scan(self) -> dict[str, list[str]]:
        """Names and versions on disk, whether loaded or not."""
        found: dict[str, list[str]] = {}
        if not self.root.is_dir():
            return found
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and valid_name(folder.name):
                versions = [
                    item.name for item in folder.iterdir() if _VERSION.match(item.name) and _file(item).is_file()
                ]
                if versions:
                    found[folder.name] = sorted(versions, key=int)
        return found

    def load_all(self, unloaded: Collection[str] = ()) -> None:
        """Load every model of the folder but those ``unloaded`` by request; what fails is kept with its reason."""
        found = self.scan()
        for name, versions in found.items():
            pending = {version: Version(version, State.LOADING, "being loaded") for version in versions}
            self.entries.setdefault(name, Entry(name, pending))
        for name in found:
            if name in unloaded:
                self.unload(name)
                continue
            try:
                self.load(name)
            except AppError as error:
                log.error("%s", error)

    def load(self, name: str) -> None:
        """Load the versions that the policy selects, swap them in, and drop the others.

        A version that fails leaves what is served as it was.

        Raises:
            ModelNotFoundError: no such folder, or no version in it.
            LoadError: a version that was to be loaded can't be.
        """
        on_disk = self.scan().get(name, []) if valid_name(name) else []
        if not on_disk:
            raise ModelNotFoundError(f"model {name!r} is not in the repository; it needs NAME/VERSION/{MODEL_FILE}")
        wanted = selected(self.policy, on_disk)
        if not wanted:
            there = ", ".join(on_disk)
            raise ModelNotFoundError(
                f"model {name!r} has no version of version_policy {self.policy!r}; there are: {there}"
            )
        entry = self.entries.setdefault(name, Entry(name))
        fresh: dict[str, Version] = {}
        failure: LoadError | None = None
        for version in wanted:
            try:
                serving = self._loader(name, version, _file(self.root / name / version))
                known = entry.versions.get(version)
                if known is not None and known.serving is not None:
                    serving.batcher.statistics = known.serving.batcher.statistics
                fresh[version] = Version(version, State.READY, "", serving, time.time())
            except LoadError as error:
                failure = error
                fresh[version] = _kept(entry, version, f"{error}")
        if not any(item.state is State.READY for item in fresh.values()):
            for item in entry.ready():  # nothing new works: go on with what was served
                fresh.setdefault(item.version, item)
        for version in on_disk:
            fresh.setdefault(version, Version(version, reason="not selected by the version policy"))
        self._swap(entry, fresh)
        if failure is not None:
            raise failure

    def _swap(self, entry: Entry, fresh: dict[str, Version]) -> None:
        staying = {id(item.serving) for item in fresh.values()}
        known = [item.serving for item in entry.versions.values() if item.serving is not None]
        self._retired += [serving for serving in known if id(serving) not in staying]
        entry.versions = dict(sorted(fresh.items(), key=lambda pair: int(pair[0])))
        self._changed(entry)

    def unload(self, name: str) -> None:
        """Stop serving a model.

        Raises:
            ModelNotFoundError: the model is not known.
        """
        entry = self.entry(name)
        for item in entry.versions.values():
            if item.serving is not None:
                self._retired.append(item.serving)
            item.state, item.reason, item.serving, item.loaded_at = State.UNAVAILABLE, "unloaded", None, None
        self._changed(entry)

    def get(self, name: str, version: str | None = None) -> Serving:
        """The model that answers a request.

        Raises:
            ModelNotFoundError: unknown name or version.
            ModelUnavailableError: known, but not loaded.
        """
        entry = self.entry(name)
        if version is None:
            if entry.served is None:
                raise ModelUnavailableError(f"model {name!r} is not ready: {entry.reason}")
            version = entry.served
        item = entry.versions.get(version)
        if item is None:
            raise ModelNotFoundError(
                f"model {name!r} has no version {version!r}; there are: {', '.join(entry.versions)}"
            )
        if item.serving is None:
            raise ModelUnavailableError(f"model {name!r} version {version} is not ready: {item.reason}")
        return item.serving

    def servings(self) -> Iterator[Serving]:
        """Every loaded version."""
        for entry in self.entries.values():
            for item in entry.ready():
                if item.serving is not None:
                    yield item.serving

    def take_retired(self) -> list[Serving]:
        """What was replaced or unloaded since the last call; its owner lets it finish and closes it."""
        retired, self._retired = self._retired, []
        return retired

    def statistics(self) -> dict[tuple[str, str], Statistics]:
        """Live figures of every loaded version, by name and version."""
        return {(item.model.name, item.model.version): item.batcher.statistics for item in self.servings()}

    def index(self) -> list[Entry]:
        """What is known and what lies in the folder besides, by name."""
        listed = dict(self.entries)
        for name, versions in self.scan().items():
            known = listed.get(name, Entry(name))
            fresh = {version: Version(version) for version in versions if version not in known.versions}
            listed[name] = Entry(name, {**known.versions, **fresh}, known.served)
        return [listed[name] for name in sorted(listed)]

    def names(self) -> list[str]:
        """Names of the models that are served."""
        return [name for name, entry in self.entries.items() if entry.served is not None]

    def problems(self) -> list[str]:
        """Why the repository as a whole is not ready; empty when it is."""
        if not self.entries:
            return [f"no model was found; the model folder needs NAME/VERSION/{MODEL_FILE}"]
        return [
            f"{entry.name}: {entry.reason}"
            for entry in self.entries.values()
            if entry.served is None and entry.reason != "unloaded"
        ]

    def entry(self, name: str) -> Entry:
        """What is known of a model.

        Raises:
            ModelNotFoundError: nothing is.
        """
        entry = self.entries.get(name)
        if entry is None:
            loaded = ", ".join(self.names()) or "none"
            raise ModelNotFoundError(f"model {name[:MAX_NAME_LENGTH]!r} is not loaded; loaded: {loaded}")
        return entry

    def _changed(self, entry: Entry) -> None:
        ready = entry.ready()
        entry.served = ready[-1].version if ready else None


def valid_name(name: str) -> bool:
    """Whether a name may be a model's: no separator, no leading dot, not too long."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.match(name) is not None


def _file(version_folder: Path) -> Path:
    return version_folder / MODEL_FILE


def _kept(entry: Entry, version: str, reason: str) -> Version:
    """What becomes of a version that could not be loaded: as it was where it is served, else unavailable."""
    known = entry.versions.get(version)
    if known is not None and known.state is State.READY:
        known.reason = f"reload failed: {reason}"
        return known
    return Version(version, State.UNAVAILABLE, reason)
