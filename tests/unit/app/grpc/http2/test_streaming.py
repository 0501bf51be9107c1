"""Calls with any number of messages each way, whose clients are kept to what they read."""

import asyncio

import pytest
from grpc_health.v1 import health_pb2

from app.errors import InvalidRequestError
from app.grpc.call import Streaming
from app.grpc.http2.session import FIRST_WINDOW_BYTES
from app.grpc.http2.streaming import STREAMED_BYTES

REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
WATCH = "/grpc.health.v1.Health/Watch"
STATUS = health_pb2.HealthCheckResponse


async def echo(messages):
    async for message in messages:
        if message == b"wrong":
            raise InvalidRequestError("that is wrong")
        if message == b"defect":
            raise ZeroDivisionError
        yield message


def test_messages_go_both_ways_until_the_client_ends(serve):
    async def test(served):
        served.services.methods["/s/echo"] = Streaming(echo)
        async with served.client() as client:
            number = client.call("/s/echo", b"a", b"", b"c" * 70, end=False)
            answer = client.answers[number]
            await client.until(lambda: len(answer.data) == 3 * 5 + 71)
            client.send(number, b"\0\0\0\0\1d", end=True)
            return await client.answer(number)

    answer = serve(test)
    assert answer.messages == [b"a", b"", b"c" * 70, b"d"]
    assert answer.status == 0


@pytest.mark.parametrize(
    ("messages", "status", "details"),
    [
        ((b"wrong",), 3, "that is wrong"),
        ((b"a", b"wrong"), 3, "that is wrong"),
        ((b"a", b"defect"), 13, "internal error"),
    ],
)
def test_an_error_ends_the_answer_before_and_after_it_began(serve, messages, status, details):
    async def test(served):
        served.services.methods["/s/echo"] = Streaming(echo)
        async with served.client() as client:
            answer = await client.answer(client.call("/s/echo", *messages, end=False))
            assert (await client.ask("/s/echo", b"on")).messages == [b"on"]
            return answer

    answer = serve(test)
    assert (answer.status, answer.details, answer.messages) == (status, details, list(messages[:-1]))


def test_a_message_over_the_limit_is_refused(serve):
    async def test(served):
        served.services.methods["/s/echo"] = Streaming(echo)
        async with served.client() as client:
            return [await client.ask("/s/echo", bytes(size)) for size in (STREAMED_BYTES, STREAMED_BYTES + 1)]

    inside, outside = serve(test)
    assert inside.messages == [bytes(STREAMED_BYTES)]
    assert outside.status == 8
    assert "more than the limit of a streaming method (65536)" in outside.details


def test_a_client_that_reads_nothing_can_send_no_more_than_its_window(serve):
    async def test(served):
        served.services.methods["/s/echo"] = Streaming(echo)
        async with served.client(settings={4: 0}) as client:  # it lets the server send nothing
            number = client.call("/s/echo", end=False)
            for _ in range(1000):
                client.send(number, b"\0\0\0\3\xe8" + bytes(1000))
            admission, seen = served.state.service.admission, []
            reading = asyncio.ensure_future(client.until_closed())
            await served.until(lambda: admission.reserved_bytes > STREAMED_BYTES // 2)
            for _ in range(20):
                await asyncio.sleep(0.01)
                seen.append(admission.reserved_bytes)
            reading.cancel()
            return max(seen), client.session.queued_body_size(number)

    most, unsent = serve(test)
    assert most <= STREAMED_BYTES + FIRST_WINDOW_BYTES
    assert unsent > 500_000


def test_a_watch_tells_changes_and_ends_with_its_client(serve):
    async def test(served):
        problem = ["models are being loaded"]
        health = served.services.methods[WATCH].answer.__self__
        health._not_ready_because = lambda: problem[0]
        async with served.client() as client:
            number = client.call(WATCH, b"")
            answer = client.answers[number]
            await client.until(lambda: answer.data)
            problem[0] = None
            await client.until(lambda: len(answer.messages) == 2)
            client.session.reset_stream(number)
            client.flush()
            await served.until(lambda: served.context.calls == 0)
            return [STATUS.FromString(message).status for message in answer.messages]

    assert serve(test) == [STATUS.NOT_SERVING, STATUS.SERVING]


def test_a_request_of_reflection_that_is_none_is_told(serve):
    async def test(served):
        async with served.client() as client:
            return await client.ask(REFLECT, b"\xff")

    answer = serve(test)
    assert (answer.status, "not a valid protobuf message ServerReflectionRequest" in answer.details) == (3, True)


def test_the_byte_budget_holds_for_them_too(serve):
    async def test(served):
        async def wait(messages):
            await asyncio.Event().wait()
            yield b""

        served.services.methods["/s/wait"] = Streaming(wait)
        async with served.client() as client:
            return await client.answer(client.call("/s/wait", bytes(60_000), end=False))

    answer = serve(test, max_queue_bytes=50_000)
    assert (answer.status, "max_queue_bytes (50000)" in answer.details) == (8, True)
