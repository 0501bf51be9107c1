"""The image and docker-compose.yml for real: built, started, asked, stopped. Needs an engine; 'make test-compose'."""

import json
import os
import subprocess
import time

import pytest

import app

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

IMAGE_BYTES = 260_000_000
STOP_SECONDS = 10


def docker(*arguments, check=True, **keywords):
    answer = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, **keywords)
    if check and answer.returncode:
        pytest.fail(f"docker {' '.join(arguments)}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}")
    return answer


class Stack:
    """The services of docker-compose.yml under a project name, an image name and a port of their own."""

    def __init__(self, root, port, plain_env):
        self.project = f"panther-test-{os.getpid()}"
        self.image = f"panther-sketch:test-{os.getpid()}"
        self.env = plain_env | {
            "PANTHER_PUBLISHED_PORT": str(port),
            "PANTHER_IMAGE": self.image,
            "PANTHER_LOG_FORMAT": "json",
            "REVISION": "a-revision",
        }
        self.root = root

    def compose(self, *arguments, check=True):
        return docker("compose", "-p", self.project, *arguments, check=check, cwd=self.root, env=self.env)

    def up(self):
        started = self.compose("up", "--detach", "--wait", "--wait-timeout", "60", check=False)
        if started.returncode:
            logs = self.compose("logs", "--no-color", check=False)
            pytest.fail(f"docker compose up: exit {started.returncode}\n{started.stderr}{logs.stdout}{logs.stderr}")

    @property
    def container(self):
        return self.compose("ps", "--all", "--quiet", "server").stdout.strip()

    def inspect(self):
        return json.loads(docker("container", "inspect", self.container).stdout)[0]

    def python(self, code, *, env=()):
        variables = [word for pair in env for word in ("--env", pair)]
        return docker("exec", *variables, self.container, "python", "-c", code, check=False)

    def left(self):
        """Whatever the engine still has of this project."""
        label = f"label=com.docker.compose.project={self.project}"
        kinds = {"container": ["--all"], "network": [], "volume": []}
        found = [docker(kind, "ls", *more, "--quiet", "--filter", label).stdout for kind, more in kinds.items()]
        return "".join(found).split()


@pytest.fixture(scope="module")
def stack(root, free_port, plain_env, client):
    if docker("info", check=False).returncode:
        pytest.fail("no Docker engine answers: start it, or see CONTRIBUTING.md")
    port = free_port()
    stack = Stack(root, port, plain_env)
    stack.ask = client(port)
    try:
        stack.compose("build")
        stack.up()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", str(STOP_SECONDS))
        docker("image", "rm", "--force", stack.image)
    assert stack.left() == []


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


def test_a_setting_of_the_shell_reaches_the_server(stack):
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


def test_can_write_nowhere_but_tmp(stack):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x').write_text('x')"
    for folder in ("/", "/opt/venv", "/models", "/home", "/run"):
        answer = docker("exec", stack.container, "python", "-c", code, folder, check=False)
        assert "Read-only file system" in answer.stderr, folder
    assert docker("exec", stack.container, "python", "-c", code, "/tmp").returncode == 0


def test_root_could_not_write_to_the_image_either(stack):
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


def test_image_is_small_and_says_what_it_is(stack, capsys):
    image = json.loads(docker("image", "inspect", stack.image).stdout)[0]
    with capsys.disabled():
        print(f"\nsize of the image: {image['Size'] / 1e6:.1f} MB")
    assert image["Size"] <= IMAGE_BYTES
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert "ORT_DISABLE_TELEMETRY=1" in config["Env"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "panther-sketch"
    assert labels["version"] == app.__version__
    assert labels["revision"] == "a-revision"
    assert labels["licenses"] == "Apache-2.0"


def test_a_server_that_does_not_answer_is_unhealthy(stack):
    command = stack.inspect()["Config"]["Healthcheck"]["Test"][1:]
    assert docker("exec", stack.container, *command, check=False).returncode == 0
    answer = docker("exec", "--env", "PANTHER_PORT=1", stack.container, *command, check=False)
    assert answer.returncode == 1
    assert "127.0.0.1:1 does not answer" in answer.stdout


def test_sigterm_ends_it_in_time_with_exit_status_0(stack):
    container = stack.container
    start = time.monotonic()
    docker("kill", "--signal", "SIGTERM", container)
    code = docker("wait", container, timeout=STOP_SECONDS).stdout.strip()
    assert time.monotonic() - start < STOP_SECONDS
    assert code == "0", stack.compose("logs", "--no-color").stdout
    assert not stack.inspect()["State"]["OOMKilled"]
    stack.up()
    assert stack.ask("/health/ready")[0] == 200
