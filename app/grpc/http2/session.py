"""HTTP/2 session of one connection by nghttp2; operations on closed streams are ignored."""

import contextlib
import logging
from collections.abc import Iterable, Iterator

from ngh2 import Configuration, ErrorCode, Event, NGH2Error, Role, Setting
from ngh2 import Connection as NgConnection

from app.engine.codec import HeaderList
from app.grpc.call import Outcome
from app.grpc.http2 import headers
from app.grpc.http2.framing import framed
from app.grpc.http2.patience import BURST, PER_SECOND

log = logging.getLogger(__name__)

MAX_STREAMS = 1024
MAX_FIELDS = 256
FIRST_WINDOW_BYTES = 256 * 1024
"""Initial receive window of a stream."""
WINDOW_BYTES = 1024 * 1024
"""Receive window of a stream with a long message."""
_CONNECTION_WINDOW_BYTES = 8 * 1024 * 1024
_HEADER_TABLE_BYTES = 256
"""Header table of responses. A longer one would fill with request ids, which nghttp2 searches for each response."""
_NOTICE = b"draining"


def configuration(max_header_bytes: int) -> Configuration:
    """Limits of nghttp2 for a connection.

    Args:
        max_header_bytes: Limit of a call's headers. Longer ones are refused with a gRPC status; those of twice the
            length end the connection.
    """
    return Configuration(
        auto_window_update=False,
        max_inbound_header_list_size=2 * max_header_bytes,
        max_inbound_header_count=MAX_FIELDS,
        max_deflate_dynamic_table_size=_HEADER_TABLE_BYTES,
        max_continuations=8,
        max_settings=32,
        # Above our own limits, which end the connection with ENHANCE_YOUR_CALM.
        max_outbound_ack=10 * BURST,
        stream_reset_rate_limit=(10 * BURST, 10 * PER_SECOND),
        glitch_rate_limit=(2 * BURST, 2 * PER_SECOND),
    )


class Session:
    """HTTP/2 session of one connection.

    Args:
        limits: Limits of nghttp2, see ``configuration``.
        max_header_bytes: Header limit announced to the client.

    Attributes:
        closed: Whether nothing is received or sent any more.
    """

    def __init__(self, limits: Configuration, max_header_bytes: int) -> None:
        self.closed = False
        self._session = NgConnection(Role.SERVER, limits)
        self._session.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                Setting.INITIAL_WINDOW_SIZE: FIRST_WINDOW_BYTES,
                Setting.MAX_HEADER_LIST_SIZE: max_header_bytes,
            }
        )
        self._session.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self._unfinished: list[int] = []  # answered streams whose requests are incomplete

    # Input.

    def receive(self, data: memoryview) -> None:
        """Process received bytes.

        Raises:
            NGH2Error: The bytes are not valid HTTP/2, or exceed a limit.
        """
        self._session.receive_data(data)

    def events(self) -> Iterable[Event]:
        """Iterate over new events, until the session is closed."""
        for event in self._session.events():
            if self.closed:
                return
            yield event

    def acknowledge(self, number: int, nbytes: int) -> None:
        """Return flow-control credit for bytes that have been read of a stream."""
        if nbytes and not self.closed:
            try:  # noqa: SIM105 - contextlib.suppress() is slow
                self._session.acknowledge_received_data(nbytes, number)
            except (NGH2Error, ValueError):  # the session is closing
                pass

    def widen(self, number: int) -> None:
        """Enlarge the receive window of a stream."""
        if not self.closed:
            with contextlib.suppress(NGH2Error):
                self._session.set_local_window_size(WINDOW_BYTES, stream_id=number)

    # Output.

    def begin(self, number: int) -> None:
        """Begin a response of several messages."""
        if not self.closed:
            with self._losing(number):
                self._session.send_response(number, headers.RESPONSE)

    def send(self, number: int, message: bytes) -> None:
        """Send one message of a response that has begun."""
        if not self.closed:
            with self._losing(number):
                for piece in framed(message):
                    self._session.send_data(number, piece)

    def answer(self, number: int, outcome: Outcome, *, begun: bool, ended: bool) -> None:
        """Send the outcome of a call.

        Args:
            number: Number of the stream.
            outcome: Outcome of the call.
            begun: Whether the response has begun and lacks only its end.
            ended: Whether the request is complete.
        """
        if self.closed:
            return
        error, fields, message = outcome
        session = self._session
        try:
            if error is None:
                if not begun:
                    session.send_response(number, headers.RESPONSE)
                    for piece in framed(message):
                        session.send_data(number, piece)
                session.send_trailers(number, [headers.SUCCESS, *fields])
            elif begun:
                session.send_trailers(number, headers.failure(fields, error))
            else:
                session.send_response(number, [*headers.RESPONSE, *headers.failure(fields, error)], end_stream=True)
            if error is not None and not ended:
                self._unfinished.append(number)
        except NGH2Error as problem:
            self._lose(number, problem)

    def refuse(self, number: int, fields: HeaderList) -> None:
        """Respond with headers only, to a request that is not a call."""
        if not self.closed:
            with contextlib.suppress(NGH2Error):  # the client has reset the stream
                self._session.send_response(number, fields, end_stream=True)
                self._unfinished.append(number)

    def unsent(self, number: int) -> int:
        """Bytes of a response that wait for flow control."""
        return 0 if self.closed else self._session.queued_body_size(number)

    def reset(self, number: int, code: ErrorCode) -> None:
        """Reset a stream."""
        if not self.closed:
            with contextlib.suppress(NGH2Error):
                self._session.reset_stream(number, code)

    def end_unfinished(self) -> bool:
        """Reset answered streams whose requests are incomplete; True if there were any."""
        unfinished, self._unfinished = self._unfinished, []
        for number in unfinished:
            self.reset(number, ErrorCode.NO_ERROR)
        return bool(unfinished)

    def output(self, most: int) -> bytes:
        """Return pending output.

        Args:
            most: Maximum number of bytes.

        Raises:
            NGH2Error: The session has failed.
        """
        return self._session.data_to_send(most) if not self.closed and self._session.want_write else b""

    # The end.

    def notify(self) -> None:
        """Announce the shutdown by GOAWAY and PING; see ``is_notice``."""
        if not self.closed:
            with contextlib.suppress(NGH2Error):
                self._session.send_shutdown_notice()
                self._session.ping(_NOTICE)

    def is_notice(self, opaque_data: bytes) -> bool:
        """Whether a PING acknowledgement belongs to the shutdown notice."""
        return opaque_data == _NOTICE

    def finish(self) -> None:
        """Send the final GOAWAY: calls in flight are answered, new ones ignored."""
        if not self.closed:
            with contextlib.suppress(NGH2Error):
                self._session.send_goaway(ErrorCode.NO_ERROR)

    def terminate(self, code: ErrorCode) -> bytes:
        """End the session with an error code; returns the last bytes for the client."""
        if self.closed:
            return b""
        self.closed = True
        with contextlib.suppress(NGH2Error):
            self._session.terminate_connection(code)
            return self._session.data_to_send()
        return b""

    @contextlib.contextmanager
    def _losing(self, number: int) -> Iterator[None]:
        try:
            yield
        except NGH2Error as problem:
            self._lose(number, problem)

    def _lose(self, number: int, problem: NGH2Error) -> None:
        """Give up a response that cannot be sent."""
        log.debug("an answer over gRPC is lost: %s", problem)
        self.reset(number, ErrorCode.INTERNAL_ERROR)
