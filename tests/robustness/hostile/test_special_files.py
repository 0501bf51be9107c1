"""FIFOs, devices, sockets and endless values in a model's folder: refused by name, and nothing waits for them."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from helpers.hostile import Server, matrix, model, product
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT


def put_special(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(path))  # such a name must be short


KINDS = ["a FIFO", "a device", "a socket", "a folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_are_no_regular_file(server, kind, monkeypatch):
    name = f"settings-{kind[2:].lower()}"
    folder = server.put(name, product(matrix()).SerializeToString()).parents[1]
    monkeypatch.chdir(folder)
    put_special(folder / "panther.toml", kind)
    server.assert_refused(name, rf"panther\.toml can't be read: it is {kind}, not a regular file")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_no_regular_file(server, kind, monkeypatch):
    name = f"model-{kind[2:].lower()}"
    path = server.put(name, b"")
    monkeypatch.chdir(path.parent)
    put_special(path, kind)
    server.assert_refused(name, rf"version 1: model\.onnx can't be read: it is {kind}, not a regular file")


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a folder"])
def test_weights_that_are_no_regular_file(server, kind, monkeypatch):
    name = f"weights-{kind[2:].lower()}"
    tensor = TensorProto(name="W", data_type=FLOAT, dims=(4, 3), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    made = model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 3])], [tensor]
    )
    path = server.put(name, made.SerializeToString())
    monkeypatch.chdir(path.parent)
    put_special(path.with_name("w.bin"), kind)
    server.assert_refused(name, rf"'w\.bin' can't be read: it is {kind}, not a regular file")


@pytest.mark.parametrize(
    "text", ["max_batch_rows = '{}'", "{} = 1", "max_batch_rows = 1\nx.{} = 1\nx.{} = 2"], ids=["value", "key", "path"]
)
@pytest.mark.parametrize("size", [200_000, 20_000_000])
def test_an_endless_value_is_not_repeated(server, text, size):
    path = server.put("endless", product(matrix()).SerializeToString())
    (path.parents[1] / "panther.toml").write_text(text.replace("{}", "a" * size))
    before = len(server.log)
    message = server.assert_refused("endless", "panther.toml")
    assert len(message) < 1000
    assert len(server.log) - before < 3000
    ready = server.client.get("/health/ready")
    assert len(ready.content) < 3000


def endless_loop() -> bytes:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["v"], ["v_out"])],
        "inner",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", FLOAT, ["n", 4]),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["", "yes", "x"], ["y"], body=inner)
    return model([loop], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], [yes]).SerializeToString()


def test_a_model_that_does_not_load_keeps_neither_another_nor_the_end_waiting(tmp_path):
    """Loads used to wait for one another, up to trial_load_s each."""
    server = Server(tmp_path, "--trial-load-s", "3600")
    try:
        server.put("endless", endless_loop())
        answers = []

        def load():
            answers.append(server.load("endless"))

        waiting = threading.Thread(target=load)
        waiting.start()
        end = time.monotonic() + 60
        while "LOADING" not in server.client.post("/v2/repository/index").text:
            assert time.monotonic() < end
            time.sleep(0.05)
        server.put("other", product(matrix(seed=7)).SerializeToString())
        assert server.load("other").status_code == 200
        rows = np.ones((1, 4), np.float32)
        answer = server.ask("other", rows).json()["outputs"]["y"]
        np.testing.assert_allclose(answer, rows @ matrix(seed=7), rtol=1e-4)
        assert server.client.post("/v2/repository/models/other/unload").status_code == 200
        assert answers == []
        server.process.terminate()
        assert server.process.wait(60) == 0
        waiting.join(60)
        (answer,) = answers
        assert answer.json() == {"error": "model 'endless' version 1 is not loaded: the server is shutting down"}
    finally:
        server.end()


def test_a_model_that_does_not_load_at_the_start_keeps_no_other_out(tmp_path):
    (tmp_path / "models" / "aaa" / "1").mkdir(parents=True)
    (tmp_path / "models" / "aaa" / "1" / "model.onnx").write_bytes(endless_loop())
    server = Server(tmp_path, "--trial-load-s", "3600", ready="loaded model good")
    try:
        assert "LOADING" in server.client.post("/v2/repository/index").text
        end = time.monotonic() + 60
        while server.ask("good", np.ones((1, 4), np.float32)).status_code == 503:  # loaded, and not yet warm
            assert time.monotonic() < end
            time.sleep(0.05)
        server.assert_unharmed()
    finally:
        server.end()
