"""The port is shared and given back, and connections that are gone are seen as such."""

import asyncio
import socket

import pytest

from app.grpc.http2.transport import Http2Transport
from app.grpc.transport import GrpcStartError

LIVE = "/inference.GRPCInferenceService/ServerLive"


def test_two_may_listen_on_one_address_and_one_goes_on_alone(serve):
    async def test(served):
        other = Http2Transport(served.services)
        await other.start(served.address)
        await other.stop(1.0)
        async with served.client() as client:
            return (await client.ask(LIVE, b"")).status

    assert serve(test) == 0


def test_an_address_that_can_not_be_listened_on_is_told(serve):
    async def test(served):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(GrpcStartError, match=f"cannot listen on {address} for gRPC: .*in use"):
                await Http2Transport(served.services).start(address)

    serve(test)


def test_ipv6(serve):
    async def test(served):
        other = Http2Transport(served.services)
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
            port = sock.getsockname()[1]
        await other.start(f"[::1]:{port}")
        try:
            reader, writer = await asyncio.open_connection("::1", port)
            async with asyncio.timeout(60):
                assert (await reader.read(9))[3] == 4  # SETTINGS
            (connection,) = other.connections
            assert connection.client == "::1"
            writer.close()
        finally:
            await other.stop(1.0)

    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    serve(test)


def test_the_kernel_asks_whether_silent_clients_are_there(serve):
    async def test(served):
        async with served.client() as client:
            assert (await client.ask(LIVE, b"")).status == 0
            (connection,) = served.transport.connections
            return connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    assert serve(test) == 1


def test_one_that_was_never_started_stops(serve):
    async def test(served):
        await Http2Transport(served.services).stop(1.0)

    serve(test)
