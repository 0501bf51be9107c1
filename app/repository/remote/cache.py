"""The local folder of a mirror: its path, its lock, and its state."""

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
    """The state of a mirror, in a file shared by several processes.

    Attributes:
        tokens: Token of each mirrored file, by path.
        synced_at: Last time at which the mirror was complete, in seconds since 1970; 0 for never.
        tried_at: Time of the last attempt.
        problem: Reason for the failure of the last attempt; None if it succeeded.
    """

    tokens: dict[str, str] = field(default_factory=dict)
    synced_at: float = 0.0
    tried_at: float = 0.0
    problem: str | None = None


class Cache:
    """The local folder of one mirror.

    Args:
        url: URL of the remote repository.
        base: Folder of all mirrors; None for ``panther/models`` in the user's cache folder, or else in the folder for
            temporary files.

    Attributes:
        models: Folder of models, which the repository reads.
        incoming: Folder for incomplete files, before they are moved into ``models``.
    """

    def __init__(self, url: ModelUrl, base: Path | None = None) -> None:
        self.folder = (base or default_base()) / hashlib.sha256(url.root.encode()).hexdigest()[:32]
        self.models = self.folder / "models"
        self.incoming = self.folder / "incoming"
        self._state = self.folder / "state.json"

    def make(self) -> None:
        """Create the folders.

        Raises:
            RemoteError: A folder cannot be created or written, or belongs to another user.
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
                f"the cache folder {self.folder} is writable by users other than {os.geteuid()}; "
                "set PANTHER_MODEL_CACHE to a folder that only this user can write to"
            )

    @contextlib.contextmanager
    def locked(self, stop: Event) -> Iterator[None]:
        """Hold the mirror's lock across processes; the end of the process releases it.

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
        """Read the state; empty if the file is missing or unreadable."""
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
    """The default folder of mirrors."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder
        caches = Path("/nonexistent")
    nearest = next((folder for folder in (caches, *caches.parents) if folder.exists()), Path("/"))
    if caches.is_absolute() and os.access(nearest, os.W_OK | os.X_OK):
        return caches / "panther" / "models"
    return Path(tempfile.gettempdir()) / f"panther-models-{os.geteuid()}"


def now() -> float:
    """Seconds since 1970, comparable across processes."""
    return time.time()
