import asyncio
import errno
import gc
import json
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import build

from app.application import create_app
from app.config.settings import Settings
from app.errors import LoadError
from app.repository.repository import Repository
from app.repository.versions import selected, valid_name
from app.system.users import process_user

ROW = np.array([[0.5, -1.0, 2.0, 0.25, 0.0, 1.5]])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("latest", ["10"]), ("all", ["1", "2", "10"]), ("1,10", ["1", "10"]), ("2, 7", ["2"]), ("7", [])],
)
def test_policies_choose_versions_by_number(policy, expected):
    assert selected(policy, ["10", "1", "2"]) == expected


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "", "x" * 129, "a b", "-x", "a\n"])
def test_names_cannot_leave_the_folder(name):
    assert not valid_name(name)


def logits(client, path):
    return client.post(path, json={"inputs": ROW.tolist()}).json()["outputs"]["logits"]


def test_the_latest_version_is_served_by_default_and_others_by_number(tmp_path):
    versions = {version: build.Tiny(seed=int(version)) for version in ("1", "2", "10")}
    for version, tiny in versions.items():
        build.put(tmp_path, tiny.graph(), "m", version)
    with build.running(tmp_path, version_policy="all") as client:
        np.testing.assert_allclose(logits(client, "/predict"), versions["10"].logits(ROW), rtol=1e-4)
        for version, tiny in versions.items():
            np.testing.assert_allclose(
                logits(client, f"/models/m/versions/{version}/predict"), tiny.logits(ROW), rtol=1e-4
            )
    with build.running(tmp_path) as client:
        answer = client.post("/models/m/versions/2/predict", json={"inputs": ROW.tolist()})
        assert answer.status_code == 503
        assert "version 2 is not ready: not selected by the version policy" in answer.json()["error"]


def test_two_models_need_a_name_or_a_default(tmp_path):
    tinies = {name: build.Tiny(seed=seed) for seed, name in enumerate(("a", "b"))}
    for name, tiny in tinies.items():
        build.put(tmp_path, tiny.graph(), name)
    with build.running(tmp_path) as client:
        answer = client.post("/predict", json={"inputs": ROW.tolist()})
        assert (answer.status_code, "several models are loaded (a, b)" in answer.json()["error"]) == (404, True)
        np.testing.assert_allclose(logits(client, "/models/b/predict"), tinies["b"].logits(ROW), rtol=1e-4)
    with build.running(tmp_path, default_model="b") as client:
        np.testing.assert_allclose(logits(client, "/predict"), tinies["b"].logits(ROW), rtol=1e-4)


def test_a_model_makes_itself_the_default(tmp_path):
    tinies = {name: build.Tiny(seed=seed) for seed, name in enumerate(("a", "b", "c"))}
    for name, tiny in tinies.items():
        build.put(tmp_path, tiny.graph(), name)
    (tmp_path / "b" / "panther.toml").write_text("default = true")
    with build.running(tmp_path) as client:
        np.testing.assert_allclose(logits(client, "/predict"), tinies["b"].logits(ROW), rtol=1e-4)
        assert [model["default"] for model in client.get("/models").json()["models"]] == [False, True, False]
    with build.running(tmp_path, model_control="explicit") as client:
        assert client.post("/v2/repository/models/a/unload", json={}).status_code == 200
        assert client.post("/v2/repository/models/b/unload", json={}).status_code == 200
        answer = client.post("/predict", json={"inputs": ROW.tolist()})  # c is the only one, and no substitute
        assert (answer.status_code, answer.json()["error"]) == (503, "model 'b' is not ready: unloaded")
    with build.running(tmp_path, default_model="c") as client:
        np.testing.assert_allclose(logits(client, "/predict"), tinies["c"].logits(ROW), rtol=1e-4)
    (tmp_path / "a" / "panther.toml").write_text("default = true")
    with build.running(tmp_path) as client:
        answer = client.post("/predict", json={"inputs": ROW.tolist()})
        assert answer.status_code == 404
        assert "several models have 'default = true' in their panther.toml (a, b)" in answer.json()["error"]


def test_an_empty_folder_is_not_ready(tmp_path):
    with build.running(tmp_path) as client:
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json()["error"] == "no model was found; the model folder must contain NAME/VERSION/model.onnx"
        assert client.post("/predict", json={"inputs": []}).json() == {"error": "no model is loaded"}


def test_a_broken_file_is_named_and_the_others_are_served(tmp_path, tiny):
    build.put(tmp_path, tiny.graph(), "good")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"this is no model")
    (tmp_path / "bad" / "notes").mkdir()
    with build.running(tmp_path) as client:
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "bad: model 'bad' version 1:" in ready.json()["error"]
        assert str(tmp_path) not in ready.text
        np.testing.assert_allclose(logits(client, "/predict"), tiny.logits(ROW), rtol=1e-4)
        refused = client.post("/models/bad/predict", json={"inputs": []})
        assert refused.status_code == 503
        assert "model 'bad' is not ready" in refused.json()["error"]
        states = {model["name"]: model["state"] for model in client.get("/models").json()["models"]}
        assert states == {"good": "READY", "bad": "UNAVAILABLE"}


def test_what_may_not_be_read_is_told_of_and_not_passed_over_in_silence(tmp_path, tiny, monkeypatch, caplog):
    for name, version in (("open", "1"), ("open", "2"), ("shut", "1")):
        build.put(tmp_path, tiny.graph(), name, version)
    exists, iterdir = Path.exists, Path.iterdir

    # Instead of 'chmod', which does not keep root out.
    def refuse(path, shut, look):
        if path.match(shut):
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(Path, "exists", lambda path: refuse(path, "open/2/model.onnx", exists))
    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path, "shut", iterdir))
    tried = []

    def load(name, version, *_):
        tried.append((name, version))
        raise LoadError("it can't be read")

    repository = Repository(tmp_path, "latest", load)
    repository.load_all()
    assert tried == [("open", "2"), ("open", "1")]
    reason = f"{process_user()} has no permission to read its folder {tmp_path / 'shut'}"
    assert f"model shut is skipped: {reason}: Permission denied" in caplog.messages
    assert repository.problems() == ["open: it can't be read"]


def test_a_model_that_was_replaced_goes_without_the_collector(tmp_path, tiny):
    build.put(tmp_path, tiny.graph(), "m")
    state = create_app(Settings(model_dir=tmp_path)).state.panther

    async def reload():
        await state.control.load_all()
        serving = state.repository.get("m")
        held = [serving.model.session, serving.model, serving.codec, serving.batcher]
        references = [weakref.ref(item) for item in held]
        held.clear()
        del serving
        await state.control.apply("load", "m")
        while state.control.releasing:
            await asyncio.sleep(0.01)
        return [reference() for reference in references]

    gc.disable()
    try:
        assert asyncio.run(reload()) == [None] * 4
    finally:
        gc.enable()


def test_figures_go_on_with_the_same_version(tmp_path, tiny):
    for version in ("1", "2"):
        build.put(tmp_path, tiny.graph(), "m", version)
    with build.running(tmp_path, model_control="explicit") as client:

        def control(action, version=None):
            config = json.dumps({"version_policy": {"specific": {"versions": [version]}}})
            body = {} if version is None else {"parameters": {"config": config}}
            client.post(f"/v2/repository/models/m/{action}", json=body).raise_for_status()

        def ask():
            assert client.post("/predict", json={"inputs": ROW.tolist()}).status_code == 200
            live = [item["live"] for item in client.get("/stats").json()["models"] if "live" in item]
            return live[0]["requests"]

        found = []
        for action, version in [("load", 2), ("load", 1), ("load", 1), ("load", 2), ("unload", None), ("load", 1)]:
            control(action, version)
            if action == "load":
                found.append((version, ask()))
        assert found == [(2, 1), (1, 1), (1, 2), (2, 2), (1, 3)]
        shutil.rmtree(tmp_path / "m" / "2")
        control("load")
        build.put(tmp_path, tiny.graph(), "m", "2")
        control("load")
        assert ask() == 1  # another model than was known by that number


def test_a_file_that_can_not_be_read_for_now_is_tried_again_and_told_without_a_traceback(tmp_path, tiny, caplog):
    build.put(tmp_path, tiny.graph(), "m")

    def load(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(tmp_path))

    repository = Repository(tmp_path, "latest", load)
    repository.load_all()
    assert repository.problems() == ["m: model 'm' version 1 can't be read: Too many open files"]
    assert repository.to_retry() == {"m": frozenset("1")}
    assert not any(record.exc_info for record in caplog.records)
