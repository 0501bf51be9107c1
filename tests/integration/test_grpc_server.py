"""Everything over gRPC but inference: what the server and its models are, control, health, reflection."""

import json

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from helpers import processes
from helpers.grpc_client import (
    TRANSPORTS,
    InferenceServerException,
    call,
    infer,
    infer_request,
    pb,
    refused,
    tritonclient,
)


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in ("m", "n"):
        processes.put(root, processes.linear(7.0), name, 1)
    with processes.running(
        root, "--grpc-port", 0, "--grpc-transport", request.param, "--model-control", "explicit"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with tritonclient.InferenceServerClient(server.grpc) as client:
        yield client


def test_models_are_described_as_over_http(server, client):
    def http(path, method="GET"):
        return server.ask(method, f"/v2{path}").json()

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("m", "2")
    assert client.get_server_metadata(as_json=True) == http("")
    found = client.get_model_metadata("m", as_json=True)
    for side in ("inputs", "outputs"):
        for each in found[side]:
            each["shape"] = [int(size) for size in each["shape"]]
    wanted = http("/models/m")
    assert found == {name: wanted[name] for name in ("name", "versions", "platform", "inputs", "outputs")}
    config = client.get_model_config("m").config
    wanted = http("/models/m/config")
    assert (config.name, config.backend, config.max_batch_size) == ("m", "onnxruntime", wanted["max_batch_size"])
    assert [(each.name, list(each.dims)) for each in config.input] == [("x", [6])]
    assert config.version_policy.latest.num_versions == 1
    index = client.get_model_repository_index(as_json=True)["models"]
    assert [(each["name"], each["version"], each["state"]) for each in index] == [
        (each["name"], each["version"], each["state"]) for each in http("/repository/index", "POST")
    ]


def test_requests_are_counted_as_over_http(server, client):
    def count(outcome):
        labels = f'model="m",outcome="{outcome}",protocol="grpc",version="1"'
        return server.metric(f"panther_requests_total{{{labels}}}") or 0

    def rows():
        return server.metric('panther_rows_total{model="m",protocol="grpc",version="1"}') or 0

    def successes():
        (found,) = client.get_inference_statistics("m").model_stats
        return found.inference_stats.success.count

    before = count("success"), count("InvalidRequestError"), rows(), successes()
    infer(server.grpc, infer_request("m", shape=(3, 6), raw=bytes(72)))
    refused(server.grpc, "ModelInfer", infer_request("m", shape=(1, 5), raw=bytes(20)))
    after = count("success"), count("InvalidRequestError"), rows(), successes()
    assert np.subtract(after, before).tolist() == [1, 1, 3, 1]
    refused(server.grpc, "ModelInfer", infer_request("nobody", raw=bytes(24)))
    assert server.metric('panther_unrouted_requests_total{outcome="ModelNotFoundError",protocol="grpc"}') >= 1
    stats = server.ask("GET", "/models/m/stats").json()["models"][0]
    assert stats["live"]["requests"] == successes() + count("InvalidRequestError")


def test_models_are_loaded_and_unloaded(server, client):
    client.unload_model("n")
    found = refused(server.grpc, "ModelInfer", infer_request("n", raw=bytes(24)))
    assert found == ("UNAVAILABLE", "model 'n' is not ready: unloaded")
    with pytest.raises(InferenceServerException, match="parameter 'config' must be JSON"):
        client.load_model("n", config="[]")
    client.load_model("n", config=json.dumps({"version_policy": {"specific": {"versions": [1]}}}))
    assert client.is_model_ready("n")
    with pytest.raises(InferenceServerException, match="model 'nobody' is not in the repository"):
        client.load_model("nobody")
    found = refused(server.grpc, "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other"))
    assert found == ("INVALID_ARGUMENT", "repository_name is 'other'; this server has one repository, without a name")


def test_what_is_not_served_says_so(server, client):
    assert refused(server.grpc, "TraceSetting", b"")[0] == "UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="SystemSharedMemoryStatus is not served"):
        client.get_system_shared_memory_status()
    assert call(server.grpc, "ServerLive", b"", pb.ServerLiveResponse).live


def test_health_service_and_reflection(server):
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
        with pytest.raises(grpc.RpcError, match="unknown service 'other'; known"):
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert next(health.Watch(health_pb2.HealthCheckRequest())).status == serving
        unknown = next(health.Watch(health_pb2.HealthCheckRequest(service="other"))).status
        assert unknown == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        described = ProtoReflectionDescriptorDatabase(channel)
        assert set(described.get_services()) == {
            "inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        for symbol in ("inference.GRPCInferenceService", "grpc.health.v1.Health"):
            assert symbol.rpartition(".")[2] in str(described.FindFileContainingSymbol(symbol).service)
