"""How connections end: on shutdown, when idle, and when the client ends them."""

import asyncio
import socket

import pytest
from helpers.http2_client import Http2Client

from app.grpc.call import Unary

LIVE = "/inference.GRPCInferenceService/ServerLive"


async def forever(*_):
    await asyncio.Event().wait()


def test_the_end_waits_for_calls_in_flight(serve):
    async def test(served):
        go = asyncio.Event()

        async def wait(*_):
            await go.wait()
            return None, [], b"done"

        served.services.methods["/s/wait"] = Unary(wait)
        async with served.client() as client, served.client() as idle:
            number = client.call("/s/wait", b"")
            await served.until(lambda: served.context.calls == 1)
            await idle.until(lambda: idle.session.remote_settings)
            stopping = asyncio.ensure_future(served.transport.stop(30.0))
            await idle.until_closed()
            await client.until(lambda: len(client.goaways) == 2)  # a warning, and the end of new calls
            assert not stopping.done()
            with pytest.raises(OSError, match=r"111|refused"):
                await Http2Client.connect(served.address)
            go.set()
            answer = await client.answer(number)
            await client.until_closed()
            await stopping
            return answer, client.goaways, idle.goaways

    answer, goaways, idle = serve(test)
    assert (answer.status, answer.messages) == (0, [b"done"])
    assert (goaways, idle[0]) == ([0, 0], 0)


def test_what_is_not_done_in_time_is_cut_off(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client:
            client.call("/s/slow", b"")
            await served.until(lambda: served.context.calls == 1)
            await served.transport.stop(0.2)
            await client.until_closed()

    serve(test)


def test_an_idle_connection_is_closed(serve, monkeypatch):
    monkeypatch.setattr("app.grpc.http2.transport.IDLE_S", 20.0)

    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as idle, served.client() as busy:
            busy.call("/s/slow", b"")
            await served.until(lambda: served.context.calls == 1)
            assert (await idle.ask(LIVE, b"")).status == 0
            monkeypatch.setattr("app.grpc.http2.transport.IDLE_S", 0.1)
            await idle.until_closed()
            return idle.goaways[0], busy.closed, len(served.transport.connections)

    assert serve(test) == (0, False, 1)


def test_a_client_that_closes_its_half_is_gone(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client:
            client.call("/s/slow", b"")
            await served.until(lambda: served.context.calls == 1)
            client.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await served.until(lambda: served.left() == (0, 0, 0, 0))

    serve(test)


def test_a_client_that_says_goodbye_is_let_go(serve):
    async def test(served):
        async with served.client() as client:
            assert (await client.ask(LIVE, b"")).status == 0
            client.session.send_goaway()
            client.flush()
            await client.until_closed()

    serve(test)
