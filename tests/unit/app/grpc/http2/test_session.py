"""Nothing that is said to a session too late raises, and the end is told in two steps."""

import ngh2
import pytest

from app.errors import InvalidRequestError
from app.grpc.http2.session import FIRST_WINDOW_BYTES, MAX_STREAMS, WINDOW_BYTES, Session, configuration

CALL = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/s/m")]
LATE = {
    "acknowledge": lambda session, number: session.acknowledge(number, 10),
    "widen": lambda session, number: session.widen(number),
    "begin": lambda session, number: session.begin(number),
    "send": lambda session, number: session.send(number, b"late"),
    "answer": lambda session, number: session.answer(number, (None, [], b"late"), begun=False, ended=True),
    "end": lambda session, number: session.answer(number, (None, [], b""), begun=True, ended=True),
    "fail": lambda session, number: session.answer(
        number, (InvalidRequestError("late"), [], b""), begun=False, ended=False
    ),
    "refuse": lambda session, number: session.refuse(number, [(b":status", b"415")]),
    "reset": lambda session, number: session.reset(number, ngh2.ErrorCode.CANCEL),
    "unsent": lambda session, number: session.unsent(number),
    "unfinished": lambda session, _: session.end_unfinished(),
    "notify": lambda session, _: session.notify(),
    "finish": lambda session, _: session.finish(),
    "terminate": lambda session, _: session.terminate(ngh2.ErrorCode.NO_ERROR),
    "output": lambda session, _: session.output(1000),
}


class Pair:
    """A session and its client, without a network."""

    def __init__(self):
        self.session = Session(configuration(4096), 4096)
        self.client = ngh2.Connection(ngh2.Role.CLIENT)
        self.client.initiate_connection()
        self.exchange()

    def exchange(self):
        """All that both have to say; the events of both."""
        here, there = [], []
        while True:
            up = self.client.data_to_send()
            if up:
                self.session.receive(memoryview(up))
            here += self.session.events()
            down = self.session.output(10**6)
            here += self.session.events()
            if down:
                self.client.receive_data(down)
            there += self.client.events()
            if not up and not down:
                return here, there


def test_the_client_learns_the_limits():
    pair = Pair()
    assert pair.client.remote_settings[3] == MAX_STREAMS
    assert pair.client.remote_settings[6] == 4096
    number = pair.client.send_request(CALL)
    pair.exchange()
    assert pair.client.stream_remote_window_size(number) == FIRST_WINDOW_BYTES
    pair.session.widen(number)
    pair.exchange()
    assert pair.client.stream_remote_window_size(number) == WINDOW_BYTES


def test_bytes_are_replaced_once_they_are_read():
    pair = Pair()
    number = pair.client.send_request(CALL)
    pair.client.send_data(number, bytes(10 * FIRST_WINDOW_BYTES))
    pair.exchange()
    assert pair.client.queued_body_size(number) == 9 * FIRST_WINDOW_BYTES
    pair.session.acknowledge(number, FIRST_WINDOW_BYTES)
    pair.exchange()
    assert pair.client.queued_body_size(number) == 8 * FIRST_WINDOW_BYTES


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("end", ["reset", "terminated", "closed", "goaway"])
def test_what_comes_too_late_is_lost_without_an_error(name, end):
    pair = Pair()
    number = pair.client.send_request(CALL)
    pair.client.send_data(number, b"early")
    pair.exchange()
    if end == "reset":
        pair.client.reset_stream(number)
    elif end == "terminated":
        pair.client.terminate_connection(ngh2.ErrorCode.NO_ERROR)
    elif end == "goaway":
        pair.session.terminate(ngh2.ErrorCode.NO_ERROR)
    else:
        pair.session.closed = True
    if end in ("reset", "terminated"):
        pair.exchange()
    LATE[name](pair.session, number)
    assert number not in {getattr(event, "stream_id", None) for event in pair.session.events()}
    if end != "terminated":  # the client is told nothing more of it
        assert b"late" not in pair.session.output(10**6)
        assert pair.session.unsent(number) == 0


def test_events_end_with_the_session():
    pair = Pair()
    for _ in range(2):
        pair.client.send_request(CALL)
    pair.session.receive(memoryview(pair.client.data_to_send()))
    found = []
    for event in pair.session.events():
        found.append(event)
        pair.session.closed = True
    assert len(found) == 1
    assert list(pair.session.events()) == []


def test_the_end_is_told_twice_and_calls_of_before_are_answered():
    pair = Pair()
    number = pair.client.send_request(CALL, end_stream=True)
    pair.exchange()
    pair.session.notify()
    here, there = pair.exchange()
    (pong,) = [event for event in here if isinstance(event, ngh2.PingAcknowledged)]
    assert pair.session.is_notice(pong.opaque_data)
    assert not pair.session.is_notice(b"another.")
    (notice,) = [event for event in there if isinstance(event, ngh2.GoAwayReceived)]
    assert notice.last_stream_id == 2**31 - 1
    pair.session.finish()
    _, there = pair.exchange()
    (last,) = [event for event in there if isinstance(event, ngh2.GoAwayReceived)]
    assert last.last_stream_id == number
    pair.session.answer(number, (None, [], b"done"), begun=False, ended=True)
    here, there = pair.exchange()
    assert any(isinstance(event, ngh2.TrailersReceived) for event in there)
    assert any(isinstance(event, ngh2.ConnectionClosed) for event in here)


def test_what_is_no_http2_raises():
    with pytest.raises(ngh2.NGH2Error):
        Session(configuration(4096), 4096).receive(memoryview(b"GET / HTTP/1.1\r\n\r\n" * 10))
