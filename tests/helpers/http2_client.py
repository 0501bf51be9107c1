"""A client of HTTP/2 by hand, for calls that no gRPC client would make."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import ngh2

from app.grpc.http2.framing import framed

LIMIT_S = 60.0
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Answer:
    """What came on one stream."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The status of gRPC; None where there is none."""
        found = self.fields.get(b"grpc-status")
        return None if found is None else int(found)

    @property
    def details(self) -> str:
        return unquote(self.fields.get(b"grpc-message", b"").decode())

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.data
        while rest:
            end = 5 + int.from_bytes(rest[1:5])
            found.append(rest[5:end])
            rest = rest[end:]
        return found


class Http2Client:
    """One connection; its peer's bytes are processed while it waits for something.

    Attributes:
        session: state of HTTP/2.
        answers: by number of the stream.
        goaways: codes of the GOAWAYs that came.
        closed: whether the server has closed the connection.
        pongs: answers to PINGs.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        limits = ngh2.Configuration(max_outbound_ack=100_000)
        self.session = ngh2.Connection(ngh2.Role.CLIENT, limits)
        self.answers: dict[int, Answer] = {}
        self.goaways: list[int] = []
        self.pongs = 0
        self.closed = False

    @classmethod
    async def connect(cls, address: str, settings: dict[int, int] | None = None, limit: int = 2**16) -> "Http2Client":
        host, _, port = address.rpartition(":")
        client = cls(*await asyncio.open_connection(host, int(port), limit=limit))
        client.session.initiate_connection(settings)
        client.flush()
        return client

    def flush(self) -> None:
        data = self.session.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    def call(
        self,
        path: str = INFER,
        *messages: bytes,
        end: bool = True,
        method: bytes = b"POST",
        raw: bytes = b"",
        **more: Any,
    ) -> int:
        """Begin a call; ``more`` are headers, with underscores for hyphens."""
        fields = {":method": method, ":scheme": b"http", ":authority": b"x", ":path": path.encode()}
        fields |= {"content-type": b"application/grpc", "te": b"trailers"}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        number = self.session.send_request([(name.encode(), value) for name, value in fields.items()])
        self.answers[number] = Answer()
        content = raw + b"".join(piece for message in messages for piece in framed(message))
        if content:
            self.session.send_data(number, content)
        if end:
            self.session.end_stream(number)
        self.flush()
        return number

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.session.send_data(number, data, end_stream=end)
        self.flush()

    async def until(self, condition: Callable[[], object]) -> None:
        """Process what the server sends until a condition holds."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                assert not self.closed, "the server has closed the connection"
                await self.step()

    async def step(self) -> None:
        """Process what the server sends next."""
        try:
            data = await self.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        try:
            self.session.receive_data(data)
        except ngh2.NGH2Error:
            self.closed = True
            return
        for event in self.session.events():
            self._take(event)
        self.flush()

    async def until_closed(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not self.closed:
                await self.step()

    async def answer(self, number: int) -> Answer:
        """The whole answer of a call."""
        answer = self.answers[number]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def ask(self, *arguments: Any, **options: Any) -> Answer:
        return await self.answer(self.call(*arguments, **options))

    def close(self) -> None:
        self.writer.transport.abort()

    def _take(self, event: Any) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0), Answer())
        if isinstance(event, (ngh2.ResponseReceived, ngh2.TrailersReceived)):
            answer.fields |= dict(event.headers)
            answer.ended = answer.ended or getattr(event, "end_stream", True)
        elif isinstance(event, ngh2.DataReceived):
            answer.data += event.data
            answer.ended = event.end_stream
        elif isinstance(event, ngh2.StreamReset):
            answer.reset = event.error_code
        elif isinstance(event, ngh2.GoAwayReceived):
            self.goaways.append(event.error_code)
        elif isinstance(event, ngh2.PingAcknowledged):
            self.pongs += 1
