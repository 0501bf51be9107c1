"""The profile 'scale' for real: three servers behind nginx; one dies, one is stopped, all get a new version."""

import os
import shutil
import time

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

REPLICAS = 3
# 'resolve' in an upstream came with this version; where nginx:1.27 is older, one that has it is built from PyPI.
NGINX = (1, 27, 3)


@pytest.fixture(scope="module")
def nginx(docker, root):
    found = docker("run", "--rm", "--entrypoint", "nginx", "nginx:1.27", "-v", check=False)
    version = found.stderr.partition("nginx/")[2].split(" ")[0].strip()
    if version and tuple(int(part) for part in version.split(".")) >= NGINX:
        yield "nginx:1.27"
        return
    image, dockerfile = f"panther-nginx:test-{os.getpid()}", (root / "deploy/nginx/pypi.Dockerfile").read_text()
    docker("build", "--quiet", "--tag", image, "-", input=dockerfile)
    yield image
    docker("image", "rm", "--force", image)


@pytest.fixture(scope="module")
def stack(make_stack, models, nginx, free_port, client):
    port = free_port()
    stack = make_stack(
        "scale",
        PANTHER_NGINX_IMAGE=nginx,
        PANTHER_GATEWAY_PORT=str(port),
        PANTHER_MODELS=str(models),
        PANTHER_MODEL_CONTROL="watch",
        PANTHER_WATCH_INTERVAL_S="0.2",
        PANTHER_NUM_THREADS="1",
    )
    stack.ask = client(port)
    try:
        stack.up("--scale", f"replica={REPLICAS}", "gateway")
        yield stack
    finally:
        stack.down()


@pytest.fixture
def three(stack, docker):
    """The containers of the replicas, all three healthy."""
    stack.up("--scale", f"replica={REPLICAS}", "gateway")
    containers = stack.containers("replica")
    assert len(containers) == REPLICAS
    time.sleep(1.5)  # nginx looks the name up each second
    return containers


@pytest.fixture
def under_load(stack, load, root):
    return load(stack.ask.address.removeprefix("http://"), (root / "examples/digit.json").read_bytes())


def answered(stack, container):
    """How many predictions a replica has made since it was started."""
    code = """
import json, urllib.request
print(json.load(urllib.request.urlopen("http://127.0.0.1:8000/stats"))["models"][0]["live"]["succeeded"])
"""
    answer = stack.python(code, container)
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout)


def running(docker, containers):
    return [docker("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true" for name in containers]


def test_every_replica_gets_its_share(stack, three, under_load):
    before = [answered(stack, container) for container in three]
    with under_load:
        time.sleep(2)
    assert under_load.failures == []
    shares = [answered(stack, container) - count for container, count in zip(three, before, strict=True)]
    assert sum(shares) == under_load.asked
    assert min(shares) > 0.15 * under_load.asked


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_replica_ends_under_load_and_no_request_fails(stack, three, under_load, docker, signal):
    with under_load:
        docker("kill", "--signal", signal, three[1])
        time.sleep(3)
        after = under_load.asked
        time.sleep(0.5)
        assert under_load.asked > after
    assert running(docker, three) == [True, False, True]
    assert under_load.failures == []
    assert under_load.asked > 200


def test_replicas_come_and_go_under_load(stack, three, under_load, docker):
    with under_load:
        stack.up("--scale", "replica=1", "gateway")
        time.sleep(1)
        stack.up("--scale", f"replica={REPLICAS}", "gateway")
        time.sleep(3)
    assert under_load.failures == []
    # The gateway found those that came without being told.
    assert min(answered(stack, container) for container in stack.containers("replica")) > 0


def test_a_new_version_in_the_folder_is_served_by_all_under_load(stack, three, under_load, models):
    with under_load:
        shutil.copytree(models / "digits/1", models / ".aside")
        (models / ".aside").rename(models / "digits/2")
        deadline = time.monotonic() + 15
        code = """
import json, urllib.request
print(json.load(urllib.request.urlopen("http://127.0.0.1:8000/models"))["models"][0]["version"])
"""
        while {stack.python(code, container).stdout.strip() for container in three} != {"2"}:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(0.5)
    assert under_load.failures == []
    assert under_load.labels == {"1", "2"}


def test_answers_of_the_server_pass_through(stack, three):
    assert stack.ask("/health/ready") == (200, {"ready": True})
    status, answer = stack.ask("/predict", {"inputs": [[0.0] * 3]})
    assert (status, "784" in answer["error"]) == (400, True)
    assert stack.ask("/models/absent/predict", {"inputs": [[0.0] * 784]})[0] == 404


def test_refusals_of_all_replicas_pass_through_and_close_nothing(stack, three, models):
    bad = models / "bad/1"
    bad.mkdir(parents=True)
    (bad / "model.onnx").write_bytes(b"no model")
    try:
        deadline = time.monotonic() + 15
        while stack.ask("/models/bad/predict", {"inputs": [[0.0]]})[0] != 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for _ in range(2 * REPLICAS):
            status, answer = stack.ask("/models/bad/predict", {"inputs": [[0.0]]})
            assert (status, "bad" in answer["error"]) == (503, True)
            # Had the gateway set the replicas aside, it would say 502 now.
            assert stack.ask("/models/digits/predict", {"inputs": [[0.0] * 784]})[0] == 200
    finally:
        shutil.rmtree(models / "bad")
    while stack.ask("/health/ready")[0] != 200:
        assert time.monotonic() < deadline + 15
        time.sleep(0.2)


def test_models_are_not_loaded_on_one_replica_alone(stack, three):
    status, answer = stack.ask("/v2/repository/models/digits/unload", {})
    assert status == 403
    assert "through the gateway" in answer["error"]
    assert stack.ask("/health/ready")[0] == 200


def test_with_every_replica_gone_the_gateway_says_so(stack, three, docker):
    docker("kill", *three)
    status, answer = stack.ask("/predict", {"inputs": [[0.0] * 784]})
    assert (status, answer) == (502, {"error": "no replica answers"})
