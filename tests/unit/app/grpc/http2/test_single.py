"""Calls with one message: in whatever pieces it comes, compressed or not, within its limits and its deadline."""

import asyncio
import gzip
import zlib

import numpy as np
import pytest
from helpers.http2_client import INFER

from app.grpc.call import Unary
from app.grpc.http2.framing import framed
from app.grpc.messages import ModelInferResponse, message_class

METADATA = "/inference.GRPCInferenceService/ModelMetadata"


async def forever(*_):
    await asyncio.Event().wait()


def rows_of(answer):
    assert answer.status == 0, answer.details
    (message,) = answer.messages
    return np.frombuffer(ModelInferResponse.FromString(message).raw_output_contents[0], np.float32)


@pytest.mark.parametrize("size", [1, 5, 50, 10_000])
def test_a_message_in_pieces(serve, message, tiny, size):
    async def test(served):
        async with served.client() as client:
            number = client.call(end=False)
            whole = b"".join(framed(message))
            for start in range(0, len(whole), size):
                client.send(number, whole[start : start + size], end=start + size >= len(whole))
            return rows_of(await client.answer(number))

    np.testing.assert_allclose(
        serve(test), tiny.logits(np.array([[0.5, -1, 2, 0.25, 0, 1.5]], np.float32))[0], rtol=1e-4
    )


def test_many_calls_on_one_connection_get_their_own_answers(serve, message):
    async def test(served):
        async with served.client() as client:
            numbers = [
                client.call(INFER if odd % 3 else METADATA, message if odd % 3 else request, x_request_id=b"%d" % odd)
                for odd in range(300)
            ]
            return [(await client.answer(number)) for number in numbers]

    request = message_class("ModelMetadataRequest")(name="tiny").SerializeToString()
    answers = serve(test)
    assert [answer.fields[b"x-request-id"] for answer in answers] == [b"%d" % odd for odd in range(300)]
    assert {answer.status for answer in answers} == {0}
    assert {answer.reset for answer in answers} == {None}


@pytest.mark.parametrize(("coding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
@pytest.mark.parametrize("path", [INFER, METADATA])
def test_compressed_messages(serve, message, coding, compress, path):
    async def test(served):
        async with served.client() as client:
            sent = compress(message if path == INFER else request)
            raw = b"\1" + len(sent).to_bytes(4) + sent
            return await client.ask(path, raw=raw, grpc_encoding=coding)

    request = message_class("ModelMetadataRequest")(name="tiny").SerializeToString()
    assert serve(test).status == 0


def test_what_decompresses_to_much_does_so_beside_the_event_loop_and_within_the_limit(serve):
    async def test(served):
        async with served.client() as client:
            answers = []
            for size in (2_000_000, 3_000_001):
                sent = gzip.compress(np.random.default_rng(0).bytes(size))
                answers.append(await client.ask(raw=b"\1" + len(sent).to_bytes(4) + sent, grpc_encoding=b"gzip"))
            return answers

    inside, outside = serve(test, max_body_bytes=2_500_000)
    assert (inside.status, "are not a valid protobuf message ModelInferRequest" in inside.details) == (3, True)
    assert outside.status == 8
    assert "max_body_bytes (2500000)" in outside.details


def test_a_bomb_is_refused(serve):
    async def test(served):
        async with served.client() as client:
            sent = gzip.compress(bytes(50_000_000))
            return await client.ask(raw=b"\1" + len(sent).to_bytes(4) + sent, grpc_encoding=b"gzip")

    answer = serve(test)
    assert (answer.status, "send it uncompressed" in answer.details) == (8, True)


@pytest.mark.parametrize(
    ("raw", "headers", "status", "words"),
    [
        (b"", {}, 3, "the call ended without a message; expected one ModelInferRequest"),
        (b"\0\0\0", {}, 3, "the call ended after 3 of the 5 bytes of its message"),
        (b"\0\0\0\0\x05abc", {}, 3, "the call ended after 8 of the 10 bytes of its message"),
        (b"\1\0\0\0\0", {}, 13, "flagged as compressed, and the call names no grpc-encoding"),
        (b"\7\0\0\0\0", {}, 13, "the flag of a message is 7; expected 0 or 1"),
        (b"\1\0\0\0\2ab", {"grpc_encoding": b"gzip"}, 3, "the body is not valid gzip"),
        (b"\0\0\0\0\2\xff\xff", {}, 3, "the 2 bytes of the request are not a valid protobuf message ModelInferRequest"),
        (b"", {"grpc_encoding": b"br"}, 12, "grpc-encoding is 'br'; known: identity, deflate, gzip"),
        (b"", {"grpc_timeout": b"soon"}, 3, "grpc-timeout is 'soon'; expected 1 to 8 digits"),
    ],
)
def test_what_is_wrong_is_told(serve, raw, headers, status, words):
    async def test(served):
        async with served.client() as client:
            answer = await client.ask(raw=raw, **headers)
            assert (await client.ask("/nobody/knows")).status == 12  # the connection lives
            return answer

    answer = serve(test)
    assert answer.status == status
    assert words in answer.details


def test_a_message_over_the_limit_is_refused_before_it_has_come(serve):
    async def test(served):
        async with served.client() as client:
            number = client.call(raw=b"\0" + (1_000_001).to_bytes(4) + bytes(1000), end=False)
            return await client.answer(number)

    answer = serve(test, max_body_bytes=1_000_000)
    assert (answer.status, answer.reset) in ((8, None), (8, 0))
    assert "1000001 bytes, more than max_body_bytes (1000000)" in answer.details


def test_a_call_without_a_key_is_refused_before_its_message(serve, message):
    async def test(served):
        async with served.client() as client:
            number = client.call(end=False)
            answer = await client.answer(number)
            await client.until(lambda: answer.reset is not None)
            assert (await client.ask(INFER, message, authorization=b"Bearer " + b"k" * 16)).status == 0
            return answer

    answer = serve(test, predict_keys="k" * 16)
    assert (answer.status, answer.reset) == (16, 0)  # and the client is told to send no more
    assert answer.details.startswith("an API key is required")


def test_bytes_count_against_the_budget_as_they_come(serve):
    async def test(served):
        async with served.client() as client, served.client() as other:
            first = client.call(raw=b"\0" + (900_000).to_bytes(4) + bytes(60_000), end=False)
            await served.until(lambda: served.state.service.admission.reserved_bytes >= 60_000)
            second = other.call(raw=b"\0" + (900_000).to_bytes(4) + bytes(60_000), end=False)
            answer = await other.answer(second)
            client.session.reset_stream(first)
            client.flush()
            await served.until(lambda: served.left()[1:] == (0, 0, 0))
            return answer

    answer = serve(test, max_queue_bytes=100_000)
    assert answer.status == 8
    assert "would exceed max_queue_bytes (100000)" in answer.details


def test_a_large_message_needs_more_than_the_first_window(serve):
    async def test(served):
        async with served.client() as client:
            return await client.ask(INFER, bytes(3_000_000))

    assert "the 3000000 bytes of the request are not a valid protobuf message ModelInferRequest" in serve(test).details


def test_a_deadline_passes_while_the_message_comes(serve):
    async def test(served):
        served.services.methods["/s/slow"] = Unary(forever)
        async with served.client() as client:
            answer = await client.answer(client.call(raw=b"\0\0\0", end=False, grpc_timeout=b"50m"))
            late = await client.ask("/s/slow", b"", grpc_timeout=b"50m")
            return answer, late, dict(served.state.service.unrouted)

    answer, late, counts = serve(test)
    assert (answer.status, answer.details) == (4, "the call's deadline has passed")
    assert late.status == 4
    assert counts == {("grpc", "DeadlineExceededError"): 1}


@pytest.mark.parametrize("timeout", [b"99999999H", b"99999999S", b"1H"])
def test_long_deadlines(serve, message, timeout):
    async def test(served):
        async with served.client() as client:
            return await client.ask(INFER, message, grpc_timeout=timeout)

    assert serve(test).status == 0


def test_what_waits_to_be_decoded_is_counted(serve, message):
    async def test(served):
        async with served.client() as client:
            served.hold_back()
            number = client.call(INFER, message)
            admission = served.state.service.admission
            await served.until(lambda: admission.waiting)
            held = admission.reserved_bytes
            served.let_go()
            assert (await client.answer(number)).status == 0
            return held

    assert serve(test) >= len(message)


def test_a_cancelled_call_is_withdrawn(serve, message):
    async def test(served):
        async with served.client() as client:
            served.hold_back()
            number = client.call(INFER, message)
            await served.until(lambda: served.state.service.admission.waiting)
            client.session.reset_stream(number)
            client.flush()
            await served.until(lambda: served.context.calls == 0)
            served.let_go()
            await served.until(lambda: served.left()[1:] == (0, 0, 0))

    serve(test)


def test_a_client_that_sends_its_message_too_slowly_is_told(serve):
    async def test(served):
        async with served.client() as client:
            slow = await client.answer(client.call(raw=b"\0\0", end=False))
            unary = await client.answer(client.call(METADATA, raw=b"\0\0", end=False))
            return slow, unary

    for answer in serve(test, body_timeout_s=0.2):
        assert answer.status == 4
        assert "bytes of the body did not arrive within body_timeout_s (0.2)" in answer.details


def test_a_client_that_never_ends_its_call_is_reset(serve, message):
    async def test(served):
        async with served.client() as client:
            number = client.call(INFER, message, end=False)
            answer = client.answers[number]
            await client.until(lambda: answer.ended)
            assert answer.status == 0
            await client.until(lambda: answer.reset is not None)

    serve(test, body_timeout_s=0.2)


def test_what_comes_behind_the_message_has_no_meaning(serve, message):
    async def test(served):
        async with served.client() as client:
            return await client.ask(INFER, message, b"again", bytes(100_000))

    assert serve(test).status == 0


def test_a_defect_of_a_method_is_told_to_the_log_alone(serve, caplog):
    async def test(served):
        async def fail(*_):
            raise ZeroDivisionError

        served.services.methods["/s/m"] = Unary(fail)
        async with served.client() as client:
            return await client.ask("/s/m", b"")

    answer = serve(test)
    assert (answer.status, answer.details) == (13, "internal error")
    assert "ZeroDivisionError" in caplog.text


def test_connections_that_are_cut_leave_nothing(serve, message):
    async def test(served):
        served.hold_back()
        for _ in range(20):
            async with served.client() as client:
                client.call(INFER, message)
                client.call(raw=b"\0\0\1\0\0abc", end=False)
                await client.step()
                await asyncio.sleep(0)
        await served.until(lambda: served.context.connections == 0)
        served.let_go()

    serve(test)
