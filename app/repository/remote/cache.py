"""The folder that a remote repository is mirrored into: its place, its lock, and its state."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event

from app.config.model_url import ModelUrl
from app.repository.remote.errors import MirrorStoppedError, RemoteError

_LOOK_S = 0.1
_TEXT = str


@dataclass
class State:
    """The state of a mirror, in a file that several processes share.

    Attributes:
        tokens: of each file that was mirrored, by its path.
        synced_at: when the mirror was last seen to be whole, in seconds since 1970; 0 for never.
        tried_at: when that was last tried.
        problem: why it failed then; None where it did not.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    synced_at: float = 0.0
    tried_at: float = 0.0
    problem: str | None = None


class Cache:
    """The folder of one mirror.

    Args:
        url: what is mirrored into it.
        base: folder of all mirrors; None for ``panther/models`` in the user's cache folder, or else in the folder for
            temporary files.

    Attributes:
        models: the folder of models, as the repository reads it.
        incoming: where files are put together before they are moved into it.
    """

    def __init__(self, url: ModelUrl, base: Path | None = None) -> None:
        self.folder = (base or default_base()) / hashlib.sha256(url.root.encode()).hexdigest()[:32]
        self.models = self.folder / "models"
        self.incoming = self.folder / "incoming"
        self._state = self.folder / "state.json"

    def make(self) -> None:
        """Make the folders.

        Raises:
            RemoteError: they can't be made or written, or belong to someone else.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
            self.models.mkdir(exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
        except OSError as error:
            raise RemoteError(f"the cache folder can't be written: {error}; set PANTHER_MODEL_CACHE") from None
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise RemoteError(
                f"the cache folder {self.folder} may be written by others than user {os.geteuid()}; "
                "set PANTHER_MODEL_CACHE to a folder that only this user may write to"
            )

    @contextlib.contextmanager
    def locked(self, stop: Event) -> Iterator[None]:
        """Hold the mirror's lock, for which the other processes wait; it goes with the process.

        Raises:
            MirrorStoppedError: ``stop`` was set before the lock was free.
        """
        with (self.folder / "lock").open("w") as file:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if stop.wait(_LOOK_S):
                    raise MirrorStoppedError
            yield

    def state(self) -> State:
        """The state; empty where the file is missing or can't be read."""
        try:
            document = json.loads(self._state.read_bytes())
            tokens = {_TEXT(name): _TEXT(token) for name, token in document["tokens"].items()}
            problem = None if document["problem"] is None else _TEXT(document["problem"])
            return State(tokens, float(document["synced_at"]), float(document["tried_at"]), problem)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return State()

    def save(self, state: State) -> None:
        """Save the state."""
        fresh = self.incoming / "state.json"
        fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
        fresh.replace(self._state)


def default_base() -> Path:
    """Where mirrors lie unless the settings say otherwise."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        caches = Path("/nonexistent")
    nearest = next((folder for folder in (caches, *caches.parents) if folder.exists()), Path("/"))
    if caches.is_absolute() and os.access(nearest, os.W_OK | os.X_OK):
        return caches / "panther" / "models"
    return Path(tempfile.gettempdir()) / f"panther-models-{os.geteuid()}"


def now() -> float:
    """Seconds since 1970, which processes share."""
    return time.time()
