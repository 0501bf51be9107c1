"""Fast path: inference requests of one connection, from their headers to their responses, without ASGI."""

from collections.abc import Callable
from functools import partial

from app.engine.codec import HeaderList
from app.engine.codec.content import Content, LongContent
from app.errors import AppError
from app.http.connection.body_reader import POOL, SPARE_BYTES, BodyReader, has_binary_tensors
from app.http.connection.context import ConnectionContext
from app.http.connection.header_cache import KnownHeaders
from app.http.connection.request import WireRequest
from app.http.connection.request_parser import RequestParser
from app.service.inference import Target

Send = Callable[[WireRequest, int, HeaderList, Content], None]


class FastPath:
    """The inference requests of one connection, one at a time.

    Args:
        context: Context shared by all connections.
        send: Sends a response.

    Attributes:
        reader: Receives long bodies.
        request: The latest request.
    """

    __slots__ = ("_context", "_send", "_service", "reader", "request")

    def __init__(self, context: ConnectionContext, send: Send) -> None:
        self.request: WireRequest | None = None
        self._context = context
        self._service = context.service
        self._send: Send | None = send
        self.reader = BodyReader()

    @property
    def received(self) -> int:
        """Number of received bytes of the body."""
        if self.reader.rest is not None:
            return self.reader.received
        return 0 if self.request is None else len(self.request.body)

    def begin(self, parser: RequestParser, target: Target, query: bytes, text: bytes) -> WireRequest:
        """Start a request with parsed headers: admit or refuse it.

        Args:
            parser: The parser of the headers.
            target: The requested model.
            query: Query of the URL.
            text: The headers as received, if they may be cached.
        """
        headers = dict(parser.headers)
        request = self.request = WireRequest(self._service, target, headers, query, keep_alive=parser.keep_alive)
        try:
            self._service.admit(headers)
        except AppError as error:
            self.refuse(error)
            return request
        if text and request.keep_alive and text.count(b"\r\n") == len(parser.headers) + 2:
            # The text is exactly what the parser read as headers, without bytes before or after them.
            self._context.header_cache.remember(text, target, headers, query)
        return request

    def begin_known(self, known: KnownHeaders, received: bytearray, start: int, nbytes: int) -> WireRequest:
        """Start a request with cached headers.

        Args:
            known: The headers.
            received: The buffer of the received bytes.
            start: Start of the body in the buffer.
            nbytes: Number of received bytes, at most the whole request.
        """
        request = WireRequest(self._service, known.target, known.headers, known.query, keep_alive=True)
        self.request = request
        reader, length = self.reader, known.content_length
        offered, reader.offered = reader.offered, None
        try:
            if offered is not None and len(offered) == length + SPARE_BYTES and has_binary_tensors(request):
                reader.begin_in(offered, request, start, nbytes, length)
                if nbytes - start < length:
                    return request
                self._take_body(request)
            elif nbytes - start < length:
                reader.begin(self._service, request, length, memoryview(received)[start:nbytes])
                return request
            else:
                reader.size = 0
                request.reservation.reserve(length)
                request.body = bytes(memoryview(received)[start:nbytes])
        except AppError as error:
            self.refuse(error)
            return request
        self.end_body()
        return request

    def receive_body(self, piece: bytes) -> None:
        """Add a piece of the body from the parser."""
        request = self.request
        if request is None or request.response_complete:
            return
        try:
            if not request.add(piece, self._service.max_body_bytes):
                raise self._service.too_large()
        except AppError as error:
            self.refuse(error)

    def receive_rest_directly(self) -> None:
        """Receive the rest of a body of known length without the parser."""
        request = self.request
        if request is None or request.response_complete or b"transfer-encoding" in request.headers:
            return
        length = int(request.headers.get(b"content-length", b"0"))
        if length > len(request.body):
            begun, request.body = request.body, b""
            try:
                self.reader.begin(self._service, request, length, begun)
            except AppError as error:
                self.refuse(error)

    def received_directly(self, nbytes: int) -> bool:
        """Account for received bytes of the body; True if it is complete."""
        request = self.request
        if request is None or request.response_complete:
            return False
        try:
            if not self.reader.advance(request, nbytes):
                return False
        except AppError as error:
            self.refuse(error)
            return False
        self._take_body(request)
        return True

    def _take_body(self, request: WireRequest) -> None:
        """Take the complete body from the reader."""
        request.body, request.pooled = self.reader.finish()

    def end_body(self) -> None:
        """Decode a complete request now, or in a later turn of the event loop if this one has decoded for too long."""
        request = self.request
        if request is None or request.response_complete:
            return
        admission = self._service.admission
        if admission.may_start():
            self._start(request)
            admission.started()
        else:
            admission.later(partial(self._start, request))

    def _start(self, request: WireRequest) -> None:
        if request.response_complete:
            return
        body, request.body = request.body, b""
        respond = partial(self._respond, request)
        call = self._service.start(request.target, request.headers, request.query, body, respond)
        if not request.response_complete:
            request.call = call

    def _respond(self, request: WireRequest, status: int, headers: HeaderList, content: Content) -> None:
        request.call = None  # it refers to the request; avoid a reference cycle
        if request.response_complete or self._send is None:
            return
        request.response_complete = True
        request.reservation.release()
        if request.pooled is not None:
            if type(content) is not LongContent or not content.reads(request.pooled):
                POOL.give_back(request.pooled)
            request.pooled = None
        self._send(request, status, headers, content)

    def refuse(self, error: AppError) -> None:
        """Respond with an error before the body is complete; the connection closes and discards further input."""
        request = self.request
        if request is None or request.response_complete:
            return
        request.keep_alive = False
        request.drop_body()
        self.reader.clear()
        self._service.refuse(request.target, request.headers, partial(self._respond, request), error)

    def cut(self, error: AppError) -> None:
        """Respond to the current request with an error, without waiting for its result."""
        request = self.request
        if request is None or request.response_complete:
            return
        request.keep_alive = False
        if request.call is not None:
            request.call.fail(error)
        else:
            self.refuse(error)

    def abandon(self) -> None:
        """Drop the current request."""
        self.reader.clear()
        if self.request is not None and not self.request.response_complete:
            self.request.abandon()

    def disconnect(self) -> None:
        """Free the resources of the request: the connection has ended."""
        self.abandon()
        self.request = self._send = None
