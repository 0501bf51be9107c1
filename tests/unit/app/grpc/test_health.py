"""The health service tells readiness, at once and as it changes, and lets go when the server drains."""

import asyncio
from contextlib import aclosing

import pytest
from grpc_health.v1 import health_pb2

from app.grpc.health import Health
from app.grpc.status import code_of

STATUS = health_pb2.HealthCheckResponse


class State:
    problem = "models are loading"
    draining = False


async def nothing():
    """The messages of a client that asks for the whole server."""
    yield b""


def health_of(state):
    return Health(lambda: state.problem, lambda: state.draining)


def test_a_watch_tells_each_change_once_and_ends_with_the_server():
    async def run():
        state, told = State(), []
        async with aclosing(health_of(state).watch(nothing())) as watch, asyncio.timeout(60):
            async for message in watch:
                told.append(STATUS.FromString(message).status)
                if told[-1] == STATUS.SERVING:
                    state.draining, state.problem = True, "the server is shutting down"
                else:
                    state.problem = None
        return told

    assert asyncio.run(run()) == [STATUS.NOT_SERVING, STATUS.SERVING, STATUS.NOT_SERVING]


def test_a_check_tells_the_state_of_now():
    async def run():
        state = State()
        health = health_of(state)
        before = await health.check(b"", {})
        state.problem = None
        service = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        after = await health.check(service.SerializeToString(), {})
        return [(error, STATUS.FromString(message).status) for error, _, message in (before, after)]

    assert asyncio.run(run()) == [(None, STATUS.NOT_SERVING), (None, STATUS.SERVING)]


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (health_pb2.HealthCheckRequest(service="x").SerializeToString(), "NOT_FOUND", "unknown service 'x'; known"),
        (b"\xff", "INVALID_ARGUMENT", "the 1 bytes of the request are not a valid protobuf message HealthCheckRequest"),
    ],
)
def test_what_is_wrong_is_told(message, code, words):
    error, _, _ = asyncio.run(health_of(State()).check(message, {}))
    assert code_of(error).name == code
    assert words in str(error)
