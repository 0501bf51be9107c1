"""How clients are let in, and how that ends, on uvloop's event loop and on Python's own."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import uvloop

from app.listening import LOOK_S, Listening, accept_all, keep_out

CLIENTS = 40
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Reception:
    """A server whose protocol does no more than tell of each client."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.made = 0
        self.listening = Listening(self.serve)

    async def serve(self, connection):
        await asyncio.get_running_loop().connect_accepted_socket(self.protocol, connection)

    def protocol(self):
        reception = self

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                reception.made += 1
                reception.listening.look()

        return Protocol()

    def connect(self, stack):
        return stack.enter_context(socket.create_connection(self.sock.getsockname(), timeout=10))


@pytest.mark.parametrize("make_loop", LOOPS)
def test_all_who_wait_are_let_in_within_a_few_turns_of_a_busy_loop(make_loop):
    async def turns():
        reception = Reception()
        server = await asyncio.get_running_loop().create_server(reception.protocol, sock=reception.sock)
        reception.listening.begin([reception.sock])
        count = 0
        with ExitStack() as stack:
            for _ in range(CLIENTS):
                reception.connect(stack)
            while reception.made < CLIENTS:
                time.sleep(2 * LOOK_S)  # the loop has much to do
                await asyncio.sleep(0)
                count += 1
            await reception.listening.end([server])
        return count

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(turns()) < CLIENTS / 4


@pytest.mark.parametrize("make_loop", LOOPS)
def test_who_waits_when_it_ends_is_known_by_then(make_loop, monkeypatch):
    monkeypatch.setattr("app.listening.HANDSHAKE_S", 0)  # else most are let in before

    async def end():
        reception = Reception()
        server = await asyncio.get_running_loop().create_server(reception.protocol, sock=reception.sock)
        reception.listening.begin([reception.sock])
        with ExitStack() as stack:
            address = reception.sock.getsockname()
            for _ in range(CLIENTS):
                reception.connect(stack)
            await reception.listening.end([server])
            assert (reception.made, reception.listening.pending) == (CLIENTS, False)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(end())


def test_a_client_that_comes_at_the_very_end_is_refused_and_not_reset():
    with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as stack:
        early = stack.enter_context(socket.create_connection(sock.getsockname()))
        keep_out(sock)
        pool = stack.enter_context(ThreadPoolExecutor())
        late = pool.submit(socket.create_connection, sock.getsockname(), timeout=10)
        early.sendall(b"request")  # the one before goes on
        with pytest.raises(TimeoutError):
            late.result(0.2)
        (connection,) = accept_all(sock)
        assert stack.enter_context(connection).recv(7) == b"request"
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            late.result()


def test_no_more_are_taken_than_asked_for():
    with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(sock.getsockname()))
        assert [len(list(map(stack.enter_context, accept_all(sock, most)))) for most in (3, 3, 3)] == [3, 2, 0]
