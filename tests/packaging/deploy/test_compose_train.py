"""docker-compose.train.yml for real: training writes into the folder of a running server, which serves it."""

import os
import shutil
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

FILES = ("docker-compose.yml", "docker-compose.train.yml")


@pytest.fixture(scope="module")
def wheel(root):
    """torch's wheel for the CPU alone, laid where the build takes it from."""
    folders = [Path(name) for name in os.environ.get("PIP_FIND_LINKS", "").split() if Path(name).is_dir()]
    found = [path for folder in (root / "requirements/wheels", *folders) for path in folder.glob("torch-*+cpu-*.whl")]
    if not found:
        pytest.skip("no wheel of torch for the CPU in a folder of PIP_FIND_LINKS; the one with CUDA takes too long")
    laid = root / "requirements/wheels" / found[0].name
    if laid.exists():
        yield laid
        return
    shutil.copy(found[0], laid)
    yield laid
    laid.unlink()


@pytest.fixture(scope="module")
def stack(make_stack, wheel, models, docker, free_port, client):
    image = f"panther-sketch:test-train-{os.getpid()}"
    port = free_port()
    stack = make_stack(
        "train",
        FILES,
        PANTHER_TRAIN_IMAGE=image,
        PANTHER_MODELS=str(models),
        PANTHER_TRAIN_USER=f"{os.getuid()}:{os.getgid()}",
        PANTHER_PUBLISHED_PORT=str(port),
        PANTHER_WATCH_INTERVAL_S="0.2",
    )
    stack.ask = client(port)
    try:
        stack.compose("build", "train")
        stack.up("server")
        yield stack
    finally:
        stack.down()
        docker("image", "rm", "--force", image)


def test_what_training_writes_is_served_without_a_restart(stack, digits, docker):
    started = stack.inspect()["State"]["StartedAt"]
    assert stack.ask("/models")[1]["models"][0]["version"] == "1"
    arguments = ["--to", "/models", "--epochs", "6", "--threads", "1"]
    trained = stack.compose("run", "--rm", "--no-TTY", "train", "train", *arguments)
    assert "wrote /models/digits/2/model.onnx" in trained.stdout
    deadline = time.monotonic() + 10
    while stack.ask("/models")[1]["models"][0]["version"] != "2":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    rows, classes = digits
    status, answer = stack.ask("/predict", {"inputs": rows})
    assert (status, answer["version"]) == (200, "2")
    right = [row["label"] == label for row, label in zip(answer["predictions"], classes, strict=True)]
    assert sum(right) / len(right) >= 0.8
    assert stack.inspect()["State"]["StartedAt"] == started
    assert stack.inspect()["RestartCount"] == 0


def test_the_server_can_not_write_where_training_does(stack):
    assert "Read-only file system" in stack.python("open('/models/x', 'w')").stderr
