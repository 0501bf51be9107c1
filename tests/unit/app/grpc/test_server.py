"""The server in one event loop with its client, by the messages of our own descriptors: no other client is needed."""

import asyncio
import re
import socket
import sys
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from app.application import create_app
from app.config.settings import Settings
from app.grpc.messages import ModelInferRequest, ModelInferResponse, message_class
from app.grpc.server import GrpcServer
from app.grpc.transport import GrpcStartError

TRANSPORTS = "nghttp2", "grpcio"
ROWS = np.array([[0.5, -1.0, 2.0, 0.25, 0.0, 1.5]], np.float32)
SERVICE = "/inference.GRPCInferenceService/"


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


@asynccontextmanager
async def serving(folder, transport, **settings):
    state = create_app(
        Settings(model_dir=folder, device="cpu", trial_load_s=0, grpc_transport=transport, **settings)
    ).state.panther
    await state.control.load_all()
    state.repository.started()
    server, address = GrpcServer(state), free_address()
    await server.start(address)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield state, channel, server
    finally:
        state.drain()
        await server.stop(1.0)
        for each in state.repository.servings():
            each.batcher.close()


def request():
    made = ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    return made


def test_inference_health_and_reflection(tiny_dir, tiny, transport):
    async def run():
        async with serving(tiny_dir, transport) as (_, channel, _):
            content = await channel.unary_unary(SERVICE + "ModelInfer")(request().SerializeToString())
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            asked = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
            ]
            described = [answer async for answer in reflect(iter(asked))]
            return ModelInferResponse.FromString(content), health.status, described

    answer, status, (services, file) = asyncio.run(run())
    logits = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(1, -1)
    np.testing.assert_allclose(logits, tiny.logits(ROWS), rtol=1e-4)
    assert status == health_pb2.HealthCheckResponse.SERVING
    names = {service.name for service in services.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert b"raw_input_contents" in file.file_descriptor_response.file_descriptor_proto[0]


def test_methods_answer_and_refuse(tiny_dir, caplog, transport):
    async def run():
        async with serving(tiny_dir, transport, access_log=True) as (_, channel, _):
            found = {}
            wanted = message_class("ModelMetadataRequest")
            for name in ("tiny", "nobody"):
                try:
                    ask = channel.unary_unary(SERVICE + "ModelMetadata")
                    content = await ask(wanted(name=name).SerializeToString(), metadata=(("x-request-id", name),))
                    found[name] = message_class("ModelMetadataResponse").FromString(content).versions[:]
                except grpc.aio.AioRpcError as error:
                    # grpcio 1.70 nests what it puts there
                    trailing = "('x-request-id', 'nobody')" in repr(error.trailing_metadata())
                    found[name] = error.code().name, error.details(), trailing
            return found

    with caplog.at_level("INFO"):
        found = asyncio.run(run())
    assert found["tiny"] == ["1"]
    assert found["nobody"][0] == "NOT_FOUND"
    assert "'nobody'" in found["nobody"][1]
    assert found["nobody"][2] is True
    lines = [record.getMessage() for record in caplog.records if "GRPC" in record.getMessage()]
    assert [re.sub(r" in .*", "", line) for line in lines] == [
        f"GRPC {SERVICE}ModelMetadata 200", f"GRPC {SERVICE}ModelMetadata 404",
    ]  # fmt: skip


def test_a_defect_is_told_to_the_log_alone(tiny_dir, monkeypatch, caplog, transport):
    async def run():
        async with serving(tiny_dir, transport) as (state, channel, _):
            monkeypatch.setattr(state, "not_ready_because", lambda: 1 / 0)
            try:
                await channel.unary_unary(SERVICE + "ServerReady")(b"")
            except grpc.aio.AioRpcError as error:
                return error.code().name, error.details()

    assert asyncio.run(run()) == ("INTERNAL", "internal error")
    assert "ZeroDivisionError" in caplog.text


def test_a_call_that_ended_before_its_answer_was_sent_is_no_error(tiny_dir, monkeypatch, caplog):
    """Of grpcio: a message that is too large is one: gRPC answers such a call by itself, and can't send our answer."""
    reached = asyncio.Event()

    def fail(*_):
        reached.set()
        raise cygrpc.ExecuteBatchError("execute_batch")

    async def run():
        async with serving(tiny_dir, "grpcio") as (_, channel, _), asyncio.timeout(60):
            monkeypatch.setattr("app.grpc.aio.trailing", fail)
            call = channel.unary_unary(SERVICE + "ServerReady")(b"")
            await reached.wait()
            monkeypatch.undo()
            # The next call of the same connection comes after what gRPC has logged of the first.
            assert await channel.unary_unary(SERVICE + "ServerReady")(b"")
            call.cancel()

    asyncio.run(run())
    assert "ServerReady" not in caplog.text


def test_calls_are_bounded(tiny_dir, transport):
    async def run():
        async with serving(tiny_dir, transport, max_connections=1) as (state, channel, _):
            state.service.admission._slice_ns = 0
            state.service.admission.may_start()  # from here on all wait for the next turn, which does not come
            state.service.admission._scheduled = True
            first = channel.unary_unary(SERVICE + "ModelInfer")(request().SerializeToString())
            async with asyncio.timeout(60):
                while not state.service.admission.waiting:
                    await asyncio.sleep(0.001)
            try:
                await channel.unary_unary(SERVICE + "ServerLive")(b"")
            except grpc.aio.AioRpcError as error:
                first.cancel()
                return error.code().name

    assert asyncio.run(run()) == "RESOURCE_EXHAUSTED"


def test_an_address_of_another_machine_is_refused(tiny_dir, transport):
    async def run():
        state = create_app(Settings(model_dir=tiny_dir, device="cpu", grpc_transport=transport)).state.panther
        await GrpcServer(state).start("192.0.2.1:1")

    with pytest.raises(GrpcStartError, match=r"cannot listen on 192\.0\.2\.1:1 for gRPC"):
        asyncio.run(run())


def test_without_ngh2_grpcio_serves_and_the_log_says_so(tiny_dir, monkeypatch, caplog):
    async def run():
        async with serving(tiny_dir, "auto") as (_, channel, server):
            found = await channel.unary_unary(SERVICE + "ServerLive")(b"")
            return message_class("ServerLiveResponse").FromString(found).live, type(server._transport).__name__

    said = "gRPC is served by grpcio, which is several times slower than nghttp2: "
    assert asyncio.run(run()) == (True, "Http2Transport")
    assert said not in caplog.text
    for name in [name for name in sys.modules if name.startswith("app.grpc.http2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ngh2", None)
    assert asyncio.run(run()) == (True, "AioTransport")
    assert said in caplog.text


def test_a_server_that_was_never_started_stops(tiny_dir):
    state = create_app(Settings(model_dir=tiny_dir, device="cpu")).state.panther
    asyncio.run(GrpcServer(state).stop(1.0))
