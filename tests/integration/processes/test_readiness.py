"""What /health/ready is about: a new model that is loading or broken leaves a server ready that serves what it owes."""

import os
import signal

import pytest
from helpers import processes

WATCH = ("--model-control", "watch", "--watch-interval-s", "0.1")


def put_junk(root, name="bad"):
    (root / "aside" / "1").mkdir(parents=True)
    (root / "aside" / "1" / "model.onnx").write_bytes(b"junk")
    return (root / "aside").rename(root / "models" / name)


@pytest.fixture
def models(tmp_path):
    processes.put(tmp_path / "models", processes.linear(1), "good", 1)
    return tmp_path / "models"


def ready(server):
    answer = server.ask("GET", "/health/ready")
    assert answer.status_code == (200 if answer.json()["ready"] else 503)
    return answer.json()


def test_a_broken_new_model_shows_everywhere_and_changes_nothing_else(models):
    with processes.running(models, *WATCH) as server:
        bad = put_junk(models.parent)
        server.wait_for(lambda: "model 'bad' version 1" in server.index().get(("bad", "1"), ("", ""))[1])
        assert ready(server) == {"ready": True}
        assert server.index()[("bad", "1")][0] == "UNAVAILABLE"
        assert server.ask("GET", "/stats").json()["server"]["ready"] is True
        assert server.metric("panther_ready") == 1
        assert server.metric('panther_model_load_failing{model="bad",version="1"}') == 1
        assert "model 'bad' version 1" in server.log
        assert server.value("good") == 1
        fresh = models.parent / "fresh"
        fresh.write_bytes(processes.linear(5).SerializeToString())
        fresh.rename(bad / "1" / "model.onnx")
        server.wait_for(lambda: server.value("bad") == 5)
        server.wait_for(lambda: "model bad has recovered: version 1 is served" in server.log)
        assert server.metric('panther_model_load_failing{model="bad",version="1"}') == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "bad: model 'bad' version 1"),
        (("--required-models", "good"), None),
        (("--required-models", "good, other"), "other: it is not in the model folder"),
    ],
)
def test_a_model_that_is_broken_at_the_start(models, arguments, error):
    put_junk(models.parent)
    with processes.running(models, *WATCH, *arguments) as server:
        found = ready(server)
        assert found["ready"] is (error is None)
        assert error is None or found["error"].startswith(error)
        assert server.ask("GET", "/v2/health/ready").status_code == (200 if error is None else 400)
        assert server.value("good") == 1


def test_strict_readiness_counts_a_new_model(models):
    with processes.running(models, *WATCH, "--strict-readiness") as server:
        assert ready(server) == {"ready": True}
        put_junk(models.parent)
        server.wait_for(lambda: not ready(server)["ready"])
        server.wait_for(lambda: "not ready: bad: " in server.log)
        (models / "bad").rename(models.parent / "away")
        server.wait_for(lambda: ready(server)["ready"])
        server.wait_for(lambda: "ready again: serving good" in server.log)


def test_a_worker_that_comes_later_counts_what_the_others_count(models):
    with processes.running(models, *WATCH, workers=2) as server:
        put_junk(models.parent)
        server.wait_for(lambda: "model 'bad' version 1" in server.index().get(("bad", "1"), ("", ""))[1])
        os.kill(server.children()[0], signal.SIGKILL)
        server.wait_for(lambda: server.log.count("ready: serving good") == 3)
        for _ in range(20):
            assert ready(server) == {"ready": True}


def test_a_default_model_that_is_not_there_is_an_error_in_the_log(models):
    with processes.running(models, "--default-model", "digit") as server:
        server.wait_for(
            lambda: (
                "default_model 'digit' is not in the model folder, which POST /predict needs; available: good"
                in server.log
            )
        )
        assert server.ask("POST", "/predict", json={"inputs": [processes.ROW]}).status_code == 404
