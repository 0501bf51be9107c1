"""``NAME/panther.toml``: one model's own settings."""

import threading

import numpy as np
import pytest

from app.errors import LoadError
from app.model_settings import ModelSettings, read_model_settings

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
CONFIG = "/v2/models/m/config"


def test_without_a_file_the_server_s_settings_hold(tmp_path):
    assert read_model_settings("m", tmp_path) == ModelSettings(
        batching=True, max_batch_rows=None, batch_delay_us=0, version_policy=None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_rows = 0", r"max_batch_rows: 0 is not accepted: input should be greater than or equal to 1"),
        ('max_batch_rows = "8"', r"max_batch_rows: '8' is not accepted: input should be a valid integer"),
        ("batch_delay_us = -1", r"batch_delay_us: -1 is not accepted: input should be greater than or equal to 0"),
        (
            'version_policy = "newest"',
            r"version_policy: 'newest' is not accepted: must be latest, all, or version numbers",
        ),
        ("max_rows = 3", r"max_rows is no setting of a model; there are batching, max_batch_rows, batch_delay_us"),
        ("batching", r" is not TOML: "),
        ("max_batch_rows = " + 5000 * "9", r" is not TOML: .*4300 digits"),
        ("max_batch_rows = " + 5000 * "[", r" is not TOML: .*nested too deep"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    (tmp_path / "panther.toml").write_text(text)
    with pytest.raises(LoadError, match=rf"^model 'm': panther.toml.*{message}"):
        read_model_settings("m", tmp_path)


def test_a_byte_order_mark_is_no_part_of_it(tmp_path):
    (tmp_path / "panther.toml").write_bytes("max_batch_rows = 3\r\n".encode("utf-8-sig"))
    assert read_model_settings("m", tmp_path).max_batch_rows == 3


def test_a_file_that_cannot_be_parsed_keeps_no_other_model_from_being_served(tmp_path, build):
    build.put(tmp_path, build.Tiny().graph(), "other")
    with serve(build, tmp_path, "max_batch_rows = " + 5000 * "[") as client:
        assert client.post("/models/other/predict", json={"inputs": [ROW]}).status_code == 200
        assert "m: model 'm': panther.toml is not TOML: " in client.get("/health/ready").json()["error"]


def burst(client, count, rows=1):
    """So many requests at once; the largest run that came of them."""
    barrier = threading.Barrier(count)

    def ask():
        barrier.wait()
        assert client.post("/models/m/predict", json={"inputs": [ROW] * rows}).status_code == 200

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = client.get("/v2/models/m/stats").json()["model_stats"][0]
    return max(batch["batch_size"] for batch in stats["batch_stats"])


def serve(build, tmp_path, text, **settings):
    build.put(tmp_path, build.Tiny().graph(), "m")
    (tmp_path / "m" / "panther.toml").write_text(text)
    return build.running(tmp_path, **settings)


def test_a_model_s_own_maximum_is_kept(tmp_path, build):
    with serve(build, tmp_path, "max_batch_rows = 3\nbatch_delay_us = 20000") as client:
        assert client.get(CONFIG).json()["max_batch_size"] == 3
        assert client.get(CONFIG).json()["dynamic_batching"]["max_queue_delay_microseconds"] == 20000
        assert burst(client, 8) <= 3
        # A request with more rows is run in pieces.
        x = np.linspace(-1, 1, 60).reshape(10, 6)
        answer = client.post("/models/m/predict", json={"inputs": x.tolist()}).json()["outputs"]["logits"]
        np.testing.assert_allclose(answer, build.Tiny().logits(x), rtol=1e-4, atol=1e-5)


def test_a_delay_gathers_what_comes_apart(tmp_path, build):
    with serve(build, tmp_path, "batch_delay_us = 200000") as client:
        assert burst(client, 6) == 6


def test_batching_can_be_off(tmp_path, build):
    with serve(build, tmp_path, "batching = false", inline_run_us=0) as client:
        assert burst(client, 8, rows=2) == 2
        assert "dynamic_batching" not in client.get(CONFIG).json()


def test_a_model_chooses_its_versions(tmp_path, build):
    for version in ("2", "3"):
        build.put(tmp_path, build.Tiny().graph(), "m", version)
    with serve(build, tmp_path, 'version_policy = "1,2"') as client:
        assert client.get("/v2/models/m").json()["versions"] == ["1", "2"]
        assert client.get(CONFIG).json()["version_policy"] == {"specific": {"versions": [1, 2]}}


def test_a_wrong_file_leaves_what_is_served_and_tells_why(tmp_path, build):
    with serve(build, tmp_path, "max_batch_rows = 3", model_control="explicit") as client:
        (tmp_path / "m" / "panther.toml").write_text("max_batch_rows = 0")
        answer = client.post("/v2/repository/models/m/load")
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("model 'm': panther.toml: max_batch_rows: 0 is not accepted")
        assert client.post("/models/m/predict", json={"inputs": [ROW]}).status_code == 200
        (item,) = client.post("/v2/repository/index").json()
        assert (item["state"], item["reason"][:15]) == ("READY", "reload failed: ")
        assert client.get("/health/ready").status_code == 200


def test_a_wrong_file_at_the_start_is_told_by_the_probe(tmp_path, build):
    with serve(build, tmp_path, "batching = 1") as client:
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "m: model 'm': panther.toml: batching: 1 is not accepted" in answer.json()["error"]
        assert str(tmp_path) not in answer.text
