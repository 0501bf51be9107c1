"""Requests and responses of a megabyte in binary tensors: right, whoever reads slowly, pipelines or leaves."""

import gzip
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from helpers import raw_http
from helpers.build import onnx_model
from onnx import TensorProto, helper, numpy_helper

WIDTH = 4096


@pytest.fixture(params=[0, 3], ids=["loop", "threads"])
def adding(serve, request):
    """A server of y = x + 1, whose long bodies are copied by the event loop or by threads."""
    model = onnx_model(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", WIDTH])],
        [("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    return serve(model, body_threads=request.param)


def asked(x, *, binary=True, path="/v2/models/m/infer"):
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    text = json.dumps({"inputs": [item], "parameters": {"binary_data_output": binary}}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return path, headers, text + x.tobytes()


def wired(x):
    path, headers, body = asked(x)
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def of(seed, rows=64):
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def read(headers, body):
    length = int({name.lower(): value for name, value in headers.items()}["inference-header-content-length"])
    return np.frombuffer(body, np.float32, offset=length).reshape(-1, WIDTH)


def received(sock, pause_s=0.0):
    """One response from a socket, read in pieces with pauses."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1000)
    top, _, body = data.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    assert lines[0].split()[1] == "200", top
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    pieces, left = [body], int(headers["content-length"]) - len(body)
    while left:
        time.sleep(pause_s)
        piece = sock.recv(min(left, 1 << 16))
        assert piece
        pieces.append(piece)
        left -= len(piece)
    return read(headers, b"".join(pieces))


def test_many_clients_get_their_own_rows(adding):
    def ask(seed):
        x = of(seed, rows=1 + seed % 80)
        with httpx.Client(base_url=adding.base_url, timeout=60) as client:
            for _ in range(4):  # the same buffers again
                path, headers, body = asked(x)
                answer = client.post(path, content=body, headers=headers)
                np.testing.assert_array_equal(read(answer.headers, answer.content), x + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


def test_a_client_that_reads_slowly_gets_all_of_it(adding):
    with raw_http.wire(adding, 4096) as sock:
        for seed in range(2):
            sock.sendall(wired(of(seed, 128)))
            for other in range(3):
                path, headers, body = asked(of(other))
                answer = adding.post(path, content=body, headers=headers)
                np.testing.assert_array_equal(read(answer.headers, answer.content), of(other) + 1)
            np.testing.assert_array_equal(received(sock, 0.001), of(seed, 128) + 1)


def test_a_client_that_sends_slowly_is_answered(adding):
    with raw_http.wire(adding) as sock:
        for seed in range(3):
            data = wired(of(seed))
            for at in range(0, len(data), 1 << 18):
                sock.sendall(data[at : at + (1 << 18)])
                time.sleep(0.02)
            np.testing.assert_array_equal(received(sock), of(seed) + 1)


def test_pipelined_requests_are_answered_in_order(adding):
    with raw_http.wire(adding) as sock, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sock.sendall, b"".join(wired(of(seed)) for seed in range(6)))
        for seed in range(6):
            np.testing.assert_array_equal(received(sock), of(seed) + 1)
        sending.result()


def test_long_answers_are_compressed_and_written_as_json_where_that_is_asked_for(adding):
    x = np.ones((64, WIDTH), np.float32)
    path, headers, body = asked(x)
    answer = adding.post(path, content=body, headers={**headers, "accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert len(gzip.compress(body, 1)) < len(body)
    np.testing.assert_array_equal(read(answer.headers, answer.content), x + 1)
    path, headers, body = asked(x, binary=False)
    (output,) = adding.post(path, content=body, headers=headers).json()["outputs"]
    np.testing.assert_array_equal(np.array(output["data"]).reshape(x.shape), x + 1)


def test_a_request_in_chunks_takes_the_other_way_and_is_answered_alike(adding):
    x = of(1)
    path, headers, body = asked(x)
    answer = adding.post(path, content=(body[at : at + 70_000] for at in range(0, len(body), 70_000)), headers=headers)
    np.testing.assert_array_equal(read(answer.headers, answer.content), x + 1)


@pytest.mark.parametrize("part", ["header", "half", "all"])
def test_clients_that_leave_free_what_they_hold(adding, part):
    data = wired(of(0))
    cut = {"header": 400, "half": len(data) // 2, "all": len(data)}[part]
    for _ in range(8):
        with raw_http.wire(adding) as sock:
            sock.sendall(data[:cut])
    for seed in range(4):
        path, headers, body = asked(of(seed))
        answer = adding.post(path, content=body, headers=headers)
        np.testing.assert_array_equal(read(answer.headers, answer.content), of(seed) + 1)
    with raw_http.wire(adding) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
