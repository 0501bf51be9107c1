"""Connections whose client is still sending when its answer is there: discarded, within two limits."""

import asyncio
import contextlib
import socket
import time

from app.http.connection import lingering_close
from app.http.connection.lingering_close import LingeringClose

ANSWER = b"the answer"


class Refusing(asyncio.Protocol):
    """Answers what comes first and closes."""

    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(ANSWER)
        LingeringClose(self, self.transport, asyncio.get_running_loop())

    def connection_lost(self, exc):
        self.lost.set_result(exc)


def served(client, idle_s, linger_s, monkeypatch):
    """What a blocking client, run in a thread, returns; and how long the connection lasted."""
    monkeypatch.setattr(lingering_close, "IDLE_S", idle_s)
    monkeypatch.setattr(lingering_close, "LINGER_S", linger_s)

    async def run():
        ours, theirs = socket.socketpair()
        with theirs:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(Refusing, ours)
            began = time.monotonic()
            found = asyncio.create_task(asyncio.to_thread(client, theirs))
            await protocol.lost
            lasted_s = time.monotonic() - began
            return await found, lasted_s

    return asyncio.run(run())


def slow(sock):
    """Sends for longer than nothing may come, and reads the answer only then."""
    for _ in range(12):
        sock.sendall(b"x" * 1000)
        time.sleep(0.1)
    sock.shutdown(socket.SHUT_WR)
    return sock.recv(100)


def test_a_client_that_sends_slowly_reads_its_answer(monkeypatch):
    found, lasted_s = served(slow, 0.5, 300, monkeypatch)
    assert found == ANSWER
    assert lasted_s > 1


def silent(sock):
    sock.sendall(b"x")
    return sock.recv(100), sock.recv(100)


def test_a_client_that_is_silent_is_given_up(monkeypatch):
    found, lasted_s = served(silent, 0.2, 300, monkeypatch)
    assert found == (ANSWER, b"")
    assert lasted_s < 100


def endless(sock):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            sock.sendall(b"x" * 1000)
            time.sleep(0.01)


def test_a_client_that_never_ends_is_cut_off(monkeypatch):
    _, lasted_s = served(endless, 0.2, 1, monkeypatch)
    assert 0.9 < lasted_s < 100
