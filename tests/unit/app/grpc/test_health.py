"""The health service tells readiness, at once and as it changes, and lets go when the server drains."""

import asyncio
from contextlib import aclosing

from grpc_health.v1 import health_pb2

from app.grpc.health import Health

STATUS = health_pb2.HealthCheckResponse


class State:
    problem = "models are loading"
    draining = False


def health_of(state):
    return Health(lambda: state.problem, lambda: state.draining)


def test_a_watch_tells_each_change_once_and_ends_with_the_server():
    async def run():
        state, told = State(), []
        watching = health_of(state).watch(health_pb2.HealthCheckRequest(), None)
        async with aclosing(watching) as watch, asyncio.timeout(60):
            async for answer in watch:
                told.append(answer.status)
                if answer.status == STATUS.SERVING:
                    state.draining, state.problem = True, "the server is shutting down"
                else:
                    state.problem = None
        return told

    assert asyncio.run(run()) == [STATUS.NOT_SERVING, STATUS.SERVING, STATUS.NOT_SERVING]


def test_a_check_tells_the_state_of_now():
    async def run():
        state = State()
        health = health_of(state)
        before = await health.check(health_pb2.HealthCheckRequest(), None)
        state.problem = None
        after = await health.check(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"), None)
        return before.status, after.status

    assert asyncio.run(run()) == (STATUS.NOT_SERVING, STATUS.SERVING)
