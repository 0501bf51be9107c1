"""Connections are held to their limits, whatever their clients do, and are ended without losing a call."""

import asyncio
import contextlib

import ngh2
import pytest
from helpers.http2_client import INFER

from app.grpc.call import Streaming, Unary
from app.grpc.http2.patience import BURST
from app.grpc.http2.session import MAX_STREAMS

CALM = ngh2.ErrorCode.ENHANCE_YOUR_CALM
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
LARGE = 20_000_000  # more than the kernel keeps
LIVE = "/inference.GRPCInferenceService/ServerLive"


def assert_calmed(goaways, caplog):
    """The server says why it ends a connection, unless bytes of the client that it has not read cut that off.

    It is ended by the server or by nghttp2, whichever has counted further.
    """
    assert goaways in ([], [CALM])
    assert goaways or "is ended: ENHANCE_YOUR_CALM" in caplog.text


@pytest.fixture(autouse=True)
def verbose(caplog):
    caplog.set_level("DEBUG", logger="app.grpc")


async def forever(*_):
    await asyncio.Event().wait()


def answering(nbytes):
    """A method with so large an answer."""

    async def answer(*_):
        return None, [], bytes(nbytes)

    return Unary(answer)


def test_pings_are_answered(serve):
    async def test(served):
        async with served.client() as client:
            client.session.ping(b"12345678")
            client.flush()
            await client.until(lambda: client.pongs == 1)

    serve(test)


@pytest.mark.parametrize("frame", [PING, SETTINGS])
def test_a_flood_of_frames_that_want_an_answer_ends_the_connection(serve, frame, caplog):
    async def test(served):
        async with served.client() as client:
            client.writer.write(frame * 3 * BURST)
            await client.until_closed()
            assert (await other_lives(served)).status == 0
            return client.goaways

    assert_calmed(serve(test), caplog)


def test_a_flood_of_empty_frames_ends_the_connection(serve, caplog):
    async def test(served):
        async with served.client() as client:
            number = client.call(end=False)
            client.writer.write((bytes([0, 0, 0, 0, 0]) + number.to_bytes(4)) * 3 * BURST)
            await client.until_closed()
            return client.goaways

    assert_calmed(serve(test), caplog)


def test_a_flood_of_window_updates_keeps_no_connection_from_answers(serve):
    """They are not limited: clients that read a long answer send many, and each costs less than its bytes of a call."""

    async def test(served):
        async with served.client() as client:
            number = client.call(end=False)
            for stream in (0, number):
                client.writer.write((bytes([0, 0, 4, 8, 0]) + stream.to_bytes(4) + (1).to_bytes(4)) * 30 * BURST)
            assert (await other_lives(served)).status == 0
            assert (await client.ask(LIVE, b"")).status == 0
            return client.goaways

    assert serve(test) == []


def test_a_rapid_reset_ends_the_connection(serve, message, caplog):
    async def test(served):
        async with served.client() as client:
            for _ in range(3 * BURST):
                number = client.call(INFER, message[:10], end=False)
                client.session.reset_stream(number)
                client.flush()
            await client.until_closed()
            assert (await other_lives(served)).status == 0
            return client.goaways

    assert_calmed(serve(test), caplog)


def test_resets_that_the_client_provokes_count_as_its_own(serve):
    """Frames that break a rule for one stream have the server reset it: to the service it is all the same."""

    async def test(served):
        async with served.client() as client:
            for _ in range(3 * BURST):
                number = client.call(end=False)
                client.writer.write(bytes([0, 0, 4, 8, 0]) + number.to_bytes(4) + bytes(4))  # WINDOW_UPDATE of 0
            await client.until_closed()
            assert (await other_lives(served)).status == 0

    serve(test)


async def other_lives(served):
    async with served.client() as client:
        return await client.ask(LIVE, b"")


def test_a_ping_with_each_answer_is_no_flood(serve, message):
    """Clients of Go send one, to measure the bandwidth."""

    async def test(served):
        async with served.client() as client:
            for _ in range(3 * BURST // 100):
                numbers = [client.call(LIVE, b"") for _ in range(100)]
                client.writer.write(PING * 150)
                for number in numbers:
                    assert (await client.answer(number)).status == 0
            return client.goaways

    assert serve(test) == []


def test_calls_that_end_at_their_deadline_are_no_flood(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client:
            for _ in range(3 * BURST):
                client.session.reset_stream(client.call("/s/slow", b"", grpc_timeout=b"50m"))
                client.flush()
            return (await client.ask(LIVE, b"")).status

    assert serve(test) == 0


def test_cancelled_calls_at_a_human_rate_end_nothing(serve, message):
    async def test(served):
        async with served.client() as client:
            for _ in range(BURST // 2):
                client.session.reset_stream(client.call(INFER, message, end=False))
                client.flush()
            return (await client.ask(LIVE, b"")).status

    assert serve(test) == 0


def test_metadata_over_the_limit_is_told_and_far_over_it_ends_the_connection(serve):
    async def test(served):
        async with served.client() as client:
            over = await client.ask(LIVE, b"", x=b"x" * 4096)
            assert (await client.ask(LIVE, b"")).status == 0
            client.call(LIVE, b"", x=b"x" * 10_000)
            await client.until_closed()
            return over

    answer = serve(test, max_header_bytes=4096)
    assert answer.status == 8
    assert "more than max_header_bytes (4096)" in answer.details


def test_continuations_without_end_end_the_connection(serve):
    async def test(served):
        async with served.client() as client:
            client.writer.write(
                bytes([0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88]) + bytes([0, 0, 1, 9, 0, 0, 0, 0, 1, 0x88]) * 5000
            )
            await client.until_closed()
            return (await other_lives(served)).status

    assert serve(test) == 0


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\0\x01", PREFACE + b"\xff" * 100]
)
def test_what_is_no_http2_ends_the_connection_without_noise(serve, data, caplog):
    async def test(served):
        host, _, port = served.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()

    serve(test)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_says_nothing_is_disconnected(serve):
    async def test(served):
        host, _, port = served.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE[:10])
        async with asyncio.timeout(60):
            try:
                while await reader.read(1000):
                    pass
            except ConnectionResetError:
                pass
        writer.close()

    serve(test, header_timeout_s=0.2)


def test_other_requests_get_a_status_of_http(serve):
    async def test(served):
        async with served.client() as client:
            get = await client.ask(LIVE, method=b"GET")
            html = await client.answer(client.call(LIVE, content_type=b"text/html", end=False))
            return get, html, await client.ask("/" + "x" * 300, b"")

    get, html, unknown = serve(test)
    assert (get.fields, html.fields) == ({b":status": b"405"}, {b":status": b"415"})
    assert (unknown.status, unknown.details) == (12, f"there is no method '/{'x' * 199}'")


def test_streams_over_the_limit_are_refused(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client:
            await client.until(lambda: client.session.remote_settings[3] == MAX_STREAMS)
            for _ in range(MAX_STREAMS):
                client.call("/s/slow", b"")
            await served.until(lambda: served.context.calls == MAX_STREAMS)
            async with served.client() as other:
                return (await other.ask(LIVE, b"")).status

    assert serve(test) == 0


def test_calls_and_connections_over_the_limit_are_refused(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client, served.client() as other:
            client.call("/s/slow", b"")
            client.call("/s/slow", b"")
            await served.until(lambda: served.context.calls == 2)
            answer = await other.ask(LIVE, b"")
            async with served.client() as third:
                await third.until_closed()
            return answer, third.goaways

    answer, goaways = serve(test, max_connections=2)
    assert answer.status == 8
    assert "as many calls in flight as max_connections (2) allows" in answer.details
    assert goaways == [CALM]


@pytest.mark.parametrize("window", [0, 65535])
def test_a_client_that_does_not_read_its_answer_is_cut_off(serve, window):
    """By its window, so that the connection lives; or by its socket."""

    async def test(served):
        served.services.methods["/s/large"] = answering(LARGE)
        async with served.client(settings={4: window}, limit=1024) as client:
            number = client.call("/s/large", b"")
            if window:
                client.session.set_local_window_size(2**30)
                client.session.set_local_window_size(2**30, stream_id=number)
                client.flush()
                await served.until(lambda: not served.transport.connections)
                return None
            answer = await client.answer(number)
            assert (await client.ask(LIVE, b"", end=True)).fields[b":status"] == b"200"
            return answer.reset

    assert serve(test, write_timeout_s=0.3) == (None if window else ngh2.ErrorCode.CANCEL)


def test_a_large_answer_comes_whole_however_slowly_it_is_read(serve):
    async def test(served):
        served.services.methods["/s/large"] = answering(4_000_000)
        async with served.client(limit=16 * 1024) as client:
            number = client.call("/s/large", b"")
            answer = client.answers[number]
            while not answer.ended:
                await client.step()
                await asyncio.sleep(0)
            return answer

    answer = serve(test)
    assert answer.status == 0
    assert answer.messages == [bytes(4_000_000)]


def test_a_client_that_stops_reading_is_not_read_from(serve):
    async def test(served):
        async def stream(_):
            while True:
                yield bytes(50_000)

        served.services.methods["/s/stream"] = Streaming(stream)
        async with served.client(limit=1024) as client:
            client.session.set_local_window_size(2**30)
            number = client.call("/s/stream", b"")
            client.session.set_local_window_size(2**30, stream_id=number)
            client.flush()
            await client.until(lambda: client.answers[number].data)
            (connection,) = served.transport.connections
            await served.until(lambda: connection._paused)
            held = connection._transport.get_write_buffer_size() + connection.session.unsent(number)
            await client.until(lambda: len(client.answers[number].data) > 2_000_000)
            return held

    assert serve(test) < 2_000_000


def test_a_defect_ends_one_connection_alone(serve, monkeypatch, caplog):
    async def test(served):
        async with served.client() as client, served.client() as other:
            assert (await other.ask(LIVE, b"")).status == 0
            with monkeypatch.context() as patched:
                patched.setattr(served.context, "admit", lambda: 1 / 0)
                client.call(LIVE, b"")
                await client.until_closed()
            return (await other.ask(LIVE, b"")).status

    assert serve(test) == 0
    assert "ZeroDivisionError" in caplog.text
