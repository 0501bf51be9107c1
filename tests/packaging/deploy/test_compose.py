"""The image and docker-compose.yml for real: built, started, asked, stopped. Needs an engine; 'make test-compose'."""

import json
import subprocess
import time

import numpy as np
import pytest
import tritonclient.http as tritonclient

import app

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

IMAGE_BYTES = 280_000_000
STOP_SECONDS = 10


@pytest.fixture(scope="module")
def stack(make_stack, free_port, client):
    port = free_port()
    stack = make_stack("server", PANTHER_PUBLISHED_PORT=str(port), PANTHER_LOG_FORMAT="json")
    stack.ask = client(port)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def test_comes_up_healthy(stack):
    assert stack.inspect()["State"]["Health"]["Status"] == "healthy"
    assert stack.ask("/health/live")[0] == 200
    assert stack.ask("/health/ready")[0] == 200


def test_predicts_digits_that_it_was_not_trained_on(stack, digits):
    rows, classes = digits
    status, answer = stack.ask("/predict", {"inputs": rows})
    assert status == 200, answer
    right = [row["label"] == label for row, label in zip(answer["predictions"], classes, strict=True)]
    assert sum(right) / len(right) >= 0.97


def test_predicts_by_curl(stack, root):
    command = ["curl", "--silent", "--fail-with-body", stack.ask.address + "/predict", "--data", "@examples/digit.json"]
    answer = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert [row["label"] for row in json.loads(answer.stdout)["predictions"]] == ["2"]


@pytest.mark.parametrize("binary", [True, False])
def test_predicts_by_tritonclient(stack, digits, binary):
    rows, classes = digits
    with tritonclient.InferenceServerClient(stack.ask.address.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        tensor = tritonclient.InferInput("x", [len(rows), 784], "FP32")
        tensor.set_data_from_numpy(np.array(rows, np.float32), binary_data=binary)
        asked = [tritonclient.InferRequestedOutput("logits", binary_data=binary)]
        logits = client.infer("digits", [tensor], outputs=asked).as_numpy("logits")
    right = [int(index) == int(label) for index, label in zip(logits.argmax(axis=1), classes, strict=True)]
    assert sum(right) / len(right) >= 0.97


def test_answers_bad_input_with_its_reason(stack):
    status, answer = stack.ask("/predict", {"inputs": [[0.0] * 3]})
    assert status == 400
    assert "784" in answer["error"]


def test_stats_report_the_parameters_of_the_shipped_model(stack):
    status, answer = stack.ask("/stats")
    assert status == 200
    (model,) = [model for model in answer["models"] if model["name"] == "digits"]
    assert model["layers"]
    for layer in model["layers"]:
        inner, outer = layer["in_features"], layer["out_features"]
        sketched = layer["num_terms"] * layer["low_rank"] * (inner + outer)
        counted = {name: layer["parameters"][name] for name in ("dense", "learnable", "fixed")}
        assert counted == {"dense": inner * outer + outer, "learnable": sketched + outer, "fixed": sketched}
    dense = sum(layer["parameters"]["dense"] for layer in model["layers"])
    assert model["totals"]["sketched_layers"]["dense"] == dense
    assert answer["server"]["device"]["providers"] == ["CPUExecutionProvider"]


def test_a_setting_of_the_shell_reaches_the_server(stack, docker):
    logs = docker("logs", stack.container)
    lines = (logs.stdout + logs.stderr).splitlines()
    assert lines
    assert all(json.loads(line) for line in lines)


def test_runs_as_a_fixed_user_without_any_privilege(stack):
    code = "print(open('/proc/1/status').read())"
    lines = dict(line.split(":", 1) for line in stack.python(code).stdout.splitlines() if ":" in line)
    assert set(lines["Uid"].split()) == {"10001"}
    assert set(lines["Gid"].split()) == {"10001"}
    assert lines["NoNewPrivs"].strip() == "1"
    assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


def test_can_write_nowhere_but_tmp(stack, docker):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x').write_text('x')"
    for folder in ("/", "/opt/venv", "/models", "/home", "/run"):
        answer = docker("exec", stack.container, "python", "-c", code, folder, check=False)
        assert "Read-only file system" in answer.stderr, folder
    assert docker("exec", stack.container, "python", "-c", code, "/tmp").returncode == 0


def test_root_could_not_write_to_the_image_either(stack, docker):
    answer = docker("exec", "--user", "0", stack.container, "python", "-c", "open('/opt/x', 'w')", check=False)
    assert "Read-only file system" in answer.stderr


def test_holds_nothing_that_trains_installs_or_compiles(stack):
    code = """
import importlib.util, shutil
modules = ["torch", "onnx", "panther", "pip", "setuptools", "ensurepip"]
programs = ["pip", "pip3", "apt-get", "cc", "gcc", "make", "perl", "curl"]
print([name for name in modules if importlib.util.find_spec(name)] + [name for name in programs if shutil.which(name)])
"""
    assert stack.python(code).stdout.strip() == "[]"


def test_image_is_small_and_says_what_it_is(image, capsys, docker):
    found = json.loads(docker("image", "inspect", image).stdout)[0]
    with capsys.disabled():
        print(f"\nsize of the image: {found['Size'] / 1e6:.1f} MB")
    assert found["Size"] <= IMAGE_BYTES
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "panther-sketch"
    assert labels["version"] == app.__version__
    assert labels["revision"] == "a-revision"
    assert labels["licenses"] == "Apache-2.0"


def test_connects_to_nobody(stack, docker):
    # After all that was asked above: every connection of the container's came in on its own port.
    code = """
import pathlib
for kind in ("tcp", "tcp6", "udp", "udp6"):
    for line in pathlib.Path("/proc/net", kind).read_text().splitlines()[1:]:
        (_, local), (address, remote) = [end.split(":") for end in line.split()[1:3]]
        if int(address, 16):  # else it listens
            print(kind, int(local, 16), address, int(remote, 16))
"""
    answer = stack.python(code)
    assert answer.returncode == 0, answer.stderr
    ends = [line.split() for line in answer.stdout.splitlines()]
    # The other end of the health check's connections lies within the container too.
    assert [end for end in ends if end[1] != "8000" and end[2:] != ["0100007F", "8000"]] == []


def test_serves_without_any_network(image, root, docker):
    options = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--volume", f"{root}/models:/models:ro"]
    container = docker("run", "--detach", *options, image).stdout.strip()
    code = """
import json, urllib.request
ask = lambda path, body=None: json.load(urllib.request.urlopen("http://127.0.0.1:8000" + path, body, timeout=10))
print(ask("/predict", json.dumps({"inputs": [[0.0] * 784]}).encode())["model"], ask("/stats")["server"]["ready"])
"""
    try:
        deadline = time.monotonic() + 30
        while docker("exec", container, "python", "-I", "-S", "/opt/healthcheck.py", check=False).returncode:
            assert time.monotonic() < deadline, docker("logs", container).stderr
            time.sleep(0.2)
        assert docker("exec", container, "python", "-c", code).stdout == "digits True\n"
    finally:
        docker("rm", "--force", container)


def test_a_server_that_does_not_answer_is_unhealthy(stack, docker):
    command = stack.inspect()["Config"]["Healthcheck"]["Test"][1:]
    assert docker("exec", stack.container, *command, check=False).returncode == 0
    answer = docker("exec", "--env", "PANTHER_PORT=1", stack.container, *command, check=False)
    assert answer.returncode == 1
    assert "127.0.0.1:1 does not answer" in answer.stdout


def test_sigterm_ends_it_in_time_with_exit_status_0(stack, docker):
    container = stack.container
    start = time.monotonic()
    docker("kill", "--signal", "SIGTERM", container)
    code = docker("wait", container, timeout=STOP_SECONDS).stdout.strip()
    assert time.monotonic() - start < STOP_SECONDS
    assert code == "0", stack.compose("logs", "--no-color").stdout
    assert not stack.inspect()["State"]["OOMKilled"]
    stack.up()
    assert stack.ask("/health/ready")[0] == 200
