"""What a connection receives: into one scratch buffer, or straight into the body that it belongs to."""

from abc import ABC, abstractmethod
from typing import Any

import httptools

from app.bodies import BodyBuffers
from app.codec import Body
from app.codec.oip import HEADER_LENGTH
from app.cycle import InferenceCycle
from app.errors import AppError, OverloadedError
from app.guarded import GuardedProtocol
from app.inference import HEAD_BYTES, InferenceService

# One for all connections: what is in it is taken out before the loop reads again.
_BUFFER = bytearray(32 * 1024)
_SCRATCH = memoryview(_BUFFER)
_CLAIM_BYTES = 64 * 1024  # of a longer body no more is believed than twice what has come
_OFFERS = {b"upgrade", b"http2-settings"}
SCRATCH_BYTES = len(_BUFFER)
BODIES = BodyBuffers()


class ReceivingProtocol(GuardedProtocol, ABC):
    """One connection's receiving side.

    What is read goes into one scratch buffer and from there to the parser. Once the head of an inference request is
    known and its body is longer than the scratch buffer, the rest is received straight into the body.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._inference: InferenceCycle | None = None  # the request whose body is being read
        self._head: bytes | None = None  # of the request that is being parsed, should it be worth remembering
        self._body: bytearray | memoryview = bytearray()
        self._length = 0  # of the whole body
        self._rest: memoryview | None = None  # the part of the body that is still to come, in raw mode

    @abstractmethod
    def _start(self, cycle: InferenceCycle, body: Body) -> None:
        """Answer a request that is whole."""

    @abstractmethod
    def _fail(self, cycle: InferenceCycle, error: AppError) -> None:
        """Answer a request with an error."""

    def _body_received(self) -> int | None:
        """How much there is of the body that is being read for the service; None where none is."""
        if self._inference is None:
            return None
        return self._inference.size if self._rest is None else len(self._body) - len(self._rest)

    def _refuse_body(self, error: AppError) -> None:
        if self._inference is not None:
            self._refuse(self._inference, error)

    def _refuse(self, cycle: InferenceCycle, error: AppError) -> None:
        """Answer before the body is read; what still comes of it is thrown away with the connection."""
        if cycle.response_complete:
            return
        cycle.keep_alive = False
        cycle.chunks = []
        self._fail(cycle, error)

    def data_received(self, data: bytes) -> None:
        """Have the parser read.

        Who offers to go on by another protocol, as Java's client does with HTTP/2, is answered by HTTP/1.1. The parser
        stops behind such a head and takes no body for it: it is given the head once more, without the offer.
        """
        self._unset_keepalive_if_required()
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.send_400_response("")
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":
                    self.send_400_response("")
                    return
                self._head = None
                data = self._without_offer() + bytes(data[offer.args[0] :])
                self._renew_parser()
                continue
            return

    def _without_offer(self) -> bytes:
        """The head that was read last, with nothing in it of another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                lines.append(name + b": " + b", ".join([option for option in options if option.lower() not in _OFFERS]))
            elif name not in _OFFERS:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop is to put what it reads."""
        return _SCRATCH if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has read something."""
        rest = self._rest
        if rest is None:
            if self._between and self._service is not None and self._recognised(self._service, nbytes):
                return
            if self._in_head:
                self._head_bytes += nbytes
            self.data_received(_SCRATCH[:nbytes])  # type: ignore[arg-type]
            self._head = None
            if self._in_head and self._head_bytes > self._limits.max_header_bytes:
                self.end_head()
            self._receive_directly()
        elif nbytes < len(rest):
            self._rest = rest[nbytes:]
        elif self._inference is not None and len(self._body) < self._length:
            self._grow(self._inference)
        else:
            self._received_directly()

    def _recognised(self, service: InferenceService, nbytes: int) -> bool:
        """Begin an inference request whose head was parsed before; False leaves what was read to the parser."""
        end = _BUFFER.find(b"\r\n\r\n", 0, nbytes) + 4
        if not 4 <= end <= HEAD_BYTES:
            return False
        head = bytes(_SCRATCH[:end])
        known = service.heads.get(head)
        if known is None:
            self._head = head
            return False
        previous: Any = self.cycle
        size = nbytes - end
        if size > known.length or not (previous is None or previous.response_complete):
            return False
        self._idle_since = None
        cycle = InferenceCycle(service, known.target, known.headers, known.query, keep_alive=True)
        self.cycle = cycle  # type: ignore[assignment]
        if size == known.length:
            self._take(cycle, bytes(_SCRATCH[end:nbytes]))
        else:
            self._inference = cycle
            self._receive_rest(cycle, known.length, _SCRATCH[end:nbytes])
        return True

    def _receive_directly(self) -> None:
        """After the first piece of a body of known length: have the rest of it put where it belongs."""
        cycle = self._inference
        if cycle is None or cycle.response_complete or b"transfer-encoding" in cycle.headers:
            return
        length = int(cycle.headers.get(b"content-length", b"0"))
        if length <= cycle.size:
            return
        self._receive_rest(cycle, length, b"".join(cycle.chunks))

    def _receive_rest(self, cycle: InferenceCycle, length: int, begun: bytes | memoryview) -> None:
        cycle.chunks = []
        self._length = length
        self._make_room(cycle, begun, min(length, _CLAIM_BYTES), _used(cycle, length))

    def _grow(self, cycle: InferenceCycle) -> None:
        """Make room for more of a long body."""
        # The loop still has a hand on the old one, which can't be made longer therefore.
        begun, self._body, self._rest = self._body, bytearray(), None
        self._make_room(cycle, begun, min(self._length, 2 * len(begun)))

    def _make_room(
        self, cycle: InferenceCycle, begun: Body, count: int, used: bytearray | memoryview | None = None
    ) -> None:
        """Have what comes next of a body put behind its beginning, in ``used`` or in ``count`` new bytes."""
        try:
            cycle.hold(count if used is None else len(used))
            self._body = bytearray(count) if used is None else used
        except AppError as error:
            self._refuse(cycle, error)
        except MemoryError:
            self._refuse(cycle, OverloadedError("there is no memory for a body of that length now"))
        else:
            self._body[: len(begun)] = begun
            self._rest = memoryview(self._body)[len(begun) :]

    def _received_directly(self) -> None:
        """The body is whole. A parser that has seen its beginning, but not its end, is replaced."""
        cycle = self._inference
        body, self._body, self._rest, self._inference = self._body, bytearray(), None, None
        if not self._between:
            self._renew_parser()
            self._between = True
        if cycle is not None and not cycle.response_complete:
            if isinstance(body, bytearray):
                cycle.buffer = body
            self._start(cycle, body)

    def _take(self, cycle: InferenceCycle, body: bytes) -> None:
        """The request came in one piece."""
        try:
            cycle.hold(len(body))
        except AppError as error:
            self._fail(cycle, error)
            return
        self._start(cycle, body)


def _used(cycle: InferenceCycle, length: int) -> bytearray | memoryview | None:
    """A buffer for a whole body that is there already; None where there is none."""
    bodies = cycle.service.bodies
    if bodies is not None and cycle.target.oip and HEADER_LENGTH in cycle.headers:
        return bodies.take(length) or BODIES.take(length)
    return BODIES.take(length)
