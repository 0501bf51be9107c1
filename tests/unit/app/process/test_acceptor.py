"""How clients are let in, and how that ends, on uvloop's event loop and on Python's own."""

import asyncio
import socket
import time
from contextlib import ExitStack

import pytest
import uvloop

from app.process.acceptor import LOOK_S, Acceptor, accept_all, drop_syn

CLIENTS = 40
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Reception:
    """A server whose protocol does no more than tell of each client."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.made = 0
        self.acceptor = Acceptor(self.serve)

    async def serve(self, connection):
        await asyncio.get_running_loop().connect_accepted_socket(self.protocol, connection)

    def protocol(self):
        reception = self

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                reception.made += 1
                reception.acceptor.connection_made()

        return Protocol()

    def connect(self, stack):
        return stack.enter_context(socket.create_connection(self.sock.getsockname(), timeout=60))


@pytest.mark.parametrize("make_loop", LOOPS)
def test_all_who_wait_are_let_in_within_a_few_turns_of_a_busy_loop(make_loop):
    async def turns():
        reception = Reception()
        server = await asyncio.get_running_loop().create_server(reception.protocol, sock=reception.sock)
        reception.acceptor.start([reception.sock])
        count = 0
        with ExitStack() as stack:
            for _ in range(CLIENTS):
                reception.connect(stack)
            while reception.made < CLIENTS:
                time.sleep(2 * LOOK_S)  # the loop has much to do
                await asyncio.sleep(0)
                count += 1
            await reception.acceptor.close([server])
        return count

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(turns()) < CLIENTS / 4


@pytest.mark.parametrize("make_loop", LOOPS)
def test_who_waits_when_it_ends_is_known_by_then(make_loop):
    async def end():
        reception = Reception()
        server = await asyncio.get_running_loop().create_server(reception.protocol, sock=reception.sock)
        reception.acceptor.start([reception.sock])
        with ExitStack() as stack:
            address = reception.sock.getsockname()
            for _ in range(CLIENTS):
                reception.connect(stack)
            await reception.acceptor.close([server])
            assert (reception.made, reception.acceptor.pending) == (CLIENTS, False)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(end())


def test_no_more_are_taken_than_asked_for():
    with socket.create_server(("127.0.0.1", 0)) as sock, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(sock.getsockname()))
        assert [len(list(map(stack.enter_context, accept_all(sock, most)))) for most in (3, 3, 3)] == [3, 2, 0]


def test_no_connection_begins_once_packets_that_begin_one_are_dropped():
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        waiting = stack.enter_context(socket.create_connection(listening.getsockname(), timeout=60))
        drop_syn(listening)
        late = stack.enter_context(socket.socket())
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(listening.getsockname())
        (accepted,) = accept_all(listening)
        stack.enter_context(accepted).sendall(b"served")
        assert waiting.recv(6) == b"served"
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(waiting.getpeername(), timeout=60)
