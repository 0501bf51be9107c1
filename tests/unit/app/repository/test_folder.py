"""What lies in the model folder: models, and what looks like one in a wrong place, which is told once."""

import pytest
from helpers import build

from app.errors import LoadError
from app.repository.folder import ModelFolder, require_model_file

MISPLACED = {
    "flat/model.onnx": ("flat", "model.onnx", r"the file must be in a folder for its version: flat/1/model\.onnx"),
    "m/v1/model.onnx": (
        "m",
        "v1",
        "its name is not a version: versions are whole numbers without leading zeros, such as 1",
    ),
    "m/01/model.onnx": ("m", "01", "its name is not a version"),
    "m/2/net.onnx": ("m", "2", r"it has no file model\.onnx"),
    "my model/1/model.onnx": ("my model", "", "its name is not a valid model name: at most 128 letters, digits"),
    "net.onnx": ("net.onnx", "", r"a model requires folders with its name and version: net/1/model\.onnx"),
}


def put(root, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"x")


@pytest.mark.parametrize("path", MISPLACED)
def test_what_is_skipped_is_named_with_the_way_out(tmp_path, caplog, path):
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, path)
    folder = ModelFolder(tmp_path)
    name, version, why = MISPLACED[path]
    for _ in range(3):
        assert folder.scan() == {"m": ["1"]}
        assert list(folder.skipped) == [(name, version)]
        assert why.replace("\\", "") in folder.skipped[name, version]
    (message,) = caplog.messages
    assert message.startswith(f"{'/'.join(filter(None, (name, version)))} is skipped: ")


def test_what_is_hidden_or_no_model_is_passed_over_in_silence(tmp_path, caplog):
    for path in (
        "m/1/model.onnx",
        ".aside/1/model.onnx",
        "m/notes/readme.txt",
        "readme.txt",
        "data/x.bin",
        "m/.x/a.onnx",
    ):
        put(tmp_path, path)
    folder = ModelFolder(tmp_path)
    assert folder.scan() == {"m": ["1"]}
    assert folder.skipped == {}
    assert caplog.messages == []


def test_what_is_put_right_and_wrong_again_is_told_again(tmp_path, caplog):
    folder = ModelFolder(tmp_path)
    for _ in range(2):
        put(tmp_path, "m/v1/model.onnx")
        assert folder.scan() == {}
        (tmp_path / "m" / "v1").rename(tmp_path / "m" / "1")
        assert folder.scan() == {"m": ["1"]}
        (tmp_path / "m" / "1" / "model.onnx").unlink()
        (tmp_path / "m" / "1").rmdir()
    assert len(caplog.messages) == 2


def test_the_index_tells_of_what_is_skipped(tmp_path, tiny):
    build.put(tmp_path, tiny.graph(), "m")
    build.put(tmp_path, tiny.graph(), "m", "v2")
    build.put(tmp_path, tiny.graph(), "my model")
    with build.running(tmp_path) as client:
        index = {(item["name"], item["version"]): item for item in client.post("/v2/repository/index").json()}
        assert set(index) == {("m", "1"), ("m", "v2"), ("my model", "")}
        assert index["m", "1"]["state"] == "READY"
        for key in (("m", "v2"), ("my model", "")):
            assert index[key]["state"] == "UNAVAILABLE"
            assert index[key]["reason"].startswith("skipped: its name ")
        ready = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [(item["name"], item["version"]) for item in ready] == [("m", "1")]
        assert client.get("/health/ready").json() == {"ready": True}


def test_a_model_that_may_not_be_read_is_told_with_the_user_and_the_path(tmp_path, monkeypatch):
    put(tmp_path, "m/1/model.onnx")
    path = tmp_path / "m" / "1" / "model.onnx"
    path.chmod(0o400)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may read whatever the mode says
    monkeypatch.setattr("os.geteuid", lambda: 10001)
    said = r"the user with uid 10001 has no permission to read m/1/model\.onnx \(its mode is 400, its "
    with pytest.raises(LoadError, match=said):
        require_model_file("m", "1", path)
