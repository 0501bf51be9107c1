"""The folder of models, ``NAME/VERSION/model.onnx``, and which of them are served."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from app.errors import AppError, LoadError, ModelNotFoundError, ModelUnavailableError
from app.loading import Load
from app.model_settings import ModelSettings, read_model_settings
from app.serving import Serving
from app.statistics import Statistics
from app.versions import (
    MAX_NAME_LENGTH,
    Entry,
    State,
    Version,
    failed,
    make_entry,
    selected,
    unselected,
    valid_name,
    valid_version,
)

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
UNLOADED = "unloaded"
LOADING = "models are being loaded"

Loader = Callable[[str, str, Path, ModelSettings], Serving]


class Repository:
    """What is on disk, what is loaded, and which version a request gets.

    Loading may happen in another thread than looking things up; one loads at a time.

    Args:
        root: the folder of models.
        policy: versions to serve, see ``selected``, where a model's own settings don't say.
        loader: makes a Serving of a name, a version, a file and the model's settings.

    Attributes:
        loads: how many loads of a model went well (``success``) or did not (``failure``).
        starting: not every model of the folder has had its turn yet, so that one that is not known may still come.
    """

    def __init__(self, root: Path, policy: str, loader: Loader) -> None:
        self.root = root
        self.policy = policy
        self._loader = loader
        self.entries: dict[str, Entry] = {}
        self.loads: Counter[tuple[str, str]] = Counter()
        self._retired: list[Serving] = []
        self._counted: dict[tuple[str, str], Statistics] = {}
        self._ending = False
        self.starting = False

    def scan(self) -> dict[str, list[str]]:
        """Names and versions on disk, whether loaded or not."""
        found: dict[str, list[str]] = {}
        if not self.root.is_dir():
            return found
        for folder in sorted(self.root.iterdir()):
            if valid_name(folder.name):
                versions = self._versions_of(folder)
                if versions:
                    found[folder.name] = versions
        return found

    @staticmethod
    def _versions_of(folder: Path) -> list[str]:
        try:
            versions = [
                item.name for item in folder.iterdir() if valid_version(item.name) and _may_be_file(_file(item))
            ]
        except PermissionError as error:
            log.error("model %s is passed over: its folder can't be read: %s", folder.name, error.strerror)
            return []
        except OSError:  # no folder, or gone since it was seen
            return []
        return sorted(versions, key=int)

    def load_all(self, unloaded: Collection[str] = (), policies: Mapping[str, str] | None = None) -> None:
        """Load every model of the folder but those ``unloaded`` by request; what fails is kept with its reason.

        Args:
            unloaded: models not to load.
            policies: policies of some models that override theirs; versions that are not there are passed over.
        """
        found = self.scan()
        pending = {
            name: Entry(name, {version: Version(version, State.LOADING, "being loaded") for version in versions})
            for name, versions in found.items()
        }
        self.entries = {**pending, **self.entries}
        for name, versions in found.items():
            if self._ending:
                return
            if name in unloaded:
                self.unload(name)
                continue
            policy = (policies or {}).get(name)
            if policy is not None and not selected(policy, versions):
                policy = None
            try:
                self.load(name, policy)
            except AppError as error:
                if not self._ending:
                    log.error("%s", error)

    def end(self) -> None:
        """Load nothing more: the server ends."""
        self._ending = True

    def load(self, name: str, policy: str | None = None, changed: Collection[str] | None = None) -> None:
        """Load the versions that the policy selects, swap them in, and drop the others.

        A version that fails leaves what is served as it was. Where nothing is served yet, ``latest`` then goes on to
        the newest version that can be loaded.

        Args:
            name: of the model.
            policy: instead of the model's own or the server's.
            changed: versions whose files have changed; others that are loaded are kept as they are. None for all.

        Raises:
            ModelNotFoundError: no such folder, or no version in it that the policy selects.
            LoadError: a version that was to be loaded can't be.
        """
        on_disk = self._versions_of(self.root / name) if valid_name(name) else []
        if not on_disk:
            raise ModelNotFoundError(f"model {name!r} is not in the repository; it needs NAME/VERSION/{MODEL_FILE}")
        try:
            settings = read_model_settings(name, self.root / name)
        except LoadError as error:
            self._refuse(name, on_disk, policy, error)
            raise
        policy = policy or settings.version_policy or self.policy
        wanted = selected(policy, on_disk)
        if not wanted:
            there = ", ".join(on_disk)
            before = self.entries.get(name)
            if before is not None and before.served is None:
                self._put(make_entry(name, {version: unselected(version) for version in on_disk}))
            raise ModelNotFoundError(f"model {name!r} has no version of version_policy {policy!r}; there are: {there}")
        load = Load(
            self.entries.get(name, Entry(name)), partial(self._load_version, name=name, settings=settings), changed
        )
        self._put(load.announced(wanted))
        self._swap(load.before, load.run(wanted, on_disk, fall_back=policy == "latest"))
        if load.failure is not None:
            raise load.failure

    def _refuse(self, name: str, on_disk: list[str], policy: str | None, error: LoadError) -> None:
        """The model's settings can't be used: what is served stays, and its versions tell why."""
        before = self.entries.get(name, Entry(name))
        fresh = {version: Version(version) for version in on_disk}
        fresh |= {item.version: item for item in before.ready()}
        for version in selected(policy or self.policy, on_disk):
            fresh[version] = failed(before, version, error)
        self.loads[name, "failure"] += 1
        self._swap(before, make_entry(name, fresh))

    def _swap(self, before: Entry, entry: Entry) -> None:
        self._put(entry)
        self._counted = {
            key: item for key, item in self._counted.items() if key[0] != entry.name or key[1] in entry.versions
        }
        staying = {id(item.serving) for item in entry.versions.values()}
        known = [item.serving for item in before.versions.values() if item.serving is not None]
        self._retired += [serving for serving in known if id(serving) not in staying]
        if None not in (entry.served, before.served) and entry.served != before.served:
            log.info("model %s: version %s takes over from %s", entry.name, entry.served, before.served)

    def _put(self, entry: Entry) -> None:
        # A new dict, since the event loop may be going through the old one.
        self.entries = {**self.entries, entry.name: entry}

    def unload(self, name: str) -> None:
        """Stop serving a model.

        Raises:
            ModelNotFoundError: the model is not known.
        """
        before = self.entry(name)
        gone = {version: Version(version, reason=UNLOADED) for version in before.versions}
        self._swap(before, Entry(name, gone))
        log.info("unloaded model %s", name)

    def forget(self, name: str) -> None:
        """Stop serving a model whose folder is gone, and know nothing of it any more."""
        before = self.entries.get(name)
        if before is None:
            return
        self._retired += [item.serving for item in before.versions.values() if item.serving is not None]
        self.entries = {key: entry for key, entry in self.entries.items() if key != name}
        self._counted = {key: item for key, item in self._counted.items() if key[0] != name}
        for outcome in ("success", "failure"):
            self.loads.pop((name, outcome), None)
        log.info("unloaded model %s: its folder is gone", name)

    def get(self, name: str, version: str | None = None) -> Serving:
        """The model that answers a request.

        Raises:
            ModelNotFoundError: unknown name or version.
            ModelUnavailableError: known, but not loaded.
        """
        entry = self.entries.get(name) or self.entry(name)
        if version is None:
            version = entry.served
            if version is None:
                raise ModelUnavailableError(f"model {name!r} is not ready: {entry.reason}")
        item = entry.versions.get(version)
        if item is None:
            raise ModelNotFoundError(
                f"model {name!r} has no version {version[:40]!r}; there are: {', '.join(entry.versions)}"
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

    def counted(self) -> dict[tuple[str, str], Statistics]:
        """The same of every version that was ever loaded and is still known: one that comes back counts on."""
        return {**self._counted, **self.statistics()}

    def index(self) -> list[Entry]:
        """What is known and what lies in the folder besides, by name."""
        listed = dict(self.entries)
        for name, versions in self.scan().items():
            known = listed.get(name, Entry(name))
            fresh = {version: Version(version) for version in versions if version not in known.versions}
            listed[name] = Entry(name, {**known.versions, **fresh})
        return [listed[name] for name in sorted(listed)]

    def names(self) -> list[str]:
        """Names of the models that are served."""
        return [name for name, entry in self.entries.items() if entry.served is not None]

    def short_of_memory(self) -> dict[str, frozenset[str]]:
        """The versions that could not be loaded for want of memory, by model."""
        found = {
            name: frozenset(item.version for item in entry.versions.values() if item.short_of_memory)
            for name, entry in self.entries.items()
        }
        return {name: versions for name, versions in found.items() if versions}

    def serving_versions(self) -> dict[str, str]:
        """The versions served of each model, as a policy that selects just them."""
        return {name: ",".join(item.version for item in entry.ready()) for name, entry in self.entries.items()}

    def problems(self) -> list[str]:
        """Why the repository as a whole is not ready; empty when it is."""
        if not self.entries:
            return [f"no model was found; the model folder needs NAME/VERSION/{MODEL_FILE}"]
        return [
            f"{entry.name}: {entry.reason}"
            for entry in self.entries.values()
            if entry.served is None and entry.reason != UNLOADED
        ]

    def entry(self, name: str) -> Entry:
        """What is known of a model.

        Raises:
            ModelNotFoundError: nothing is.
            ModelUnavailableError: nothing is yet.
        """
        entry = self.entries.get(name)
        if entry is None and self.starting:
            raise ModelUnavailableError(LOADING)
        if entry is None:
            loaded = ", ".join(self.names()) or "none"
            raise ModelNotFoundError(f"model {name[:MAX_NAME_LENGTH]!r} is not loaded; loaded: {loaded}")
        return entry

    def _load_version(self, version: str, name: str, settings: ModelSettings) -> Serving:
        """Load one version beside what is served.

        Raises:
            LoadError: it can't be.
        """
        if self._ending:
            raise LoadError(f"model {name!r} version {version} is not loaded: the server is shutting down")
        try:
            serving = self._loader(name, version, _file(self.root / name / version), settings)
        except LoadError:
            self.loads[name, "failure"] += 1
            raise
        except Exception as error:
            # Out of memory, a file that vanished, a defect: whatever it is, what is served stays.
            self.loads[name, "failure"] += 1
            log.exception("loading model %s version %s failed", name, version)
            raise LoadError(f"model {name!r} version {version} can't be loaded: {type(error).__name__}") from error
        self.loads[name, "success"] += 1
        before = self._counted.get((name, version), serving.batcher.statistics)
        serving.batcher.statistics = before
        self._counted = {**self._counted, (name, version): before}
        return serving


def _file(version_folder: Path) -> Path:
    return version_folder / MODEL_FILE


def _may_be_file(path: Path) -> bool:
    """Whether a file is there, as far as may be seen: of one that is shut off the load tells why it can't be read."""
    try:
        return path.is_file()
    except PermissionError:
        return True
