"""Versions of a model, and the selection of served versions.

See docs/decisions/0017-immutable-entries.md.
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from app.errors import LoadError, LoadTimeoutError
from app.repository.served_model import Serving
from app.system.memory import is_transient

# Must match panther/export/publish/repository.py.
MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")
NAME_RULE = "at most 128 letters, digits, '.', '_' and '-', starting with a letter, a digit or '_'"
VERSION_RULE = "versions are whole numbers without leading zeros, such as 1"
_VERSION = re.compile(r"[1-9][0-9]{0,17}\Z|0\Z")


class State(StrEnum):
    """State of a version, in the terms of the model repository extension."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True)
class Version:
    """One version of a model: its state, the reason for it, and the loaded model if it is READY.

    ``failed``: the version in the folder failed to load; a READY version is then the previous one.
    ``may_recover``: memory, time or file descriptors were short, so a later load may succeed.
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

    An immutable snapshot, replaced atomically; safe to read from any thread.
    ``served`` is the version for requests that name none: the newest ready version.
    """

    name: str
    versions: dict[str, Version] = field(default_factory=dict)
    served: str | None = field(init=False)

    def __post_init__(self) -> None:
        newest = next((item.version for item in reversed(self.versions.values()) if item.state is State.READY), None)
        object.__setattr__(self, "served", newest)

    def ready(self) -> list[Version]:
        """The served versions, the oldest first."""
        return [item for item in self.versions.values() if item.state is State.READY]

    @property
    def failing(self) -> bool:
        """Whether a version in the folder failed to load."""
        return any(item.failed for item in self.versions.values())

    @property
    def reason(self) -> str:
        """The reason why the newest version is not served; empty if it is."""
        return next((item.reason for item in reversed(self.versions.values()) if item.state is not State.READY), "")


def selected(policy: str, versions: list[str]) -> list[str]:
    """The versions that a policy (``latest``, ``all``, ``1,3``) selects, the oldest first."""
    ordered = sorted(versions, key=int)
    if policy == "latest":
        return ordered[-1:]
    if policy == "all":
        return ordered
    wanted = {part.strip() for part in policy.split(",")}
    return [version for version in ordered if version in wanted]


def valid_name(name: str) -> bool:
    """Whether a model may have this name: no separator, no leading dot or hyphen, not too long."""
    return len(name) <= MAX_NAME_LENGTH and _NAME.match(name) is not None


def valid_version(version: str) -> bool:
    """Whether a folder's name is a version: digits, without a leading zero."""
    return _VERSION.match(version) is not None


def make_entry(name: str, versions: dict[str, Version]) -> Entry:
    """An entry with its versions in order."""
    return Entry(name, dict(sorted(versions.items(), key=lambda pair: int(pair[0]))))


def unselected(version: str) -> Version:
    """A version on disk that the policy does not select."""
    return Version(version, reason="not selected by the version policy")


def failed(before: Entry, version: str, error: LoadError) -> Version:
    """State of a version that failed to load: unchanged if it is served, else unavailable."""
    known = before.versions.get(version)
    short = isinstance(error, LoadTimeoutError) or is_transient(f"{error}: {error.__cause__!r}")
    if known is not None and known.state is State.READY:
        return replace(known, reason=f"reload failed: {error}", failed=True, may_recover=short)
    return Version(version, State.UNAVAILABLE, f"{error}", failed=True, may_recover=short)
