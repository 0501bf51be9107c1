"""Clients that take their time, tried over sockets: on the quick way and on uvicorn's own."""

import asyncio
import contextlib
import json
import time

import pytest
from helpers import build
from helpers.raw_http import BODY, FAST, ROW, SLOW, answer, head, rest, wire

from app.config.limits import Limits
from app.service.watchdog import CHECK_S, Watchdog


@pytest.fixture(scope="module")
def hasty(tiny_dir):
    with build.running(tiny_dir, header_timeout_s=0.3, body_timeout_s=0.3, write_timeout_s=0.3) as client:
        yield client


def test_a_client_that_says_nothing_is_closed(hasty):
    with wire(hasty) as sock:
        began = time.monotonic()
        assert rest(sock) == b""
        assert 0.25 < time.monotonic() - began < 60


@pytest.mark.parametrize("already", [0, 1])
@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_head_that_drips_is_ended(hasty, path, already):
    """A byte now and then keeps nothing open: the timeout applies to the complete header."""
    with wire(hasty) as sock:
        for _ in range(already):
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
        began = time.monotonic()
        text = head(path, "X-Long: " + "a" * 1000, length=2)
        sock.settimeout(0.05)
        got = b""
        for byte in text:
            try:
                sock.sendall(bytes([byte]))
                got += sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            break
        sock.settimeout(60)
        got += rest(sock)
        took = time.monotonic() - began
    status, headers, document = answer(got)
    assert (status, headers["connection"]) == (408, "close")
    assert document == {"error": "the complete header did not arrive within header_timeout_s (0.3)"}
    assert headers["x-request-id"]
    assert 0.25 < took < 60


def test_empty_lines_keep_nothing_open(hasty):
    with wire(hasty) as sock:
        sock.sendall(head(FAST, length=len(BODY)) + BODY)
        assert b"200 OK" in sock.recv(65536)
        began = time.monotonic()
        with contextlib.suppress(OSError):  # broken pipe or reset
            while time.monotonic() - began < 60:
                sock.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 59


@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_body_that_stops_is_given_up(hasty, path):
    starts = [head(path, "Transfer-Encoding: chunked") + b"10\r\n" + b" " * 16 + b"\r\n"]
    for length in (100, 100_000, 3_000_000)[: 3 if path == FAST else 2]:
        starts += [head(path, length=length), head(path, length=length) + b" " * 50]
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        socks = [stack.enter_context(wire(hasty)) for _ in starts]
        for sock, start in zip(socks, starts, strict=True):
            sock.sendall(start)
        for sock in socks:
            status, headers, document = answer(rest(sock))
            took = time.monotonic() - began
            assert (status, headers["connection"]) == (408, "close")
            assert document == {"error": "more than 1024 bytes of the body did not arrive within body_timeout_s (0.3)"}
            assert 0.25 < took < 60


@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_body_that_drips_is_given_up_and_a_slow_one_that_gets_on_is_not(hasty, path):
    with wire(hasty) as sock:
        sock.sendall(head(path, length=60_000))
        began = time.monotonic()
        sock.settimeout(0.05)
        got = b""
        while not got and time.monotonic() - began < 60:
            try:
                sock.sendall(b" ")
                got = sock.recv(65536)
            except TimeoutError:
                continue
        assert got.startswith(b"HTTP/1.1 408")
    body = (BODY if path == FAST else b"{}") + b" " * 12_000
    with wire(hasty) as sock:
        sock.sendall(head(path, length=len(body)))
        for start in range(0, len(body), 1500):
            sock.sendall(body[start : start + 1500])
            time.sleep(0.08)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_idle_connections_and_long_answers_are_left_alone(hasty):
    """The times are for what the client owes, not for what the server does or for keeping a connection."""
    with wire(hasty) as sock:
        for _ in range(2):
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
            time.sleep(0.8)


@pytest.mark.parametrize("way", ["quick", "uvicorn"])
def test_a_client_that_does_not_read_is_cut_off_and_piles_up_nothing(tiny_dir, way):
    rows = json.dumps({"inputs": [ROW] * 2000}).encode()
    request = (
        head(FAST, length=len(rows)) + rows if way == "quick" else b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    with build.running(tiny_dir, write_timeout_s=1.0) as client:
        with wire(client, size=4096) as sock:
            sock.setblocking(False)  # noqa: FBT003
            sent, began = 0, time.monotonic()
            view = memoryview(request * 50)
            ended = False
            while time.monotonic() - began < 60 and not ended:
                try:
                    sent += sock.send(view[sent % len(request) :])
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:
                    ended = True
            took = time.monotonic() - began
        assert ended
        assert 0.9 < took < 60
        # What is not read is not asked for: the kernel's buffers and a few requests, not all that was offered.
        live = client.get("/stats").json()["models"][0]["live"]
        assert sent < 40_000_000
        assert live["requests"] * len(rows) < 40_000_000
        assert client.post(FAST, content=BODY).status_code == 200


def test_a_client_that_reads_slowly_gets_its_answer_whole(tiny_dir):
    rows = json.dumps({"inputs": [ROW] * 20_000}).encode()
    with build.running(tiny_dir, write_timeout_s=0.5) as client, wire(client, size=4096) as sock:
        sock.sendall(head(FAST, "Connection: close", length=len(rows)) + rows)
        data = b""
        while piece := sock.recv(50_000):
            data += piece
            time.sleep(0.004)
    status, _, document = answer(data)
    assert status == 200
    assert len(document["outputs"]["logits"]) == 20_000


def test_a_watch_sleeps_while_there_are_no_connections():
    class Idle:
        looks = 0

        def waiting_for(self):
            self.looks += 1

        def time_out(self, waiting):
            raise AssertionError

    async def run():
        connections, idle = set(), Idle()
        watch = Watchdog(connections, Limits(header_timeout_s=0.05))
        connections.add(idle)
        watch.wake()
        watch.wake()
        await asyncio.sleep(0.06)
        connections.clear()
        await asyncio.sleep(0.03)
        seen = idle.looks
        assert 3 <= seen <= 8
        assert watch._timer is None

    asyncio.run(run())


class Hurried(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing: its clock jumps to the next timer."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if self._scheduled and not self._ready:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


@pytest.mark.parametrize("limit_s", [2.7, 10, 10.1])
@pytest.mark.parametrize("offset_s", [0, 0.01, 0.26, 0.49])
def test_a_limit_is_kept_to_half_a_second(limit_s, offset_s):
    class Connection:
        def __init__(self, found=None):
            self.found, self.ended_at = found, None

        def waiting_for(self):
            return self.found

        def time_out(self, waiting):
            connections.remove(self)
            self.ended_at = asyncio.get_running_loop().time()

    async def run():
        watch = Watchdog(connections, Limits(header_timeout_s=limit_s))
        connections.add(Connection())  # keeps the watch awake
        watch.wake()
        await asyncio.sleep(CHECK_S + offset_s)
        began = asyncio.get_running_loop().time()
        connections.add(stands := Connection(("headers", began)))
        watch.wake()
        await asyncio.sleep(limit_s + 5)
        return stands.ended_at - began

    connections = set()
    with asyncio.Runner(loop_factory=Hurried) as runner:
        # A look comes no sooner than a quarter of the time between two after the last one.
        assert limit_s <= runner.run(run()) <= limit_s + 1.25 * CHECK_S
