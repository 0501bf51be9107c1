"""Servers whose models lie in S3 or on a web server: what changes there, and what happens while it can't be reached."""

import base64

import pytest
from helpers import processes
from helpers.remote import BUCKET, s3, web, write_manifest

from app.config.settings import Settings
from app.process.serve import serve
from app.repository.remote import extra
from app.repository.remote.errors import MissingExtraError

OFTEN = ("--remote-interval-s", 0.2, "--watch-interval-s", 0.1)
URL = f"s3://{BUCKET}/production"


def put(bucket, value: float, version: int, name: str = "m") -> None:
    bucket.put(f"production/{name}/{version}/model.onnx", processes.linear(value).SerializeToString())


def test_workers_follow_a_bucket_and_outlive_it(tmp_path):
    environment = {"PANTHER_MODEL_CACHE": str(tmp_path)}
    watch = ("--model-control", "watch", *OFTEN)
    with s3() as bucket:
        put(bucket, 1.0, 1)
        environment |= bucket.environment
        with processes.running(URL, *watch, workers=2, **environment) as server:
            assert server.value() == 1.0
            assert server.metric("panther_mirror_failing") == 0
            put(bucket, 2.0, 2)
            bucket.put("production/m/panther.toml", b"max_batch_rows = 8\n")
            for _ in range(8):  # connections, so both workers
                server.wait_for(lambda: server.value() == 2.0)
            bucket.delete("production/m/2/model.onnx")
            server.wait_for(lambda: server.value() == 1.0)
            bucket.put("production/m/3/model.onnx", b"no model")
            server.wait_for(lambda: "model 'm' version 3" in server.log)
            assert server.value() == 1.0
            bucket.delete("production/m/3/model.onnx")
            bucket.delete("production/m/1/model.onnx")
            server.wait_for(lambda: "it has no model NAME/VERSION/model.onnx; mirrored files stay" in server.log)
            server.wait_for(lambda: server.metric("panther_mirror_failing") == 1)
            assert server.value() == 1.0
            assert server.end() == 0
            assert "Traceback" not in server.log
    # The store is gone, and a new server has the copy.
    with processes.running(URL, **environment) as server:
        assert server.value() == 1.0
        assert "serving the cached copy" in server.log


def test_a_load_by_request_fetches_what_is_new(tmp_path):
    with s3() as bucket:
        put(bucket, 1.0, 1)
        explicit = ("--model-control", "explicit")
        with processes.running(URL, *explicit, PANTHER_MODEL_CACHE=str(tmp_path), **bucket.environment) as server:
            put(bucket, 2.0, 2)
            assert server.value() == 1.0
            assert server.ask("POST", "/v2/repository/models/m/load").status_code == 200
            assert server.value() == 2.0
            bucket.put("production/m/3/model.onnx", processes.linear(3.0).SerializeToString())
            for key in ("1", "2", "3"):
                bucket.delete(f"production/m/{key}/model.onnx")
            answer = server.ask("POST", "/v2/repository/models/m/load")
            assert answer.status_code == 503
            assert answer.json()["error"].startswith(f"the models at {URL} can't be mirrored: it has no model")
            assert server.value() == 2.0


def test_a_server_waits_for_its_models_and_says_why_it_is_not_ready(tmp_path):
    with s3() as bucket:
        arguments = {"PANTHER_MODEL_CACHE": str(tmp_path), **bucket.environment}
        with processes.running("s3://mistyped/production", wait=False, **arguments) as server:
            server.wait_for(lambda: "can't be mirrored" in server.log)
            found = server.ask("GET", "/health/ready")
            assert found.status_code == 503
            assert found.json()["error"].startswith("the models at s3://mistyped/production can't be mirrored: ")
            assert server.ask("GET", "/health/live").status_code == 200
            bucket.client.create_bucket(Bucket="mistyped")
            content = processes.linear(5.0).SerializeToString()
            bucket.client.put_object(Bucket="mistyped", Key="production/m/1/model.onnx", Body=content)
            server.wait_for(lambda: server.value() == 5.0)


def test_a_web_server_with_a_password_that_no_one_sees(tmp_path):
    root = tmp_path / "root"
    processes.put(root, processes.linear(1.0), "m", 1)
    write_manifest(root)
    password = "Basic " + base64.b64encode(b"me:secret").decode()
    with web(root, password) as plain:
        url = plain.replace("//", "//me:secret@")
        arguments = ("--model-control", "watch", *OFTEN)
        with processes.running(url, *arguments, PANTHER_MODEL_CACHE=str(tmp_path / "cache")) as server:
            assert server.value() == 1.0
            processes.put(root, processes.linear(2.0), "m", 2)
            write_manifest(root)
            server.wait_for(lambda: server.value() == 2.0)
            (root / "m/2/model.onnx").write_bytes(b"damaged")
            processes.put(root, processes.linear(3.0), "m", 3)
            write_manifest(root)
            (root / "m/3/model.onnx").write_bytes(processes.linear(4.0).SerializeToString())
            server.wait_for(lambda: "m/3/model.onnx was downloaded with sha256" in server.log)
            assert server.value() == 2.0
            assert "://***@127.0.0.1" in server.log
            assert "secret" not in server.log + server.ask("GET", "/stats").text


def test_without_the_extra_the_server_does_not_start(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="model_dir=s3://bucket/m requires the extra 's3'"):
        serve(Settings(model_dir="s3://bucket/m", device="cpu"))
