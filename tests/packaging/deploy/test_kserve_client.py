"""KServe's client, and NVIDIA's over gRPC, unmodified, in their own environment; 'make test-make' asks for it."""

import json
import subprocess
import sys

import pytest
from helpers import processes
from onnx import TensorProto, helper

pytestmark = [pytest.mark.environment, pytest.mark.timeout(600)]

CLIENTS = "kserve==0.21.0", "tritonclient[grpc]==2.73.0"


@pytest.fixture(scope="module")
def client_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kserve") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CLIENTS], check=True)
    return python


@pytest.fixture
def models(tmp_path):
    processes.put(tmp_path, processes.linear(7.0), "m", 1)
    text = ("x", TensorProto.STRING, [None, 2]), ("y", TensorProto.STRING, [None, 2])
    processes.put(tmp_path, processes.model([helper.make_node("Identity", ["x"], ["y"])], *text, []), "texts", 1)
    return tmp_path


def test_kserves_client_is_answered(root, client_python, models):
    with processes.running(models) as server:
        numbers = server.ask("POST", "/models/m/predict", json={"inputs": [[1, 2, 3, 4, 5, 6], [0.5, 0, 0, 0, 0, 0]]})
        command = [client_python, root / "tests/helpers/kserve_calls.py", server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [found.pop(key) for key in ("live", "ready", "model ready")] == [True, True, True]
    assert "'model_name' is 'other'; the URL of the request names 'm'" in found.pop("meant for another")
    texts = [["é", "b"], ["", "long " * 50]]
    values = numbers.json()["outputs"]["y"]
    assert found == {
        "numbers, binary False": values,
        "numbers, binary True": values,
        "texts, binary False": texts,
        "texts, binary True": texts,
    }


@pytest.mark.parametrize("client", ["kserve", "triton"])
def test_both_clients_are_answered_over_grpc(root, client_python, models, client):
    with processes.running(models, "--grpc-port", 0) as server:
        command = [client_python, root / "tests/helpers/grpc_calls.py", client, server.grpc]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "input 'x' has shape [2, 5]; expected (n, 6)" in found.pop("wrong shape")
    assert found == {
        "live": True,
        "ready": True,
        "model ready": True,
        "numbers": [[7, 7], [7, 7]],
        "texts": [["é", "b"], ["", "long " * 50]],
    }
