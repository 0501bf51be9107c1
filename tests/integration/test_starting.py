"""Requests that come while models are being loaded: to be sent again, not refused for good."""

import asyncio

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.application import create_app
from app.config.settings import Settings


@pytest.fixture
def two_models(tmp_path):
    """A folder of two models that add one, and two."""
    for name, term in (("first", 1.0), ("second", 2.0)):
        term_tensor = onnx.numpy_helper.from_array(np.array([term], np.float32), "term")
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "term"], ["y"])],
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
            [term_tensor],
        )
        path = tmp_path / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return tmp_path


def ask(application, path):
    """A prediction by a client of an application whose lifespan nobody runs: nothing loads by itself."""

    async def post():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post(path, json={"inputs": [[0.5]]})

    return asyncio.run(post())


PATHS = ["/predict", "/models/first/predict", "/v2/models/first/infer"]


@pytest.mark.parametrize("path", PATHS)
def test_before_anything_is_known_the_answer_is_to_try_again(two_models, path):
    answer = ask(create_app(Settings(model_dir=two_models, device="cpu")), path)
    assert (answer.status_code, answer.json()) == (503, {"error": "models are loading"})
    assert answer.headers["retry-after"] == "1"


def test_a_model_that_came_first_is_not_taken_for_the_only_one(two_models):
    application = create_app(Settings(model_dir=two_models, device="cpu"))
    application.state.panther.repository.load("first")
    assert ask(application, "/models/first/predict").json()["outputs"]["y"] == [[1.5]]
    assert ask(application, "/predict").status_code == 503
    assert ask(application, "/models/second/predict").status_code == 503


def test_once_all_had_their_turn_what_is_unknown_is_not_found(two_models):
    application = create_app(Settings(model_dir=two_models, device="cpu"))
    repository = application.state.panther.repository
    repository.load_all()
    repository.starting = False
    assert ask(application, "/models/second/predict").json()["outputs"]["y"] == [[2.5]]
    assert ask(application, "/models/third/predict").status_code == 404
    answer = ask(application, "/predict")
    assert answer.status_code == 404
    assert "several models are loaded" in answer.json()["error"]
