"""Long bodies that threads receive and send, on a pair of sockets."""

import asyncio
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.http.connection import long_bodies as module
from app.http.connection.long_bodies import LONG_BYTES, BodyThreads, LongBodies

LIMIT_S = 60
DATA = bytes(range(256)) * (2 * LONG_BYTES // 256)


class Transport:
    """What a connection needs of its transport, on a socket."""

    def __init__(self, sock):
        self.socket = sock
        self.told = []
        self.written = []
        self.closing = False
        self.pending = 0
        self.bodies = []

    def get_extra_info(self, name):
        return self.socket if name == "socket" else None

    def get_write_buffer_size(self):
        return self.pending

    def is_closing(self):
        return self.closing

    def pause_reading(self):
        self.told.append("pause")

    def resume_reading(self):
        self.told.append("resume")

    def writelines(self, buffers):
        self.written += [bytes(each) for each in buffers]


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    theirs.settimeout(LIMIT_S)
    with ours, theirs:
        transport = Transport(ours)
        yield transport, theirs
        for each in transport.bodies:
            each.close()


def bodies(transport, threads=None, *, paused=False):
    found = LongBodies(asyncio.get_running_loop(), threads or BodyThreads(2))
    found.connect(transport, SimpleNamespace(read_paused=paused))
    transport.bodies.append(found)
    return found


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_body_is_received_whole(pair, monkeypatch):
    transport, theirs = pair
    monkeypatch.setattr(module, "_WAIT_MS", 1000 * LIMIT_S)  # however busy the machine is
    monkeypatch.setattr(module, "_LONGEST_S", LIMIT_S)
    sender = threading.Thread(target=theirs.sendall, args=(DATA,))

    async def run():
        body, got = bytearray(len(DATA)), []
        sender.start()
        bodies(transport).receive(SimpleNamespace(rest=memoryview(body)), got.append)
        await until(lambda: got)
        assert got == [len(DATA)]
        return bytes(body)

    assert asyncio.run(run()) == DATA
    sender.join()
    assert transport.told == ["pause", "resume"]


def test_a_client_that_waits_is_left_to_the_loop(pair):
    transport, theirs = pair
    theirs.sendall(DATA[:1000])

    async def run():
        body, got = bytearray(len(DATA)), []
        reader = SimpleNamespace(rest=memoryview(body))
        bodies(transport).receive(reader, got.append)
        await until(lambda: transport.told == ["pause", "resume"])
        assert (got, bytes(body[:1000])) == ([1000], DATA[:1000])

    asyncio.run(run())


@pytest.mark.parametrize("end", ["closed", "given up", "closing"])
def test_nothing_is_told_of_a_body_that_nobody_waits_for(pair, end):
    transport, theirs = pair
    theirs.sendall(DATA[:1000] if end != "closed" else b"")
    if end == "closed":
        theirs.close()

    async def run():
        got, reader = [], SimpleNamespace(rest=memoryview(bytearray(len(DATA))))
        long = bodies(transport)
        long.receive(reader, got.append)
        if end == "given up":
            reader.rest = None
        transport.closing = end == "closing"
        await until(lambda: not long._busy)
        assert got == []
        assert ("resume" in transport.told) == (end != "closing")

    asyncio.run(run())


def test_a_response_is_sent_whole(pair):
    transport, theirs = pair

    async def run():
        sent = []
        long = bodies(transport)
        receiving = asyncio.to_thread(receive, theirs, 4 + len(DATA))
        task = asyncio.ensure_future(receiving)
        long.send((b"head", memoryview(DATA)), lambda: sent.append(long.sending))
        assert long.sending
        await until(lambda: sent)
        left = b"".join(transport.written)
        transport.socket.settimeout(LIMIT_S)
        await asyncio.to_thread(transport.socket.sendall, left)  # where its buffer did not take all
        assert sent == [False]
        assert await task == b"head" + DATA

    asyncio.run(run())
    assert transport.told == ["pause", "resume"]


def receive(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(1 << 16)
        assert piece
        data += piece
    return data


def test_what_the_socket_does_not_take_is_left_to_the_loop(pair):
    transport, theirs = pair
    transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def run():
        sent = []
        bodies(transport).send((b"head", memoryview(DATA)), lambda: sent.append(True))
        await until(lambda: sent)

    asyncio.run(run())
    left = b"".join(transport.written)
    assert 0 < len(left) < len(DATA)
    theirs.settimeout(0)
    taken = b""
    while len(taken) + len(left) < 4 + len(DATA):
        taken += theirs.recv(1 << 16)
    assert taken + left == b"head" + DATA


@pytest.mark.parametrize("why", ["short", "no threads", "pending", "no thread can be started", "no socket", "no file"])
def test_the_loop_copies_what_no_thread_can(pair, why, monkeypatch):
    transport, _ = pair
    data = DATA[: LONG_BYTES - 1] if why == "short" else DATA
    transport.pending = why == "pending"
    if why == "no thread can be started":
        monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("none")))
    if why == "no socket":
        transport.socket = None
    if why == "no file":

        def refuse():
            raise OSError(24, os.strerror(24))

        transport.socket = SimpleNamespace(dup=refuse)

    async def run():
        got, reader = [], SimpleNamespace(rest=memoryview(bytearray(len(data))))
        long = bodies(transport, BodyThreads(0 if why == "no threads" else 2))
        long.send((memoryview(data),), lambda: got.append("sent"))
        assert not long.sending
        if why != "pending":
            long.receive(reader, got.append)
        await asyncio.sleep(0)
        assert (got, transport.told) == ([], [])

    asyncio.run(run())
    assert b"".join(transport.written) == data


def test_a_paused_connection_is_not_received_from(pair):
    transport, theirs = pair
    theirs.sendall(DATA[:1000])

    async def run():
        bodies(transport, paused=True).receive(SimpleNamespace(rest=memoryview(bytearray(len(DATA)))), print)
        assert transport.told == []

    asyncio.run(run())


def test_the_copy_of_the_socket_goes_with_the_connection(pair):
    transport, _ = pair
    before = open_files()

    async def run():
        ended = []
        long = bodies(transport)
        files = open_files()
        long.receive(SimpleNamespace(rest=memoryview(bytearray(len(DATA)))), ended.append)
        long.close()  # while the thread waits
        transport.closing = True
        await until(lambda: not long._busy)
        assert ended == []
        assert open_files() == files
        long.close()

    asyncio.run(run())
    assert open_files() == before
