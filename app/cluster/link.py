"""A worker's side of its channel to the parent: submits commands, applies the log, and requests statistics."""

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from app.cluster.channel import Channel, Message
from app.cluster.control_log import Applied, Command, History, Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The place of a worker among the others of its server.

    Attributes:
        link: Link to the others.
        slot: Its number, from 0.
        load_first: Whether it loads its models before it accepts connections.
    """

    link: "Link"
    slot: int
    load_first: bool


class Link:
    """The connection of a worker to the other workers, through the parent.

    Args:
        sock: The worker's end of the socket pair.

    Attributes:
        all_loaded: Whether every worker has loaded its models once.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._channel: Channel | None = None
        self._tokens = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self.all_loaded = False

    async def start(self, counters: Callable[[], Message]) -> History:
        """Connect to the others.

        Args:
            counters: Returns the counters of this worker.

        Returns:
            The commands to replay before new ones.
        """
        self._channel = await Channel.open(self._sock)
        self._channel.send({"kind": "join"})
        while (message := await self._channel.receive()) is not None:
            if message["kind"] == "history":
                self.all_loaded = message["all_loaded"]
                self._reading = asyncio.get_running_loop().create_task(self._read(self._channel, counters))
                told = message["history"]
                return History(
                    None if told["names"] is None else tuple(told["names"]),
                    tuple(Command(**plain) for plain in told["commands"]),
                    None if told["owed"] is None else tuple(told["owed"]),
                )
            self._handle(self._channel, message, counters)
        return History()

    async def stop(self) -> None:
        """Disconnect: send no more responses."""
        if self._reading is not None:
            self._reading.cancel()
        if self._channel is not None:
            self._channel.close()
        self._fail_all()

    def tell_loaded(self, versions: dict[str, str]) -> None:
        """Report that this worker has loaded its models, with the served versions of each."""
        self._send({"kind": "loaded", "versions": versions})

    def tell_owed(self, names: list[str]) -> None:
        """Report the models that this worker needs to be ready; they count for later workers too."""
        self._send({"kind": "owed", "names": names})

    async def submit(self, command: Command) -> Outcome[str] | None:
        """Make every worker apply a command; returns the outcome of all, or None if the server ends first."""
        message = await self._ask({"kind": "submit", "command": command.plain()})
        if message is None:
            return None
        return Outcome(message["error"], message["error_kind"], message["behind"])

    async def gather(self, own: Message) -> tuple[list[Message], list[Message]]:
        """Statistics of all past and present workers.

        Args:
            own: Statistics of this worker.

        Returns:
            Statistics of the others: current ones of those that responded, and the last ones of all others.
        """
        message = await self._ask({"kind": "gather", "own": own})
        return ([], []) if message is None else (message["present"], message["past"])

    async def follow(self, apply: Callable[[Command], Awaitable[Applied]]) -> None:
        """Apply commands in their order, until cancelled.

        Args:
            apply: Applies a command; calls for one model are in the order of the log, which it must keep.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._apply(apply, await self._commands.get()))

    async def _apply(self, apply: Callable[[Command], Awaitable[Applied]], command: Command) -> None:
        self._send({"kind": "applied", "result": asdict(await apply(command))})

    async def _ask(self, message: Message) -> Message | None:
        if self._reading is None or self._reading.done():
            return None
        token = next(self._tokens)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[token] = answer
        try:
            self._send({**message, "token": token})
            return await answer
        except EOFError:
            return None
        finally:
            self._answers.pop(token, None)

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    async def _read(self, channel: Channel, counters: Callable[[], Message]) -> None:
        while (message := await channel.receive()) is not None:
            self._handle(channel, message, counters)
        self._fail_all()

    def _handle(self, channel: Channel, message: Message, counters: Callable[[], Message]) -> None:
        kind = message["kind"]
        if kind == "apply":
            self._commands.put_nowait(Command(**message["command"]))
        elif kind == "tell":
            channel.send({"kind": "told", "number": message["number"], "counters": counters()})
        elif kind == "all_loaded":
            self.all_loaded = True
        elif (answer := self._answers.get(message["token"])) is not None and not answer.done():
            answer.set_result(message)

    def _fail_all(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(EOFError("the parent process has ended"))
