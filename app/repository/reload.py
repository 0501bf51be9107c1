"""One load of a model: versions to load, versions to keep, and failures; and the load of one version.

See docs/decisions/0002-load-models-off-the-event-loop.md.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from app.errors import LoadError
from app.repository.folder import ModelFolder, require_model_file
from app.repository.model_settings import ModelSettings
from app.repository.served_model import Serving
from app.repository.versions import Entry, State, Version, failed, make_entry, unselected

log = logging.getLogger(__name__)

Loader = Callable[[str, str, Path, ModelSettings], Serving]
"""Makes a Serving from a name, a version, a file and the model's settings."""


def load_version(loader: Loader, folder: ModelFolder, name: str, version: str, settings: ModelSettings) -> Serving:
    """Load one version; every failure is a LoadError, so the served versions stay.

    Raises:
        LoadError: The file can't be read, the model is invalid, or memory is exhausted.
    """
    path = folder.file(name, version)
    try:
        require_model_file(name, version, path)
        return loader(name, version, path, settings)
    except LoadError:
        raise
    except OSError as error:
        # A file that was removed, or is temporarily unreadable, for example without a free file descriptor.
        problem = error.strerror or type(error).__name__
        raise LoadError(f"model {name!r} version {version} can't be read: {problem}") from error
    except Exception as error:
        # Out of memory, or a defect.
        log.exception("loading model %s version %s failed", name, version)
        raise LoadError(f"model {name!r} version {version} can't be loaded: {type(error).__name__}") from error


class Load:
    """One load of a model.

    Args:
        before: The known state of the model.
        load_version: Loads a version or raises LoadError.
        changed: Versions with files that changed since they were loaded; others are kept. None for all.

    Attributes:
        failure: Error of the first version that failed to load.
    """

    def __init__(self, before: Entry, load_version: Callable[[str], Serving], changed: Collection[str] | None) -> None:
        self.before = before
        self._load_version = load_version
        self._changed = changed
        self._fresh: dict[str, Version] = {}
        self.failure: LoadError | None = None

    def announced(self, wanted: Sequence[str]) -> Entry:
        """Intermediate state: new versions as LOADING beside the served ones."""
        loading = {
            version: Version(version, State.LOADING, "loading")
            for version in wanted
            if version not in self.before.versions or self.before.versions[version].serving is None
        }
        return make_entry(self.before.name, {**self.before.versions, **loading})

    def run(self, wanted: Sequence[str], on_disk: Sequence[str], *, fall_back: bool) -> Entry:
        """Load the wanted versions.

        Args:
            wanted: Versions, the oldest first.
            on_disk: All versions on disk.
            fall_back: If no version is served otherwise, continue with the newest version that loads.

        Returns:
            The versions that are served from now on.
        """
        for version in wanted:
            self._one(version)
        if not self._any_ready():
            self._keep_served()
        if fall_back:
            for version in reversed(on_disk):
                if self._any_ready():
                    break
                self._one(version)
        for version in on_disk:
            self._fresh.setdefault(version, unselected(version))
        return make_entry(self.before.name, self._fresh)

    def _one(self, version: str) -> None:
        """Load a version, or keep it if nothing about it has changed; does nothing the second time."""
        if version in self._fresh:
            return
        known = self.before.versions.get(version)
        unchanged = self._changed is not None and version not in self._changed
        if unchanged and known is not None and (known.serving is not None or known.failed):
            self._fresh[version] = known
            return
        try:
            serving = self._load_version(version)
        except LoadError as error:
            self.failure = self.failure or error
            self._fresh[version] = failed(self.before, version, error)
            return
        self._fresh[version] = Version(version, State.READY, "", serving, time.time())

    def _any_ready(self) -> bool:
        """Whether any version is served after this load."""
        return any(item.state is State.READY for item in self._fresh.values())

    def _keep_served(self) -> None:
        """Keep the served versions, because no new version loaded."""
        for item in self.before.ready():
            if self._changed is not None and item.version in self._changed:
                self._one(item.version)
            self._fresh.setdefault(item.version, item)
