"""The Python client against the real server, and against servers that misbehave."""

import asyncio
import json
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from helpers import build
from onnx import TensorProto, helper

from panther_client import (
    AccessDeniedError,
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Retries,
    ServerError,
)
from panther_client.wire import decode_infer, decode_predict

X = np.random.default_rng(0).standard_normal((3, 6))


@pytest.fixture
def own(client):
    with Client(str(client.base_url)) as own:
        yield own


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_infer_casts_to_the_models_type(own, tiny, binary, dtype):
    x = X.astype(dtype)
    result = own.infer("tiny", x, binary=binary, request_id="a", version=1, priority=1, timeout_us=10**7)
    np.testing.assert_allclose(result["logits"], tiny.logits(x), rtol=1e-3, atol=1e-4)
    assert (result.model_name, result.model_version, result.id, list(result)) == ("tiny", "1", "a", ["logits"])
    assert result["logits"].dtype == np.float32


def test_predict_gives_labels(own, tiny):
    result = own.predict(X, top_k=2)
    best = tiny.probabilities(X).argmax(axis=1)
    assert [item.label for item in result.predictions] == [["ant", "bee", "cat"][i] for i in best]
    assert all(len(item.top_k) == 2 and item.top_k[0][0] == item.label for item in result.predictions)
    np.testing.assert_allclose(result.outputs["logits"], tiny.logits(X), rtol=1e-4, atol=1e-5)
    assert own.predict(X, model="tiny", version=1).predictions[0].top_k is None


def test_what_is_served(own):
    assert own.is_ready()
    assert [item["name"] for item in own.models()] == ["tiny"]
    assert own.stats("tiny")["models"][0]["name"] == "tiny"
    assert own.stats()["server"]["ready"] is True


def test_errors_have_types_and_the_servers_own_words(own):
    with pytest.raises(NotFoundError, match="model 'none' is not loaded; loaded: tiny") as raised:
        own.infer("none", X)
    assert raised.value.status == 404
    with pytest.raises(InvalidRequestError, match=r"input 'x' has shape \[3, 5\]; expected"):
        own.infer("tiny", X[:, :5])
    with pytest.raises(InvalidRequestError, match="the model has no input 'y'; its inputs: x"):
        own.infer("tiny", {"y": X})
    with pytest.raises(InvalidRequestError, match="requires FP32, which cannot hold the array of"):
        own.infer("tiny", np.array([["a"] * 6]))
    with pytest.raises(InvalidRequestError, match="JSON does not support NaN"):
        own.infer("tiny", X * np.nan, binary=False)
    with pytest.raises(DeadlineExceededError, match="longer than its timeout"):
        own.infer("tiny", X, timeout_us=1)
    with pytest.raises(AccessDeniedError, match="set PANTHER_MODEL_CONTROL=explicit"):
        own.load("tiny")
    with pytest.raises(InvalidRequestError, match="a version requires the name of its model"):
        own.predict(X, version=1)


def test_texts_and_brain_floats(tmp_path):
    for name, kind in [("text", TensorProto.STRING), ("brain", TensorProto.BFLOAT16)]:
        tensor = [kind, ["batch", 2]]
        node = helper.make_node("Identity", ["x"], ["y"])
        build.put(tmp_path, build.onnx_model([node], [("x", *tensor)], [("y", *tensor)]), name)
    with build.running(tmp_path) as server, Client(str(server.base_url)) as own:
        for binary in (True, False):
            result = own.infer("text", np.array([["é", b"b"]], dtype=object), binary=binary)
            assert result["y"].tolist() == [["é".encode(), b"b"]]
        np.testing.assert_array_equal(own.infer("brain", [[1.5, -2.0]])["y"], np.array([[1.5, -2.0]], np.float32))


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    root = tmp_path_factory.mktemp("identities")
    kinds = {"text": "STRING", "brain": "BFLOAT16", "half": "FLOAT16", "single": "FLOAT"}
    for name, kind in kinds.items():
        tensor = [getattr(TensorProto, kind), ["batch", 2]]
        node = helper.make_node("Identity", ["x"], ["y"])
        build.put(root, build.onnx_model([node], [("x", *tensor)], [("y", *tensor)]), name)
    with build.running(root) as server, Client(str(server.base_url)) as own:
        yield own


@pytest.mark.parametrize("outputs", [None, ["y"]])
@pytest.mark.parametrize("model", ["half", "brain", "single"])
def test_half_and_brain_floats_come_without_binary_data_too(identities, model, outputs):
    np.testing.assert_array_equal(identities.infer(model, [[1.5, -2]], binary=False, outputs=outputs)["y"], [[1.5, -2]])


def test_a_brain_float_nan_stays_one_whatever_its_bits(identities):
    bits = np.array([[0x7FFFFFFF, 0x7F800001], [0xFFFFFFFF, 0x7FC00000]], np.uint32)  # the first is CUDA's
    assert np.isnan(identities.infer("brain", bits.view(np.float32))["y"]).all()


@pytest.mark.parametrize(("model", "value"), [("half", 70000), ("half", -7e4), ("single", 1e39)])
def test_a_number_that_is_too_large_is_refused_and_infinity_is_not(identities, model, value):
    with pytest.raises(InvalidRequestError, match="cannot hold the array of"):
        identities.infer(model, [[1, value]])
    np.testing.assert_array_equal(identities.infer(model, [[1, -np.inf]])["y"], [[1, -np.inf]])


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_no_text_or_no_number_is_said(identities, binary):
    for element in (b"\xff", "\ud800"):
        with pytest.raises(InvalidRequestError):
            identities.infer("text", np.array([[element, "a"]], dtype=object), binary=binary)
    with pytest.raises(InvalidRequestError, match="the plain API requires numbers"):
        identities.predict(np.array([["a", "b"]], dtype=object), model="text")


def test_large_integers_of_the_plain_api_stay_integers():
    body = {"model": "m", "version": "1", "outputs": {"n": [[2**63 + 1, 1]], "x": [[2.0**63, 1]], "y": [1e300, 2]}}
    outputs = decode_predict(json.dumps(body).encode()).outputs
    assert outputs["n"].tolist() == [[2**63 + 1, 1]]
    assert (outputs["x"].dtype, outputs["y"].dtype) == (np.float64, np.float64)


def test_texts_may_be_nested_in_another_servers_answer():
    body = {"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1, 2], "data": [["a", "b"]]}], "model_name": "m"}
    assert decode_infer({}, json.dumps(body).encode())["y"].tolist() == [[b"a", b"b"]]


def test_a_model_that_was_replaced_by_another_is_asked_in_its_own_types(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])

    def graph(kind):
        return build.onnx_model([node], [("x", kind, ["batch", 2])], [("y", kind, ["batch", 2])])

    path = build.put(tmp_path, graph(TensorProto.FLOAT), "m")
    with build.running(tmp_path, model_control="explicit") as server, Client(str(server.base_url)) as own:

        async def ask_many():
            async with AsyncClient(str(server.base_url)) as several:
                assert (await several.infer("m", [[1, 2]]))["y"].dtype == np.float64
                path.write_bytes(graph(TensorProto.INT64).SerializeToString())
                server.post("/v2/repository/models/m/load").raise_for_status()
                answers = await asyncio.gather(*(several.infer("m", [[1, 2]]) for _ in range(5)))
                assert {answer["y"].dtype for answer in answers} == {np.dtype(np.int64)}

        assert own.infer("m", [[1, 2]])["y"].dtype == np.float32
        path.write_bytes(graph(TensorProto.DOUBLE).SerializeToString())
        server.post("/v2/repository/models/m/load").raise_for_status()
        assert own.infer("m", [[1, 2]])["y"].dtype == np.float64
        with pytest.raises(InvalidRequestError, match=r"has shape \[1, 3\]"):
            own.infer("m", [[1, 2, 3]])
        asyncio.run(ask_many())
        np.testing.assert_array_equal(own.infer("m", [[2**53 + 1, 2]])["y"], [[2**53 + 1, 2]])


def test_the_asynchronous_client_answers_many_at_once(client, tiny):
    async def ask():
        async with AsyncClient(str(client.base_url)) as own:
            assert await own.is_ready()
            assert (await own.models())[0]["name"] == "tiny"
            assert (await own.stats())["models"]
            results = await asyncio.gather(*(own.infer("tiny", X + i) for i in range(20)))
            predicted = await own.predict(X, top_k=1)
            with pytest.raises(NotFoundError):
                await own.infer("none", X)
            return results, predicted

    results, predicted = asyncio.run(ask())
    for i, result in enumerate(results):
        np.testing.assert_allclose(result["logits"], tiny.logits(X + i), rtol=1e-3, atol=1e-4)
    assert len(predicted.predictions) == 3


def stub(*answers):
    """A server that gives these answers one after the other."""
    rest = list(answers)

    def handler(request):
        answer = rest.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("", http=httpx.Client(transport=httpx.MockTransport(handler), base_url="http://stub")), rest


def busy(status, after=None):
    return httpx.Response(status, json={"error": "too busy"}, headers={"retry-after": after} if after else {})


FINE = httpx.Response(200, json={"models": []})


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_is_asked_again_after_as_long_as_it_says(monkeypatch, status):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    client, rest = stub(busy(status, "2"), busy(status), FINE)
    assert client.models() == []
    assert pauses == [2.0, 0.2]
    assert rest == []


def test_retries_end(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    client, rest = stub(*[busy(503)] * 4, FINE)
    with pytest.raises(OverloadedError, match="too busy"):
        client.models()
    assert rest == [FINE]
    client, rest = stub(busy(503, "3600"), FINE)
    with pytest.raises(OverloadedError):
        client.models()
    assert rest == [FINE]


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (httpx.Response(500, json={"error": "broke"}), ServerError, "broke"),
        (
            httpx.Response(502, text="<html>bad gateway"),
            ServerError,
            "the server responded with 502: <html>bad",
        ),
        (httpx.Response(200, text="no JSON"), ServerError, "the server responded with 200, but without JSON: no JSON"),
        (httpx.Response(413, json={"error": "long"}), InvalidRequestError, "long"),
        (httpx.ReadTimeout("slow"), DeadlineExceededError, "did not respond in time"),
    ],
)
def test_other_failures_are_not_tried_again(answer, kind, message):
    client, rest = stub(answer, FINE)
    with pytest.raises(kind, match=message):
        client.models()
    assert rest == [FINE]


def test_a_lost_connection_is_tried_again_where_that_does_no_harm(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    client, rest = stub(httpx.ReadError("gone"), FINE)
    assert client.models() == []
    client, rest = stub(httpx.ReadError("gone"), FINE)
    with pytest.raises(ConnectionFailedError, match="can't be reached: gone"):
        client.load("m")
    client, rest = stub(httpx.ConnectError("no route"), busy(503), FINE)
    client.load("m")
    assert rest == []


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with Client("http://127.0.0.1:9", retries=Retries(1)) as client, pytest.raises(ConnectionFailedError):
        client.models()
    with Client("http://127.0.0.1:9", retries=Retries(0)) as client:
        assert not client.is_ready()


class Frame:
    """As much of a pandas DataFrame as the client looks at and makes."""

    def __init__(self, columns, index=("first", "second")):
        self.columns, self.index = {name: list(column) for name, column in columns.items()}, index

    def to_dict(self, orient):
        assert orient == "list"
        return self.columns


def test_a_data_frame_is_answered_by_one():
    outputs = {"kind": [[0.25, 0.75], [1, 0]], "sum": [3.5, 4]}
    labels = [{"label": "b", "probability": 0.75}, {"label": "a", "probability": 1.0}]
    answer = {"model": "m", "version": "1", "outputs": outputs, "predictions": labels}
    client, _ = stub(httpx.Response(200, json=answer))
    found = client.predict_frame(Frame({"length": [1, 2]}))
    assert type(found) is Frame
    assert found.index == ("first", "second")
    assert found.columns == {
        "label": ["b", "a"],
        "probability": [0.75, 1.0],
        "kind_0": [0.25, 1],
        "kind_1": [0.75, 0],
        "sum": [3.5, 4],
    }


def test_the_client_needs_httpx_and_numpy_alone():
    program = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked", name=name)
BLOCKED = {"app", "panther", "torch", "onnx", "onnxruntime", "fastapi", "pydantic"}
sys.meta_path.insert(0, Blocked())
import panther_client
print(sorted({"httpx", "grpc", "google.protobuf"} & set(sys.modules)))
panther_client.Client("http://127.0.0.1:1").close()
panther_client.Client("grpc://127.0.0.1:1").close()
for package in ("httpx", "grpc", "panther_client.grpc_transport", "panther_client.grpc_calls"):
    sys.modules.pop(package, None)
    vars(panther_client).pop(package.rpartition(".")[2], None)
BLOCKED |= {"httpx", "grpc"}
for url in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
    try:
        panther_client.Client(url)
    except panther_client.MissingExtraError as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    http, grpc = "package 'httpx' is not installed", "package 'grpc' is not installed"
    loaded, *missing = ended.stdout.splitlines()
    assert loaded == "[]"
    assert (missing[0].endswith(http), missing[1].endswith(grpc)) == (True, True), ended.stdout


KEY = "predict-key-0123456789"


@pytest.fixture(scope="module")
def guarded(tiny_dir):
    with build.running(tiny_dir, predict_keys=KEY, model_control="explicit") as client:
        yield str(client.base_url)


def test_a_key_goes_with_every_request(guarded, tiny):
    with Client(guarded, api_key=KEY) as client:
        np.testing.assert_allclose(client.infer("tiny", X)["logits"], tiny.logits(X), rtol=1e-3, atol=1e-4)
        assert client.predict(X).model == "tiny"
        assert client.stats()["server"]["ready"]
        with pytest.raises(AccessDeniedError, match="no API key may load, unload or benchmark models") as raised:
            client.load("tiny")
        assert raised.value.status == 403

    async def ask():
        async with AsyncClient(guarded, api_key=KEY) as client:
            return await client.infer("tiny", X)

    np.testing.assert_allclose(asyncio.run(ask())["logits"], tiny.logits(X), rtol=1e-3, atol=1e-4)
    with httpx.Client(base_url=guarded) as http, Client(guarded, api_key=KEY, http=http) as client:
        assert client.models()


@pytest.mark.parametrize(("key", "said"), [(None, "an API key is required"), (KEY + "x", "the API key is unknown")])
def test_without_the_right_key_the_error_has_its_type(guarded, key, said):
    with Client(guarded, api_key=key) as client:
        assert client.is_ready()
        for ask in (client.models, lambda: client.predict(X), lambda: client.infer("tiny", X)):
            with pytest.raises(AccessDeniedError, match=said) as raised:
                ask()
            assert raised.value.status == 401


def test_what_can_be_no_key_is_refused_without_showing_it():
    with pytest.raises(InvalidRequestError, match="api_key must consist of printable ASCII characters") as raised:
        Client("http://127.0.0.1:1", api_key="two\nlines")
    assert "two" not in str(raised.value)
