"""schemathesis over the OpenAPI description: what is described is answered as described, and nothing else.

A server is asked over HTTP, route by route and, where one answer's content leads to the next request, in chains.
``make fuzz`` sets FUZZ_EXAMPLES higher.
"""

import json
import os
import threading
import time
from pathlib import Path

import httpx
import hypothesis
import numpy as np
import onnx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase
from onnx import TensorProto, helper, numpy_helper
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.application import create_app
from app.config.settings import Settings
from app.process.sockets import bind
from app.process.worker import make_config

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "6"))
MODELS = ("digits", "tiny")


def no_defect(context, response, case):
    """503 and 504 are said on purpose, of a model that was unloaded and of a deadline; other 5xx are defects."""
    assert response.status_code < 500 or response.status_code in (503, 504), response.text


CHECKS = [
    no_defect,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
HURRIED = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
counted = {"requests": 0}


def graph():
    nodes = [helper.make_node("MatMul", ["x", "W"], ["logits"])]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "W")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose every route is open, with models of the names in the examples."""
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(graph(), path)
    settings = Settings(model_dir=root, device="cpu", num_threads=1, model_control="explicit", default_model="tiny")
    sock = bind("127.0.0.1", 0)
    running = uvicorn.Server(make_config(create_app(settings), settings))
    thread = threading.Thread(target=running.run, args=([sock],))
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        while httpx.get(f"{url}/health/ready", timeout=60).status_code != 200:
            time.sleep(0.05)
        yield url
    finally:
        running.should_exit = True
        thread.join()


def described():
    """The description, with the names that there are in the place of any name: else nearly all would be 404."""
    application = create_app(Settings(model_dir=Path("nowhere"), device="cpu"))
    document = json.loads(json.dumps(application.openapi()))
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    known = {"name": list(MODELS), "version": ["1"]}[parameter["name"]]
                    any_of = [{"enum": known}, {"enum": known}, {"type": "string", "minLength": 1}]
                    parameter["schema"] = {"anyOf": any_of}
            if operation.get("operationId", "").startswith("benchmark"):
                some = {"seconds": {"enum": [0.001, 31, "a"]}, "rows": {"enum": [[1], [], [0]]}}
                content = operation["requestBody"]["content"]["application/json"]
                content["schema"] = {"type": "object", "properties": some}
    return linked(document)


def linked(document):
    """The same, with what follows from the names of models and from loading and unloading them."""
    by_path = {
        (method, path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    of_one = {key: operation for key, operation in by_path.items() if "{name}" in key[1]}

    def link(source, name, targets):
        links = by_path[source]["responses"]["200"].setdefault("links", {})
        for target in targets:
            given = {"name": name} | ({"version": "1"} if "{version}" in target[1] else {})
            links["_".join(target)] = {"operationId": by_path[target]["operationId"], "parameters": given}

    link(("get", "/models"), "$response.body#/models/0/name", of_one)
    for action in ("load", "unload"):
        source = ("post", f"/v2/repository/models/{{name}}/{action}")
        link(source, "$request.path.name", [key for key in of_one if "benchmark" not in key[1]])
    return document


@schemathesis.serializer("application/x-npy")
def as_npy(context, value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


schema = schemathesis.openapi.from_dict(described())


Chains = schema.as_state_machine()


class Chain(Chains):
    """Requests that follow from one another."""

    def validate_response(self, response, case, **_):
        counted["requests"] += 1
        case.validate_response(response, checks=CHECKS)


@schema.parametrize()
@HURRIED
def test_every_route_answers_as_described(case, server):
    counted["requests"] += 1
    response = case.call(base_url=server, timeout=60)
    case.validate_response(response, checks=CHECKS)


def test_chains_of_requests_answer_as_described(server):
    class Here(Chain):
        def setup(self):
            # What a chain unloaded must not be missing in the next: which requests follow depends on the answers, and
            # Hypothesis takes the same choices to lead to the same chain.
            for name in MODELS:
                httpx.post(f"{server}/v2/repository/models/{name}/load", timeout=60).raise_for_status()

        def get_call_kwargs(self, case):
            return {"base_url": server, "timeout": 30}

    Here.run(settings=hypothesis.settings(HURRIED, max_examples=2 * EXAMPLES, stateful_step_count=8))
    print(f"\nfuzz: requests={counted['requests']}")
    assert httpx.get(f"{server}/health/live", timeout=60).json() == {"live": True}
