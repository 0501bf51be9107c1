"""The folder of models, ``NAME/VERSION/model.onnx``, and the served versions."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock, RLock
from weakref import WeakValueDictionary

from app.errors import AppError, LoadError, ModelNotFoundError, ModelUnavailableError
from app.repository.folder import MODEL_FILE, ModelFolder
from app.repository.listing import listed
from app.repository.model_settings import ModelSettings, read_model_settings
from app.repository.placement import PlacementSettings
from app.repository.readiness import UNLOADED, Readiness
from app.repository.reload import Load, Loader, load_version
from app.repository.served_model import Serving
from app.repository.trial_load import trials
from app.repository.versions import (
    MAX_NAME_LENGTH,
    Entry,
    State,
    Version,
    failed,
    make_entry,
    selected,
    unselected,
    valid_name,
)
from app.telemetry.statistics import Statistics

log = logging.getLogger(__name__)

LOADING = "models are loading"
_AT_ONCE = 8  # models that load concurrently at the start, so a slow one delays few others

Changed = Collection[str] | None
Placement = PlacementSettings | None


class Repository:
    """Models on disk, loaded versions, and the lookup for a request.

    Threads other than the one for lookups may load, even several at once: loads of one model run
    one after the other, and those of different models do not wait for one another.

    Args:
        root: The folder of models.
        policy: Versions to serve, see ``selected``, unless a model's settings select them.
        loader: Makes a Serving from a name, a version, a file and the model's settings.
        readiness: The models that count for readiness; by default those in the folder at the start.

    Attributes:
        loads: Number of loads that succeeded (``success``) or failed (``failure``).
        starting: Whether the first loads are unfinished, so an unknown model may still be loaded.
        folder: The models on disk.
        names: Names of the served models.
        defaults: Names of the models with ``default`` in their settings, served or not.
    """

    def __init__(self, root: Path, policy: str, loader: Loader, readiness: Readiness | None = None) -> None:
        self.folder = ModelFolder(root)
        self.readiness = readiness or Readiness()
        self.policy = policy
        self._loader = loader
        self.entries: dict[str, Entry] = {}
        self.names: tuple[str, ...] = ()
        self.defaults: tuple[str, ...] = ()
        self.loads: Counter[tuple[str, str]] = Counter()
        self._retired: list[Serving] = []
        self._counted: dict[tuple[str, str], Statistics] = {}
        self._defaults: set[str] = set()
        self._ending = False
        self._changing = RLock()
        self._model_locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()
        self.starting = False

    def load_all(
        self,
        unloaded: Collection[str] = (),
        policies: Mapping[str, str] | None = None,
        owed: Collection[str] | None = None,
        names: Collection[str] | None = None,
        placements: Mapping[str, PlacementSettings] | None = None,
    ) -> None:
        """Load every model of the folder except ``unloaded`` ones; failed models keep the reason.

        Args:
            unloaded: Models not to load.
            policies: Version policies of some models that override theirs; missing versions are skipped.
            owed: Models that count for readiness if the server started before this process; None for all in the folder.
            names: The only models to load; None for all of the folder.
            placements: Placements of some models that override theirs.

        Raises:
            OSError: The folder is not readable, for example because the process has no free file descriptor.
        """
        found = {name: versions for name, versions in self.folder.scan().items() if names is None or name in names}
        pending = {
            name: Entry(name, {version: Version(version, State.LOADING, "loading") for version in versions})
            for name, versions in found.items()
        }
        self.readiness.start(name for name in found if owed is None or name in owed)
        with self._changing:
            self._set({**pending, **self.entries})
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="load") as pool:
            for name in found:
                if name not in unloaded:
                    policy, placement = (policies or {}).get(name), (placements or {}).get(name)
                    pool.submit(self._load_at_start, self.entries[name], policy, placement)
        for name in found:
            if name in unloaded:
                self.unload(name)

    def _load_at_start(self, before: Entry, policy: str | None, placement: Placement) -> None:
        """Load a model unless a client has loaded or unloaded it meanwhile; log failures."""
        name = before.name
        if self._ending:
            return
        with suppress(OSError):  # the load reports it
            if policy is not None and not selected(policy, self.folder.versions(name)):
                policy = None
        try:
            with self._lock_of(name):
                if self.entries.get(name) is before:
                    self._load(name, policy, None, placement)
        except AppError as error:
            if not self._ending:
                log.error("%s", error)
        except Exception:  # a defect with one model must not stop the others
            log.exception("loading model %s failed", name)

    def started(self) -> None:
        """Record that the first load of every model has finished."""
        with self._changing:
            self.starting = False
            self._set(self.entries)

    def end(self) -> None:
        """Load no more models, and end running trials, because the server shuts down."""
        self._ending = True
        trials.abort()

    def load(self, name: str, policy: str | None = None, changed: Changed = None, placement: Placement = None) -> None:
        """Load the versions that the policy selects, swap them in, and drop the others.

        A version that fails to load leaves the served versions unchanged. If none is served yet, ``latest`` continues
        with the newest version that loads.

        Args:
            name: Name of the model.
            policy: Overrides the version policy of the model and the server.
            changed: Versions with changed files; other loaded versions are kept. None for all.
            placement: Overrides the placement of the model.

        Raises:
            ModelNotFoundError: The model has no folder, or no version that the policy selects.
            LoadError: A selected version failed to load.
        """
        with self._lock_of(name):
            self._load(name, policy, changed, placement)

    def _lock_of(self, name: str) -> Lock:
        with self._changing:
            return self._model_locks.setdefault(name, Lock())

    def _load(self, name: str, policy: str | None, changed: Changed, placement: Placement) -> None:
        try:
            on_disk = self.folder.versions(name) if valid_name(name) else []
        except OSError as error:
            problem = LoadError(f"the folder of model {name!r} can't be read: {error.strerror}")
            self._refuse(name, list(self.entries.get(name, Entry(name)).versions), policy, problem)
            raise problem from error
        if not on_disk:
            raise ModelNotFoundError(f"model {name!r} is not in the repository; add NAME/VERSION/{MODEL_FILE}")
        try:
            settings = read_model_settings(name, self.folder.root / name)
        except LoadError as error:
            self._refuse(name, on_disk, policy, error)
            raise
        if placement is not None:
            settings = settings.model_copy(update={"placement": placement})
        with self._changing:
            (self._defaults.add if settings.default else self._defaults.discard)(name)
            self._set(self.entries)
        policy = policy or settings.version_policy or self.policy
        wanted = selected(policy, on_disk)
        if not wanted:
            there = ", ".join(on_disk)
            before = self.entries.get(name)
            if before is not None and before.served is None:
                self._put(make_entry(name, {version: unselected(version) for version in on_disk}))
            raise ModelNotFoundError(f"model {name!r} has no version of version_policy {policy!r}; available: {there}")
        load = Load(
            self.entries.get(name, Entry(name)), partial(self._load_version, name=name, settings=settings), changed
        )
        self._put(load.announced(wanted))
        self._swap(load.before, load.run(wanted, on_disk, fall_back=policy == "latest"))
        if load.failure is not None:
            raise load.failure

    def _refuse(self, name: str, on_disk: list[str], policy: str | None, error: LoadError) -> None:
        """Handle invalid settings: the served versions stay, and all versions show the reason."""
        before = self.entries.get(name, Entry(name))
        fresh = {version: Version(version) for version in on_disk}
        fresh |= {item.version: item for item in before.ready()}
        for version in selected(policy or self.policy, on_disk):
            fresh[version] = failed(before, version, error)
        self._count(name, "failure")
        self._swap(before, make_entry(name, fresh))

    def _swap(self, before: Entry, entry: Entry) -> None:
        staying = {id(item.serving) for item in entry.versions.values()}
        known = [item.serving for item in before.versions.values() if item.serving is not None]
        with self._changing:
            self._set({**self.entries, entry.name: entry})
            self._counted = {
                key: item for key, item in self._counted.items() if key[0] != entry.name or key[1] in entry.versions
            }
            self._retired += [serving for serving in known if id(serving) not in staying]
        if entry.served is not None and before.served is not None and entry.served != before.served:
            log.info("model %s: version %s takes over from %s", entry.name, entry.served, before.served)
        elif entry.served is None and before.served is not None and entry.reason != UNLOADED:
            log.error("model %s is no longer served: %s", entry.name, entry.reason)
        if before.failing and not entry.failing and entry.served is not None:
            log.info("model %s has recovered: version %s is served", entry.name, entry.served)

    def _put(self, entry: Entry) -> None:
        with self._changing:
            self._set({**self.entries, entry.name: entry})

    def _set(self, entries: dict[str, Entry]) -> None:
        # A new dict, because the event loop may be iterating over the old one.
        self.entries = entries
        self.names = tuple(name for name, entry in entries.items() if entry.served is not None)
        self.defaults = tuple(name for name in entries if name in self._defaults)
        self.readiness.update(entries, starting=self.starting)

    def _count(self, name: str, outcome: str) -> None:
        with self._changing:
            self.loads[name, outcome] += 1

    def unload(self, name: str) -> None:
        """Stop serving a model; waits for a running load of it.

        Raises:
            ModelNotFoundError: The model is unknown.
        """
        with self._lock_of(name):
            before = self.entry(name)
            gone = {version: Version(version, reason=UNLOADED) for version in before.versions}
            self._swap(before, Entry(name, gone))
        log.info("unloaded model %s", name)

    def forget(self, name: str) -> None:
        """Stop serving a model with a removed folder, and remove its entry; waits like ``unload``."""
        with self._lock_of(name), self._changing:
            before = self.entries.get(name)
            if before is None:
                return
            self._retired += [item.serving for item in before.versions.values() if item.serving is not None]
            self._set({key: entry for key, entry in self.entries.items() if key != name})
            self._counted = {key: item for key, item in self._counted.items() if key[0] != name}
            for outcome in ("success", "failure"):
                self.loads.pop((name, outcome), None)
        log.info("unloaded model %s: its folder was removed", name)

    def get(self, name: str, version: str | None = None) -> Serving:
        """The model for a request.

        Raises:
            ModelNotFoundError: The name or version is unknown.
            ModelUnavailableError: The model or version is not loaded.
        """
        entry = self.entries.get(name) or self.entry(name)
        if version is None:
            version = entry.served
            if version is None:
                raise ModelUnavailableError(f"model {name!r} is not ready: {entry.reason}")
        item = entry.versions.get(version)
        if item is None:
            raise ModelNotFoundError(
                f"model {name!r} has no version {version[:40]!r}; available: {', '.join(entry.versions)}"
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
        """Versions replaced or unloaded since the last call; the caller drains and closes them."""
        with self._changing:
            retired, self._retired = self._retired, []
        return retired

    def statistics(self) -> dict[tuple[str, str], Statistics]:
        """Live counters of every loaded version, by name and version."""
        found = {(item.model.name, item.model.version): item.batcher.statistics for item in self.servings()}
        for statistics in found.values():
            statistics.settle()
        return found

    def counted(self) -> dict[tuple[str, str], Statistics]:
        """Counters of every known version that was ever loaded; a reloaded version continues its counts."""
        return {**self._counted, **self.statistics()}

    def index(self) -> list[Entry]:
        """All entries, and skipped folders, by name."""
        return listed(self.entries, self.folder)

    def to_retry(self) -> dict[str, frozenset[str]]:
        """Versions that failed to load because memory, time or file descriptors were short, by model."""
        found = {
            name: frozenset(item.version for item in entry.versions.values() if item.may_recover)
            for name, entry in self.entries.items()
        }
        return {name: versions for name, versions in found.items() if versions}

    def starved(self) -> list[str]:
        """Models that are not served because memory or file descriptors were short."""
        short, entries = self.to_retry(), self.entries
        return [name for name in short if name in entries and entries[name].served is None]

    def serving_versions(self) -> dict[str, str]:
        """The served versions of each model, as a policy that selects exactly them."""
        return {name: ",".join(item.version for item in entry.ready()) for name, entry in self.entries.items()}

    def problems(self) -> list[str]:
        """Reasons why the repository is not ready; empty if it is."""
        return self.readiness.problems(self.entries)

    def entry(self, name: str) -> Entry:
        """The entry of a model.

        Raises:
            ModelNotFoundError: The model is unknown.
            ModelUnavailableError: No version of the model is served yet.
        """
        entry = self.entries.get(name)
        if entry is None and self.starting:
            raise ModelUnavailableError(LOADING)
        if entry is None:
            loaded = ", ".join(self.names) or "none"
            raise ModelNotFoundError(f"model {name[:MAX_NAME_LENGTH]!r} is not loaded; loaded: {loaded}")
        return entry

    def _load_version(self, version: str, name: str, settings: ModelSettings) -> Serving:
        """Load one version beside the served ones.

        Raises:
            LoadError: The load failed.
        """
        ending = LoadError(f"model {name!r} version {version} is not loaded: the server is shutting down")
        if self._ending:
            raise ending
        try:
            serving = load_version(self._loader, self.folder, name, version, settings)
        except LoadError as error:
            if self._ending:
                raise ending from error
            self._count(name, "failure")
            raise
        with self._changing:
            self.loads[name, "success"] += 1
            before = self._counted.get((name, version), serving.batcher.statistics)
            serving.batcher.statistics = before
            self._counted = {**self._counted, (name, version): before}
        return serving
