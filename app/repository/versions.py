"""What is known of a model: its versions, and which of them are served.

See docs/decisions/0017-immutable-entries.md.
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.errors import LoadError, LoadTimeoutError
from app.repository.served_model import Serving
from app.system.memory import is_transient

# As the exporter has it (panther/export/publish/repository.py).
MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")
NAME_RULE = "at most 128 letters, digits, '.', '_' and '-', beginning with a letter, a digit or '_'"
VERSION_RULE = "versions are whole numbers without leading zeros, such as 1"
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z|0\Z")


class State(StrEnum):
    """Where a version stands; the words of the repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Version:
    """One version of a model: its state, the reason of that, and the loaded model when it is READY.

    ``failed`` says that what lies in the folder could not be loaded; a READY version then is the one from before.
    ``may_recover`` says that memory, time or file descriptors were short, so that it may go well another time.
    """

    version: str
    state: State = State.UNAVAILABLE
    reason: str = "not loaded"
    serving: Serving | None = None
    loaded_at: float | None = None
    failed: bool = False
    may_recover: bool = False


@dataclass(frozen=True)
class Entry:
    """A model of the folder with its versions, the oldest first.

    Replaced as a whole when something changes: who holds one sees one moment, whichever thread it was made in.
    ``served`` is the version that answers requests which name none: the newest that is ready.
    """

    name: str
    versions: dict[str, Version] = field(default_factory=dict)
    served: str | None = field(init=False)

    def __post_init__(self) -> None:
        newest = next((item.version for item in reversed(self.versions.values()) if item.state is State.READY), None)
        object.__setattr__(self, "served", newest)

    def ready(self) -> list[Version]:
        """The versions that are served, the oldest first."""
        return [item for item in self.versions.values() if item.state is State.READY]

    @property
    def failing(self) -> bool:
        """Whether something that lies in the folder could not be loaded."""
        return any(item.failed for item in self.versions.values())

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


def valid_name(name: str) -> bool:
    """Whether a name may be a model's: no separator, no leading dot or hyphen, not too long."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.match(name) is not None


def valid_version(version: str) -> bool:
    """Whether a folder's name is a version: digits, with no leading zero."""
    return _VERSION.match(version) is not None


def make_entry(name: str, versions: dict[str, Version]) -> Entry:
    """An entry with its versions in order."""
    return Entry(name, dict(sorted(versions.items(), key=lambda pair: int(pair[0]))))


def unselected(version: str) -> Version:
    """A version on disk that is not wanted."""
    return Version(version, reason="not selected by the version policy")


def failed(before: Entry, version: str, error: LoadError) -> Version:
    """What becomes of a version that could not be loaded: as it was where it is served, else unavailable."""
    known = before.versions.get(version)
    short = isinstance(error, LoadTimeoutError) or is_transient(f"{error}: {error.__cause__!r}")
    if known is not None and known.state is State.READY:
        return replace(known, reason=f"reload failed: {error}", failed=True, may_recover=short)
    return Version(version, State.UNAVAILABLE, f"{error}", failed=True, may_recover=short)
