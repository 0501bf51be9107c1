"""The parent's side of the workers' channels: orders their commands, and gathers their statistics.

It keeps the state that must survive a worker: the control log, and the counters of ended workers.

See docs/decisions/0024-gather-counters-on-request.md.
See docs/decisions/0067-one-log-of-control-commands.md.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from app.cluster.channel import Channel, Message
from app.cluster.control_log import Applied, Command, ControlLog, Outcome

log = logging.getLogger(__name__)

STATISTICS_TIMEOUT_S = 2.0
CONTROL_TIMEOUT_S = 600.0
_READ_S = 2.0


@dataclass(slots=True, eq=False)
class Member:
    """A worker as known to the hub.

    Attributes:
        pid: Process id.
        channel: Channel to it.
        told: Its last reported statistics.
        loaded: Whether it has loaded its models.
        owed: Models that count for its readiness; None before it reported them.
        task: Task that reads its messages.
    """

    pid: int
    channel: Channel
    told: Message | None = None
    loaded: bool = False
    owed: "tuple[str, ...] | None" = None
    task: "asyncio.Task[None] | None" = None

    def __repr__(self) -> str:
        return f"worker {self.pid:010}"  # sorts by start


@dataclass(slots=True)
class _Gathering:
    """One request for statistics: its sender, the workers that have not responded, and the responses."""

    asker: Member
    token: int
    missing: set[Member]
    present: dict[Member, Message] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Hub:
    """Connects the workers of one server.

    Args:
        count: Number of workers that should run.
        merge: Sums the statistics of two workers.
    """

    def __init__(self, count: int, merge: Callable[[Message | None, Message], Message]) -> None:
        self._count = count
        self._merge = merge
        self._members: set[Member] = set()
        self._log: ControlLog[Member] = ControlLog(self._send_command, self._send_outcome)
        self._loads = 0
        self._past: Message | None = None
        self._gatherings: dict[int, _Gathering] = {}
        self._number = 0
        self._last_owed: tuple[str, ...] | None = None

    async def connect(self, pid: int, sock: socket.socket) -> Member:
        """Add a worker that has the other end of a socket pair."""
        member = Member(pid, await Channel.open(sock))
        self._members.add(member)
        member.task = asyncio.get_running_loop().create_task(self._serve(member))
        return member

    async def disconnect(self, member: Member) -> None:
        """Remove an ended worker, after reading all its messages."""
        if member.task is not None:
            _, unread = await asyncio.wait({member.task}, timeout=_READ_S)
            for task in unread:  # another process still has the other end open
                task.cancel()
                await asyncio.wait({task})

    async def _serve(self, member: Member) -> None:
        """Serve one worker until its end of the channel is closed; the kernel closes it when the worker dies."""
        try:
            while (message := await member.channel.receive()) is not None:
                try:
                    self._handle(member, message)
                except (KeyError, TypeError):
                    log.exception("cannot handle a message of worker %d", member.pid)
        finally:
            self._leave(member)

    def _leave(self, member: Member) -> None:
        self._members.discard(member)
        if member.told is not None:
            self._past = self._merge(self._past, member.told)
        for number, gathering in list(self._gatherings.items()):
            if member is gathering.asker:
                self._gatherings.pop(number)
            else:
                self._answered(number, member, None)
        self._log.leave(member)
        member.channel.close()

    def _handle(self, member: Member, message: Message) -> None:
        kind = message["kind"]
        if kind == "join":
            history = replace(self._log.join(member), owed=self._owed())
            member.channel.send({"kind": "history", "history": asdict(history), "all_loaded": self.all_loaded})
        elif kind == "loaded":
            self._log.loaded(member, message["versions"])
            self._note_load(member)
        elif kind == "owed":
            member.owed = self._last_owed = tuple(message["names"])
        elif kind == "submit":
            token = message["token"]
            asyncio.get_running_loop().call_later(
                CONTROL_TIMEOUT_S, self._log.expire, member, token, f"no response for {CONTROL_TIMEOUT_S:.0f} s"
            )
            self._log.submit(member, token, Command(**message["command"]))
        elif kind == "applied":
            self._log.applied(member, Applied(**message["result"]))
        elif kind == "gather":
            self._gather(member, message)
        elif kind == "told":
            member.told = message["counters"]
            self._answered(message["number"], member, message["counters"])

    @property
    def all_loaded(self) -> bool:
        """Whether the configured number of workers have loaded their models; stays true afterwards."""
        return self._loads >= self._count

    def _owed(self) -> tuple[str, ...] | None:
        told = [member.owed for member in self._members if member.owed is not None]
        return tuple(sorted({name for names in told for name in names})) if told else self._last_owed

    def _note_load(self, member: Member) -> None:
        if member.loaded:
            return
        member.loaded = True
        self._loads += 1
        if self._loads == self._count:
            for each in self._members:
                each.channel.send({"kind": "all_loaded"})

    def _send_command(self, member: Member, command: Command) -> None:
        member.channel.send({"kind": "apply", "command": asdict(command)})

    def _send_outcome(self, member: Member, token: int, outcome: Outcome[Member]) -> None:
        behind = {f"worker {late.pid}": reason for late, reason in outcome.behind.items()}
        member.channel.send(
            {"kind": "outcome", "token": token, "error": outcome.error, "error_kind": outcome.kind, "behind": behind}
        )

    def _gather(self, member: Member, message: Message) -> None:
        member.told = message["own"]
        self._number += 1
        number, others = self._number, self._members - {member}
        gathering = _Gathering(member, message["token"], set(others))
        gathering.timer = asyncio.get_running_loop().call_later(STATISTICS_TIMEOUT_S, self._give_up, number)
        self._gatherings[number] = gathering
        for other in others:
            other.channel.send({"kind": "tell", "number": number})
        self._finish(number)

    def _answered(self, number: int, member: Member, counters: Message | None) -> None:
        gathering = self._gatherings.get(number)
        if gathering is None or member not in gathering.missing:
            return
        gathering.missing.discard(member)
        if counters is not None:
            gathering.present[member] = counters
        self._finish(number)

    def _give_up(self, number: int) -> None:
        for member in self._gatherings[number].missing if number in self._gatherings else ():
            log.warning("worker %d did not report its statistics in time", member.pid)
        self._finish(number, late=True)

    def _finish(self, number: int, *, late: bool = False) -> None:
        gathering = self._gatherings.get(number)
        if gathering is None or (gathering.missing and not late):
            return
        self._gatherings.pop(number)
        if gathering.timer is not None:
            gathering.timer.cancel()
        # Use the last counters of a worker that does not respond in time, so totals never decrease.
        past = [item.told for item in gathering.missing if item.told is not None and item in self._members]
        gathering.asker.channel.send(
            {
                "kind": "gathered",
                "token": gathering.token,
                "present": [told for teller, told in gathering.present.items() if teller in self._members],
                "past": past if self._past is None else [self._past, *past],
            }
        )
