"""A remote model repository, mirrored to a local folder.

A version is downloaded completely, verified, and moved into place in one step, so a reader of the folder never sees a
partial version. Files are only removed after a successful listing without them.

See docs/decisions/0076-models-by-url.md.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from app.config.model_url import ModelUrl
from app.errors import AppError, shortened
from app.repository.folder import MODEL_FILE
from app.repository.remote.cache import Cache, State, now
from app.repository.remote.errors import MirrorStoppedError, RemoteError
from app.repository.remote.names import Names, sort_names
from app.repository.remote.store import RemoteFile, Store, open_store
from app.repository.remote.swap import discard, put_in_place

log = logging.getLogger(__name__)

_SAVE_S = 5.0
_MOST_TOLD = 20


@dataclass(frozen=True)
class MirrorOptions:
    """Options of a mirror.

    Attributes:
        cache: Folder of all mirrors; None for the default.
        max_bytes: Maximum total size of the files.
        max_files: Maximum number of files.
    """

    cache: Path | None = None
    max_bytes: int = 1 << 40
    max_files: int = 100_000


@dataclass
class Changes:
    """The changes of one pass.

    Attributes:
        files, nbytes: Number and size of downloaded files.
        removed: Number of removed files and folders.
    """

    files: int = 0
    nbytes: int = 0
    removed: int = 0


class Mirror:
    """The mirror of one URL. Its methods block, and may be called from several threads and processes.

    Args:
        url: URL of the remote repository.
        options: See ``MirrorOptions``.
        store: Store of the URL.

    Attributes:
        folder: The local folder of models.

    Raises:
        MissingExtraError: The packages for the URL's scheme are not installed.
    """

    def __init__(self, url: ModelUrl, options: MirrorOptions | None = None, store: Store | None = None) -> None:
        self.url = url
        self._options = options or MirrorOptions()
        self._cache = Cache(url, self._options.cache)
        self.folder = self._cache.models
        self._store = store or open_store(url)
        self._stop = Event()
        self._told: set[str] = set()

    def stop(self) -> None:
        """Stop the current pass, and start no other."""
        self._stop.set()

    @property
    def has_copy(self) -> bool:
        """Whether the folder was complete at least once."""
        return self._cache.state().synced_at > 0

    def sync(self, asked_at: float) -> None:
        """Synchronize the folder with the remote repository.

        Args:
            asked_at: Skip the pass if any process began one after this time, in seconds since 1970.

        Raises:
            RemoteError: A part failed and is unchanged; the other parts are mirrored.
        """
        self._cache.make()
        with self._cache.locked(self._stop):
            state = self._cache.state()
            if asked_at < state.tried_at <= now():
                if state.problem is not None:
                    raise RemoteError(state.problem)
                return
            state.tried_at = now()
            try:
                self._clear_incoming()
                Pass(self._store, self._cache, self._options, state, self._stop, self._tell).run()
                state.problem = None
                state.synced_at = state.tried_at
            except MirrorStoppedError:
                state.tried_at = 0.0
                raise
            except Exception as error:  # the store's libraries raise errors of many kinds
                state.problem = self._explain(error)
                raise RemoteError(state.problem) from error
            finally:
                with contextlib.suppress(OSError):
                    self._clear_incoming()
                    self._cache.save(state)

    def _clear_incoming(self) -> None:
        for item in self._cache.incoming.iterdir():
            discard(item)

    def _explain(self, error: Exception) -> str:
        if isinstance(error, AppError):
            reason = str(error)
        else:
            lines = (str(error) or type(error).__name__).splitlines()
            kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            reason = f"{kind}{lines[0]}"
        return f"the models at {self.url} can't be mirrored: {shortened(self.url.scrub(reason), 500)}"

    def _tell(self, refused: dict[str, str]) -> None:
        """Log the names that are not mirrored, each once."""
        fresh = sorted(refused.keys() - self._told)
        for name in fresh[:_MOST_TOLD]:
            log.warning("%s: %r is not mirrored: %s", self.url, shortened(name), refused[name])
        if len(fresh) > _MOST_TOLD:
            log.warning("%s: %d more names are not mirrored", self.url, len(fresh) - _MOST_TOLD)
        self._told = set(refused)


class Pass:
    """One pass over the remote repository, under the cache's lock.

    Args:
        store: The remote store.
        cache: The local folder.
        options: See ``MirrorOptions``.
        state: State of the mirror; updated by the pass.
        stop: Event that stops the pass.
        tell: Called with the names that are not mirrored.
    """

    def __init__(
        self,
        store: Store,
        cache: Cache,
        options: MirrorOptions,
        state: State,
        stop: Event,
        tell: Callable[[dict[str, str]], None],
    ) -> None:
        self._store = store
        self._cache = cache
        self._options = options
        self._state = state
        self._stop = stop
        self._tell = tell
        self._number = 0
        self._saved_at = now()
        self._changes = Changes()
        self._nbytes = 0  # total size of the files that this pass has mirrored
        self._problems: list[str] = []

    def run(self) -> None:
        """Mirror everything.

        Raises:
            Exception: The listing failed, and nothing was changed.
            RemoteError: A part failed; all others are mirrored.
        """
        files = self._store.files(self._fresh())
        names = sort_names(files)
        self._tell(names.refused)
        wanted = {name: files[name] for name in names.accepted()}
        self._check_limits(names, wanted)
        for folder, inside in names.versions.items():
            self._part(folder, {name: wanted[name] for name in inside})
        for name in names.loose:
            self._part(name, {name: wanted[name]})
        self._remove(names)
        changes = self._changes
        if changes.files or changes.removed:
            log.info(
                "mirrored %s: %d files of %d bytes downloaded, %d removed",
                *(self._store.url, changes.files, changes.nbytes, changes.removed),
            )
        if self._problems:
            more = f" (and {len(self._problems) - 1} more)" if len(self._problems) > 1 else ""
            raise RemoteError(f"{self._problems[0]}{more}")

    def _check_limits(self, names: Names, wanted: dict[str, RemoteFile]) -> None:
        if not any(f"{folder}/{MODEL_FILE}" in inside for folder, inside in names.versions.items()):
            # The listing of a mistyped prefix is empty, too; it must not unload all models.
            raise RemoteError("it has no model NAME/VERSION/model.onnx; mirrored files stay")
        if len(wanted) > self._options.max_files:
            raise RemoteError(f"it has {len(wanted)} files, above model_cache_max_files ({self._options.max_files})")
        total = sum(file.size or 0 for file in wanted.values())
        if total > self._options.max_bytes:
            raise self._too_large(total)

    def _too_large(self, nbytes: int) -> RemoteError:
        return RemoteError(f"its files have {nbytes} bytes, above model_cache_max_bytes ({self._options.max_bytes})")

    def _part(self, path: str, files: dict[str, RemoteFile]) -> None:
        """Mirror a version, or a file outside the versions; a failure does not stop the others."""
        if self._stop.is_set():
            raise MirrorStoppedError
        try:
            self._replace(path, files)
        except MirrorStoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - the store's libraries raise errors of many kinds
            reason = str(error) if isinstance(error, AppError) else f"{type(error).__name__}: {error}"
            self._problems.append(f"{path}: {reason}")
            return
        if now() - self._saved_at > _SAVE_S:
            self._saved_at = now()
            self._cache.save(self._state)

    def _replace(self, path: str, files: dict[str, RemoteFile]) -> None:
        known = {name for name, file in files.items() if self._is_known(name, file)}
        target = self._cache.models / path
        there = {f"{path}/{each}" for each in _files_below(target)} if target.is_dir() else {path}
        if known == files.keys() == there:
            self._nbytes += sum((self._cache.models / name).stat().st_size for name in files)
            return
        fresh = self._fresh()
        for name, file in files.items():
            into = fresh if name == path else fresh / name.removeprefix(f"{path}/")
            into.parent.mkdir(parents=True, exist_ok=True)
            if name in known:
                os.link(self._cache.models / name, into)
                self._nbytes += into.stat().st_size
            else:
                self._download(name, file, into)
        put_in_place(fresh, target, self._fresh())
        self._state.tokens.update({name: file.token for name, file in files.items()})

    def _is_known(self, name: str, file: RemoteFile) -> bool:
        """Whether the mirror has exactly this content."""
        local = self._cache.models / name
        if self._state.tokens.get(name) != file.token or local.is_symlink() or not local.is_file():
            return False
        return file.size is None or local.stat().st_size == file.size

    def _download(self, name: str, file: RemoteFile, into: Path) -> None:
        """Download a file and verify it."""
        most = self._options.max_bytes - self._nbytes

        def received(count: int) -> None:
            if self._stop.is_set():
                raise MirrorStoppedError
            if file.size is not None and count > file.size:
                raise RemoteError(f"{name} has more than {file.size} bytes, its size in the listing")
            if count > most:
                raise self._too_large(self._nbytes + count)

        self._store.download(name, into, received)
        size = into.stat().st_size
        received(size)
        if file.size is not None and size != file.size:
            raise RemoteError(f"{name} was downloaded with {size} bytes; its size in the listing is {file.size}")
        if file.checksum is not None:
            found = file.checksum.of_file(into)
            if found != file.checksum.value and (file.checksum.kind != "md5" or self._store.is_md5(name)):
                raise RemoteError(
                    f"{name} was downloaded with {file.checksum.kind} {found}; the listing has {file.checksum.value}"
                )
        self._nbytes += size
        self._changes.files += 1
        self._changes.nbytes += size

    def _remove(self, names: Names) -> None:
        """Remove files that are no longer in the remote repository."""
        keep = set(names.accepted())
        folders = {parent for name in keep for parent in _folders(name)}
        for path in _outermost(self._cache.models, folders, keep):
            path.rename(trash := self._fresh())
            discard(trash)
            self._changes.removed += 1
        self._state.tokens = {name: token for name, token in self._state.tokens.items() if name in keep}

    def _fresh(self) -> Path:
        """A unique path among the incoming files."""
        self._number += 1
        return self._cache.incoming / str(self._number)


def _files_below(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix()


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _outermost(root: Path, folders: set[str], files: set[str]) -> list[Path]:
    """Paths in the mirror to remove: whole folders if none of their files stays."""
    found: list[Path] = []
    todo = [root]
    while todo:
        for item in sorted(todo.pop().iterdir()):
            name = item.relative_to(root).as_posix()
            if item.is_dir() and not item.is_symlink() and name in folders:
                todo.append(item)
            elif name not in files:
                found.append(item)
    return found
