"""Large bodies are read by another process: right, within bounds, and without holding up anybody."""

import gzip
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.build import onnx_model
from onnx import TensorProto, helper

MIB = 1 << 20


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((40_000, 6)).astype(np.float32)


def test_a_large_json_body_is_answered_as_a_short_one(client, tiny, rows):
    body = json.dumps({"inputs": rows.tolist()}).encode()
    assert len(body) > 2 * MIB
    for sent, headers in ((body, {}), (gzip.compress(body), {"content-encoding": "gzip"})):
        answer = client.post("/models/tiny/predict", content=sent, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text[:300]
        np.testing.assert_allclose(answer.json()["outputs"]["logits"], tiny.logits(rows), rtol=1e-3, atol=1e-4)


def test_so_is_one_of_the_protocol_with_its_options(client, tiny, rows):
    item = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.reshape(-1).tolist()}
    document = {"id": "large", "inputs": [item], "outputs": [{"name": "logits"}]}
    answer = client.post("/v2/models/tiny/infer", content=json.dumps(document).encode(), timeout=120).json()
    assert answer["id"] == "large"
    found = np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
    np.testing.assert_allclose(found, tiny.logits(rows), rtol=1e-3, atol=1e-4)


def test_large_answers_take_the_form_that_was_asked_for(client, tiny, rows):
    body = json.dumps({"inputs": rows.tolist(), "top_k": 2}).encode()
    answer = client.post("/models/tiny/predict", content=body, timeout=120).json()
    assert len(answer["predictions"]) == len(rows)
    assert len(answer["predictions"][-1]["top_k"]) == 2
    octets = client.post(
        "/models/tiny/predict?output=logits", content=body.replace(b', "top_k": 2', b""), timeout=120,
        headers={"accept": "application/octet-stream"},
    )  # fmt: skip
    found = np.frombuffer(octets.content, np.float32).reshape(len(rows), -1)
    np.testing.assert_allclose(found, tiny.logits(rows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", ["/models/tiny/predict", "/v2/models/tiny/infer"])
def test_what_is_wrong_with_a_large_body_is_said(client, path):
    body = b'{"inputs": [' + b"[1, 2, 3, 4, 5, 6]," * 100_000 + b"[1, 2]]}"
    answer = client.post(path, content=body, timeout=120)
    assert answer.status_code == 400
    if "predict" in path:
        assert answer.json()["error"] == "inputs[100000] has 2 values; expected 6"


def test_texts_may_be_large(serve):
    model = onnx_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n", 1])],
        [("y", TensorProto.STRING, ["n", 1])],
        [],
    )
    client = serve(model)
    texts = [[f'"{number}" [] {{}} \\'] for number in range(120_000)]
    answer = client.post("/models/m/predict", json={"inputs": texts}, timeout=120)
    assert answer.json()["outputs"]["y"] == texts


def cycle(parts, count):
    """The first ``count`` parts of an endless repetition of ``parts``, joined."""
    rounds, rest = divmod(count, len(parts))
    return b"".join(parts) * rounds + b"".join(parts[:rest])


def bombs():
    """Bodies that inflate to many MiB, and the status of their responses; made for the test, not at each collection."""
    lists, depths = [b"[" + b" " * i + b"]," for i in range(7)], [b"[" + b" " * i for i in range(5)]
    letters = [bytes([97 + i]) for i in range(25)]
    return {
        "empty lists": (b'{"inputs":[' + b"[]," * (20 * MIB) + b"[]]}", 413),
        "empty lists that compress less": (b'{"inputs":[' + cycle(lists, 3 * MIB) + b"[]]}", 400),
        "objects": (b'{"inputs":[' + b"".join(b'{"%x":0},' % i for i in range(MIB)) + b"0]}", 400),
        "keys": (b"{" + b",".join(b'"%x":1' % i for i in range(MIB)) + b"}", 400),
        "deep": (cycle(depths, 2 * MIB), 400),
        "one long text": (b'{"inputs":"' + cycle(letters, 8 * MIB) + b'"}', 400),
    }


def test_no_body_holds_up_the_others(tiny_dir):
    """58 KB that inflate to 60 MB of lists kept health checks waiting for 40 seconds."""
    from helpers.build import running

    with running(tiny_dir, max_body_bytes=128 * MIB) as client:
        packed, statuses = {}, {}
        for name, (body, status) in bombs().items():
            packed[name], statuses[name] = gzip.compress(body, 6), status  # level 9 takes longer for 1 % less
        slowest, stop = [0.0], threading.Event()

        def watch():
            while not stop.is_set():
                # By the processor time of this process, where the server runs: what others take from it does not count.
                began, cpu_s = time.monotonic(), time.process_time()
                assert client.get("/health/live").status_code == 200
                slowest.append(min(time.monotonic() - began, time.process_time() - cpu_s))
                stop.wait(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                answers = [
                    (name, pool.submit(client.post, "/models/tiny/predict", content=packed[name], timeout=300,
                                       headers={"content-encoding": "gzip"}))
                    for name in list(packed) * 2
                ]  # fmt: skip
                for name, answer in answers:
                    found = answer.result()
                    assert found.status_code in (statuses[name], 400, 413), (name, found.text[:300])
                    assert len(found.text) < 2000
        finally:
            stop.set()
            watcher.join()
        assert len(slowest) > 10
        assert max(slowest) < 5, max(slowest)
        answer = client.post("/models/tiny/predict", json={"inputs": [[0.0] * 6]})
        assert answer.status_code == 200


def test_a_client_that_leaves_while_its_body_is_read_leaves_nothing(tiny_dir, rows):
    import socket

    from helpers.build import running

    body = json.dumps({"inputs": np.repeat(rows, 4, 0).tolist()}).encode()
    with running(tiny_dir) as client:
        for _ in range(3):
            with socket.create_connection((client.base_url.host, client.base_url.port)) as wire:
                wire.sendall(b"POST /models/tiny/predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
                wire.sendall(body)
        end = time.monotonic() + 60
        while True:
            failures = client.get("/models/tiny/stats").json()["models"][0]["live"]["failures_by_reason"]
            if failures.get("Cancelled") == 3:
                break
            assert time.monotonic() < end, failures
            time.sleep(0.05)
        answer = client.post("/models/tiny/predict", content=body, timeout=120)
        assert answer.status_code == 200
