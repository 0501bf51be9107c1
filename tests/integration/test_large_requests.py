"""What a request may hold: rows, nesting, compressed bytes, names."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import build
from helpers.raw_http import BODY, FAST, ROW, SLOW

from app.config.settings import Settings


def test_a_request_of_too_many_rows(tiny_dir):
    with build.running(tiny_dir, max_request_rows=10) as client:
        tensor = {"name": "x", "shape": [11, 6], "datatype": "FP32", "data": ROW * 11}
        raw = {"content-type": "application/octet-stream"}
        for count, status in ((10, 200), (11, 413)):
            tensor = {"name": "x", "shape": [count, 6], "datatype": "FP32", "data": ROW * count}
            answers = [
                client.post(FAST, json={"inputs": [ROW] * count}),
                client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}),
                client.post(FAST, content=np.zeros((count, 6), np.float32).tobytes(), headers=raw),
            ]
            assert [answer.status_code for answer in answers] == [status] * 3
        said = "the request has 11 rows, above max_request_rows (10); send several requests"
        assert [answer.json() for answer in answers] == [{"error": said}] * 3


def deep(depth, inside="[", outside="]"):
    return inside * depth + "1" + outside * depth


@pytest.mark.parametrize("depth", [600, 2000, 100_000])
@pytest.mark.parametrize(
    "shape", ["{}", '{{"inputs": {}}}', '{{"inputs": [{{"name": "x", "data": {}}}]}}', '{{"outputs": {}}}']
)
@pytest.mark.parametrize("path", [FAST, "/v2/models/tiny/infer"])
def test_deeply_nested_json_is_a_plain_400(client, path, shape, depth):
    for text in (deep(depth), deep(depth, '{"a":', "}")):
        answer = client.post(path, content=shape.format(text))
        assert answer.status_code == 400
        assert list(answer.json()) == ["error"]
        assert len(answer.text) < 1000


@pytest.mark.parametrize("path", [SLOW, "/v2/repository/models/tiny/load", "/models/tiny/benchmark"])
def test_deeply_nested_json_is_a_400_on_other_paths_too(tiny_dir, path):
    with build.running(tiny_dir, model_control="explicit") as client:
        for text in (deep(100_000), deep(100_000, '{"a":', "}"), '{"parameters": ' + deep(100_000) + "}"):
            answer = client.post(path, content=text, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert list(answer.json()) == ["error"]
        head_length = {"inference-header-content-length": "100000"}
        assert client.post("/v2/models/tiny/infer", content=deep(100_000), headers=head_length).status_code == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [FAST, "/v2/models/tiny/infer"])
def test_a_decompression_bomb_is_stopped_at_the_limit(tiny_dir, path, coding):
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(b" " * 100_000_000)
    assert len(bomb) < 200_000
    with build.running(tiny_dir, max_body_bytes=1_000_000) as client:
        before = resident()
        answer = client.post(path, content=bomb, headers={"content-encoding": coding})
        assert answer.status_code == 413
        assert answer.json() == {"error": "the decompressed body is larger than max_body_bytes (1000000)"}
        assert resident() - before < 60_000_000
        twice = pack(bomb)
        answer = client.post(path, content=twice, headers={"content-encoding": f"{coding}, {coding}"})
        assert answer.status_code == 413
        chain = BODY
        for _ in range(30):
            chain = pack(chain)
        answer = client.post(path, content=chain, headers={"content-encoding": ", ".join([coding] * 30)})
        assert (answer.status_code, "names 30 codings" in answer.json()["error"]) == (415, True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_model_says_how_many_tensors_a_request_may_name(client):
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": ROW}
    many = client.post("/v2/models/tiny/infer", json={"inputs": [tensor] * 200})
    assert (many.status_code, many.json()) == (400, {"error": "the request has 200 inputs; model 'tiny' has: x"})
    many = client.post("/v2/models/tiny/infer", json={"inputs": [tensor] * 5000})
    assert many.status_code == 400
    assert "the maximum for this model is" in many.json()["error"]
    wanted = {"inputs": [tensor], "outputs": [{"name": "logits"}] * 200}
    many = client.post("/v2/models/tiny/infer", json=wanted)
    assert many.json() == {"error": "'outputs' has 200 entries; model 'tiny' has: logits"}


def test_names_are_cut_short_in_what_is_said_of_them(client):
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": ROW}
    long = "n" * 10_000
    answers = [
        client.post(f"/models/{long}/predict", json={}),
        client.post(f"/models/tiny/versions/{long}/predict", json={}),
        client.get(f"/v2/models/{long}"),
        client.get(f"/v2/models/tiny/versions/{long}"),
        client.get(f"/{long}"),
        client.post(FAST, json={long: 1}),
        client.post(f"{FAST}?{long}=1", json={"inputs": [ROW]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "name": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "model_name": long}),
        client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "datatype": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "outputs": [{"name": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "id": long}),
        client.post(FAST, content=BODY, headers={"content-type": long}),
        client.post(FAST, content=BODY, headers={"content-encoding": long}),
    ]
    assert [answer.status_code for answer in answers] == [404] * 5 + [400] * 7 + [415] * 2
    assert [answer.text for answer in answers if len(answer.text) > 400] == []


def test_long_paths_are_not_remembered(tiny_dir):
    from app.application import create_app

    service = create_app(Settings(model_dir=tiny_dir)).service
    before = len(service._targets)
    for index in range(50):
        assert service.target(f"/models/{'n' * 600}{index}/predict").name is not None
    assert len(service._targets) == before


@pytest.mark.parametrize("path", [SLOW, "/models/tiny/benchmark"])
@pytest.mark.parametrize("announced", [True, False])
def test_bodies_of_other_requests_are_small(tiny_dir, path, announced):
    with build.running(tiny_dir, model_control="explicit") as client:

        def pieces():
            for _ in range(40):
                yield b" " * 65536

        answer = client.post(path, content=b" " * 2_500_000 if announced else pieces())
        assert answer.status_code == 413
        assert answer.json() == {
            "error": "the body is larger than 1048576 bytes, the limit for requests other than inference"
        }
