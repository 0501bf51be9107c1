"""The client over gRPC against the real server, beside the same client over HTTP."""

import asyncio
import re
import time

import numpy as np
import pytest
from helpers import processes
from helpers.build import put, sketched_card

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

X = np.random.default_rng(0).standard_normal((3, 6))
KEY = "control-key-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("models")
    put(root, tiny.graph(), "tiny", card=sketched_card())
    arguments = ("--grpc-port", 0, "--model-control", "explicit", "--max-body-bytes", 100_000, "--max-request-rows", 50)
    with processes.running(root, *arguments, PANTHER_CONTROL_KEYS=KEY) as server:
        yield server


@pytest.fixture
def grpc(server):
    with Client(f"grpc://{server.grpc}", api_key=KEY) as client:
        yield client


def test_both_protocols_give_the_same(grpc, server, tiny):
    with Client(server.url, api_key=KEY) as http:
        assert grpc.metadata("tiny", 1)["inputs"] == http.metadata("tiny", 1)["inputs"]
        for rows in (X, {"x": X.astype(np.float16)}):
            one, other = (
                client.infer("tiny", rows, version=1, request_id="a", outputs=["logits"]) for client in (grpc, http)
            )
            np.testing.assert_allclose(one["logits"], tiny.logits(X), rtol=1e-2, atol=1e-2)
            np.testing.assert_allclose(one["logits"], other["logits"], rtol=1e-5, atol=1e-6)
            assert (one.model_name, one.model_version, one.id) == (other.model_name, other.model_version, other.id)
        found = grpc.predict(X, model="tiny")
        np.testing.assert_allclose(found.outputs["logits"], http.predict(X).outputs["logits"], rtol=1e-4, atol=1e-5)
        assert (found.model, found.version, found.predictions) == ("tiny", "1", None)


def test_what_is_served_and_what_is_loaded(grpc):
    assert grpc.is_ready()
    (model,) = grpc.models()
    assert (model["name"], model["version"], model["state"]) == ("tiny", "1", "READY")
    grpc.infer("tiny", X)
    assert int(grpc.stats("tiny")["model_stats"][0]["inference_count"]) >= 3
    grpc.unload("tiny")
    with pytest.raises(OverloadedError, match="model 'tiny' is not ready: unloaded") as raised:
        Client(grpc_url(grpc), api_key=KEY, retries=Retries(0)).infer("tiny", X)
    assert raised.value.status == 503
    grpc.load("tiny")
    assert grpc.infer("tiny", X)["logits"].shape == (3, 3)


def grpc_url(client):
    return f"grpc://{client._transport._address}"


def test_errors_have_the_types_and_words_that_they_have_over_http(grpc, server):
    with Client(server.url, api_key=KEY) as http:
        for kind, status, ask in (
            (NotFoundError, 404, lambda client: client.infer("none", X)),
            (NotFoundError, 404, lambda client: client.metadata("tiny", 7)),
            (InvalidRequestError, 400, lambda client: client.infer("tiny", X[:, :5])),
            (InvalidRequestError, 413, lambda client: client.infer("tiny", np.zeros((51, 6)))),
            (DeadlineExceededError, 504, lambda client: client.infer("tiny", X, timeout_us=1)),
            (InvalidRequestError, None, lambda client: client.infer("tiny", {"y": X})),
        ):
            messages = []
            for client in (grpc, http):
                with pytest.raises(kind) as raised:
                    ask(client)
                assert (type(raised.value), raised.value.status) == (kind, status)
                messages.append(re.sub(r"waited \d+ µs", "waited", str(raised.value)))
            assert messages[0] == messages[1]
    with pytest.raises(InvalidRequestError, match=r"message larger than max|100000"):
        grpc.infer("tiny", np.zeros((5000, 6)))
    with (
        Client(f"grpc://{server.grpc}", api_key="x") as other,
        pytest.raises(AccessDeniedError, match="is unknown") as raised,
    ):
        other.load("tiny")
    assert raised.value.status == 401


def test_a_server_that_is_not_there(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with Client("grpc://127.0.0.1:9", retries=Retries(2)) as client:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:9 can't be reached: "):
            client.models()
        assert pauses == [0.1, 0.2]
        assert not client.is_ready()


def test_the_asynchronous_client_answers_many_at_once(server, tiny):
    async def ask():
        async with AsyncClient(f"grpc://{server.grpc}", api_key=KEY) as client:
            assert await client.is_ready()
            results = await asyncio.gather(*(client.infer("tiny", X + i) for i in range(20)))
            with pytest.raises(NotFoundError):
                await client.infer("none", X)
            assert (await client.models())[0]["name"] == "tiny"
            assert await client.stats("tiny")
            await client.load("tiny")
            return results, await client.predict(X, model="tiny")

    results, predicted = asyncio.run(ask())
    for i, result in enumerate(results):
        np.testing.assert_allclose(result["logits"], tiny.logits(X + i), rtol=1e-3, atol=1e-3)
    assert predicted.outputs["logits"].shape == (3, 3)
    with pytest.raises(ConnectionFailedError):
        asyncio.run(unreachable())


async def unreachable():
    async with AsyncClient("grpc://127.0.0.1:9", retries=Retries(0)) as client:
        await client.models()


def test_a_server_of_another_protocol_is_an_error_with_a_type(server):
    address = server.url.removeprefix("http://")
    with (
        Client(f"grpc://{address}", retries=Retries(0), timeout_s=30) as client,
        pytest.raises((ConnectionFailedError, ServerError)),
    ):
        client.models()
