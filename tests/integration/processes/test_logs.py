"""The log of a server whose reader stops reading."""

import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from helpers.processes import ROOT, linear, model, put
from onnx import TensorProto, helper, numpy_helper


def picky():
    """A model that fails on every index but 0."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = numpy_helper.from_array(np.zeros((1,), np.float32), "table")
    return model([node], ("x", TensorProto.INT64, ["n"]), ("y", TensorProto.FLOAT, ["n"]), [table])


@contextmanager
def logging_to_a_pipe(model_dir, workers):
    """A server that logs each request to a pipe, which is read until it is ready and no further; and its address."""
    options = ("--port 0 --device cpu --num-threads 1 --access-log --workers", str(workers), "--model-dir")
    command = [sys.executable, "-m", "app", *" ".join(options).split(), str(model_dir)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    try:
        ready, port = 0, None
        while ready < workers:
            line = process.stderr.readline().decode()
            assert line, "it ended"
            ready += "ready: " in line
            port = re.search(r"http://127.0.0.1:(\d+)", line) or port
        yield process, f"http://127.0.0.1:{port[1]}"
    finally:
        process.kill()
        process.wait(60)
        process.stderr.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_that_is_not_read_stops_neither_requests_nor_the_end(tmp_path, workers):
    put(tmp_path, linear(3.0), "m", 1)
    put(tmp_path, picky(), "picky", 1)
    with logging_to_a_pipe(tmp_path, workers) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            for number in range(2000):  # 827 lines filled a pipe
                if number % 4:
                    answer = client.post("/models/m/predict", json={"inputs": [[0.0] * 6]})
                    assert answer.json()["outputs"]["y"] == [[3.0, 3.0]]
                else:
                    assert client.post("/models/picky/predict", json={"inputs": [number + 1]}).status_code == 500
            assert "panther_log_lines_dropped_total 0.0" in client.get("/metrics").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
