"""The ordered log of control commands of a server with several workers; the parent keeps it.

A command gets its number when its turn comes. The worker that received it applies it first and decides the outcome:
the versions that are served from then on. Then every other worker applies it, in the order of the numbers. A worker
that starts later replays the log, reduced to the last command of each model. A command is complete once every
live worker has applied it; a hanging worker is waited for until it is replaced, and its successor replays the log.
Commands for different models do not wait for one another.

See docs/decisions/0067-one-log-of-control-commands.md.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

Action = Literal["load", "unload"]
Worker = TypeVar("Worker", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the log.

    Attributes:
        number: Its place in the order, from 1; 0 for the load at the start.
        action, name: The action, and the name of the model.
        policy: Version policy that overrides the settings.
        placement: Placement of the model's instances, as plain data; overrides the settings.
        versions: Served versions after the command, such as ``1,2``; None if the worker that applies it decides.
    """

    number: int
    action: Action
    name: str
    policy: str | None = None
    versions: str | None = None
    placement: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """The command as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class History:
    """Commands that a late-starting worker replays.

    Attributes:
        names: Models that the other workers know; None if no worker has loaded yet.
        commands: The last command of each model, by number.
        owed: Models that count for the readiness of the other workers; None if no worker has reported them.
    """

    names: tuple[str, ...] | None = None
    commands: tuple[Command, ...] = ()
    owed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of a command at one worker.

    Attributes:
        number: Number of the command.
        versions: Versions of the model that the worker serves now.
        changed: Whether the served versions changed.
        error: Reason for the failure, None if it succeeded.
        kind: Class of the error.
    """

    number: int
    versions: str
    changed: bool
    error: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Worker]):
    """The outcome of a command.

    Attributes:
        error, kind: The error at the worker that decided.
        behind: Workers that have not applied it, with the reason.
    """

    error: str | None = None
    kind: str | None = None
    behind: Mapping[Worker, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry(Generic[Worker]):
    """A command in progress, with its submitter and the workers that it waits for."""

    origin: Worker
    token: int
    command: Command
    waiting: set[Worker] = field(default_factory=set)
    outcome: Outcome[Worker] = field(default_factory=Outcome)
    answered: bool = False


class ControlLog(Generic[Worker]):
    """The log and the progress of each worker; does no input or output.

    Args:
        send: Sends a command to a worker.
        answer: Sends the outcome to the worker that received the command, by its token.
    """

    def __init__(
        self, send: Callable[[Worker, Command], None], answer: Callable[[Worker, int, Outcome[Worker]], None]
    ) -> None:
        self._send = send
        self._answer = answer
        self._members: set[Worker] = set()
        self._loaded: set[Worker] = set()
        self._names: set[str] | None = None
        self._last: dict[str, Command] = {}
        self._number = 0
        self._queues: dict[str, deque[_Entry[Worker]]] = {}  # pending commands by model
        self._deciding: dict[str, _Entry[Worker]] = {}
        self._decided: dict[int, _Entry[Worker]] = {}

    def join(self, worker: Worker) -> History:
        """Add a worker; it receives the history and then every later decision."""
        self._members.add(worker)
        names = None if self._names is None else tuple(sorted(self._names))
        return History(names, tuple(sorted(self._last.values(), key=lambda command: command.number)))

    def loaded(self, worker: Worker, versions: Mapping[str, str]) -> None:
        """Record the versions that a worker serves after its start; the first worker that serves a model decides.

        Args:
            worker: A worker that has loaded its models and replayed the history.
            versions: Versions by model name; empty if none could be loaded.
        """
        self._names = (self._names or set()) | versions.keys()
        for name, served in versions.items():
            last = self._last.get(name)
            if last is None and served:
                last = self._last[name] = Command(0, "load", name, served, served)
                for other in self._ordered(self._loaded - {worker}):
                    self._send(other, last)
            elif last is not None and served != last.versions and not self._will_apply(worker, last):
                self._send(worker, last)
        self._loaded.add(worker)

    def _will_apply(self, worker: Worker, command: Command) -> bool:
        entry = self._decided.get(command.number)
        return entry is not None and worker in entry.waiting

    def submit(self, worker: Worker, token: int, command: Command) -> None:
        """Accept a command; it gets its number, which gives its order."""
        name = command.name
        self._queues.setdefault(name, deque()).append(_Entry(worker, token, command))
        self._decide_next(name)

    def applied(self, worker: Worker, result: Applied) -> None:
        """Record the result of a command at a worker."""
        for name, entry in self._deciding.items():
            if (worker, result.number) == (entry.origin, entry.command.number):
                del self._deciding[name]
                self._decide(entry, result)
                self._decide_next(name)
                return
        decided = self._decided.get(result.number)
        if decided is not None and worker in decided.waiting:
            self._progress(decided, worker, {} if result.error is None else {worker: result.error})

    def leave(self, worker: Worker) -> None:
        """Remove a worker that has ended, with its undecided commands."""
        self._members.discard(worker)
        self._loaded.discard(worker)
        for name, queue in self._queues.items():
            self._queues[name] = deque(entry for entry in queue if entry.origin != worker)
        self._deciding = {name: entry for name, entry in self._deciding.items() if entry.origin != worker}
        for entry in list(self._decided.values()):
            if worker in entry.waiting:
                self._progress(entry, worker, {})
        for name in list(self._queues):
            self._decide_next(name)

    def expire(self, worker: Worker, token: int, reason: str) -> None:
        """Report a command as timed out, naming the workers that have not applied it; it stays in the log."""
        queued = [entry for queue in self._queues.values() for entry in queue]
        for entry in [*queued, *self._deciding.values(), *self._decided.values()]:
            if (entry.origin, entry.token) == (worker, token) and not entry.answered:
                missing = entry.waiting or {entry.origin}
                entry.answered = True
                late = dict.fromkeys(missing, reason)
                self._answer(worker, token, replace(entry.outcome, behind={**entry.outcome.behind, **late}))

    def _decide_next(self, name: str) -> None:
        if name in self._deciding:
            return
        queue = self._queues.pop(name, None)
        if queue:
            self._number += 1
            entry = self._deciding[name] = queue.popleft()
            entry.command = replace(entry.command, number=self._number)
            self._queues[name] = queue
            self._send(entry.origin, entry.command)

    def _decide(self, entry: _Entry[Worker], result: Applied) -> None:
        entry.outcome = Outcome(result.error, result.kind)
        if result.error is None or result.changed:
            entry.command = replace(entry.command, versions=result.versions)
            self._last[entry.command.name] = entry.command
            if self._names is not None:
                self._names.add(entry.command.name)
            entry.waiting = self._members - {entry.origin}
            self._decided[entry.command.number] = entry
            for other in self._ordered(entry.waiting):
                self._send(other, entry.command)
        self._finish(entry)

    def _ordered(self, workers: Iterable[Worker]) -> list[Worker]:
        return sorted(workers, key=repr)

    def _progress(self, entry: _Entry[Worker], worker: Worker, behind: Mapping[Worker, str]) -> None:
        entry.waiting.discard(worker)
        entry.outcome = replace(entry.outcome, behind={**entry.outcome.behind, **behind})
        self._finish(entry)

    def _finish(self, entry: _Entry[Worker]) -> None:
        if not entry.waiting:
            self._decided.pop(entry.command.number, None)
            if not entry.answered:
                entry.answered = True
                self._answer(entry.origin, entry.token, entry.outcome)
