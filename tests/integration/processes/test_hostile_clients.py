"""Clients that mean harm, or behave as if: each gets a clear 4xx or a closed connection, and others notice nothing."""

import contextlib
import gzip
import json
import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import processes

QUICK_S = 20  # generous: milliseconds on a quiet machine
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    processes.put(root, processes.linear(7.0), "m", 1)
    with processes.running(root, "--max-body-bytes", 8 * MIB) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(server):
    """Others are served as before, quickly, and memory is where it was."""
    assert server.value() == 7.0
    before = server.resident_bytes()
    yield
    began = time.monotonic()
    assert server.value() == 7.0
    assert server.ask("GET", "/health/live").status_code == 200
    assert time.monotonic() - began < QUICK_S
    assert server.resident_bytes() < before + 64 * MIB
    assert "Traceback" not in server.log


class Raw:
    """A socket that sends what no library would."""

    def __init__(self, server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may be refused before its end
            self.socket.sendall(data)

    def status(self):
        """Of the answer; 0 where the connection was closed without one."""
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                piece = self.socket.recv(65536)
                if not piece:
                    return 0
                data += piece
        except ConnectionResetError:
            return 0
        return int(data.split(b" ", 2)[1])


def head(path="/models/m/predict", *fields, length=None, method="POST"):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *fields]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Length: 10", "Content-Length: 11"],
        ["Content-Length: -1"],
        ["Content-Length: 1e3"],
        ["Content-Length: 99999999999999999999999999"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, identity"],
    ],
)
def test_lengths_that_contradict_or_are_none(server, fields):
    with Raw(server) as raw:
        raw.send(head("/models/m/predict", *fields) + b"0\r\n\r\n")
        assert raw.status() in {400, 413, 0}


@pytest.mark.parametrize("length", [10**9, 2**31, 2**63 - 1])
@pytest.mark.parametrize("path", ["/models/m/predict", "/v2/models/m/infer", "/v2/repository/index"])
def test_a_claim_of_gigabytes_is_refused_before_any_of_it_is_read(server, path, length):
    with Raw(server) as raw:
        raw.send(head(path, length=length))
        assert raw.status() == 413


def test_claims_just_under_the_limit_take_no_memory_until_something_comes(server):
    raws = [Raw(server) for _ in range(100)]
    for raw in raws:
        raw.send(head(length=8 * MIB) + b"[")
    time.sleep(0.2)
    assert server.value() == 7.0
    for raw in raws:
        raw.socket.close()


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"inputs": ' + b'{"a":' * 100_000,
        b"[" * 5_000_000,
        b'{"inputs": [[' + b"9" * 1_000_000 + b",0,0,0,0,0]]}",
        b'{"inputs": [[1e999,0,0,0,0,0]]}',
        b'{"inputs": [[-1e999,0,0,0,0,0]]}',
        b'{"inputs": [[1' + b"0" * 400 + b",0,0,0,0,0]]}",
        b'{"inputs": [["\xff\xfe",0,0,0,0,0]]}',
        b'{"inputs": [["\\ud800",0,0,0,0,0]]}',
        b'\xef\xbb\xbf{"inputs": [[0,0,0,0,0]]}',
        b'{"inputs": [[0,0,0,0,0,0]]}}',
        b'{"inputs": [[0,0,0,0,0,0]]} x',
        b'{"inputs": [[NaN,0,0,0,0,0]]}',
        b'{"' + b"k" * 1_000_000 + b'": 1}',
        b'{"inputs": [' + b"[]," * 500_000 + b"[]]}",
        b"\x00" * 1000,
    ],
    ids=lambda body: body[:24].decode("latin-1") + f"… {len(body)}",
)
@pytest.mark.parametrize("path", ["/models/m/predict", "/v2/models/m/infer"])
def test_json_made_to_hurt(server, path, body):
    began = time.monotonic()
    answer = server.ask("POST", path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert len(answer.content) < 2000
    assert time.monotonic() - began < QUICK_S


def test_of_keys_given_twice_the_message_or_the_answer_is_well_defined(server):
    body = b'{"inputs": [[0,0,0,0,0,0]], "inputs": [[1,2,3]]}'
    answer = server.ask("POST", "/models/m/predict", content=body)
    assert answer.status_code in {200, 400}
    again = server.ask("POST", "/models/m/predict", content=body)
    assert (again.status_code, again.json()) == (answer.status_code, answer.json())


def tensor(**changes):
    return {"name": "x", "shape": [1, 6], "datatype": "FP32", **changes}


@pytest.mark.parametrize(
    "item",
    [
        tensor(shape=[2**31, 2**31], data=[0.0]),
        tensor(shape=[2**62, 4], data=[0.0]),
        tensor(shape=[10**30, 6], data=[0.0]),
        tensor(shape=[-1, 6], data=[0.0] * 6),
        tensor(shape=[0, 6], data=[1.0]),
        tensor(shape=[1.5, 6], data=[0.0] * 6),
        tensor(shape=[True, 6], data=[0.0] * 6),
        tensor(shape=[1] * 1000, data=[0.0]),
        tensor(shape="16", data=[0.0] * 6),
        tensor(data=[0.0] * 6, parameters={"binary_data_size": 24}),
        tensor(parameters={"binary_data_size": 24}),
        tensor(parameters={"binary_data_size": -24}),
        tensor(parameters={"binary_data_size": 2**70}),
        tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 24}),
        tensor(name="x" * 1_000_000, data=[0.0] * 6),
        tensor(datatype="FP32" * 100_000, data=[0.0] * 6),
    ],
    ids=lambda item: json.dumps(item)[:60],
)
def test_tensors_that_lie(server, item):
    answer = server.ask("POST", "/v2/models/m/infer", json={"inputs": [item]})
    assert answer.status_code == 400, answer.text
    assert len(answer.content) < 2000


@pytest.mark.parametrize("said", ["0", "1", "99", "-1", "4294967296", "1e2", "x", "", "9" * 400])
def test_a_length_of_the_json_part_that_lies(server, said):
    x = np.zeros((1, 6), np.float32)
    document = json.dumps({"inputs": [tensor(parameters={"binary_data_size": x.nbytes})]}).encode()
    answer = server.ask(
        "POST",
        "/v2/models/m/infer",
        content=document + x.tobytes(),
        headers={"Inference-Header-Content-Length": said},
    )
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("size", [0, 23, 25, 48, 2**40])
def test_a_size_of_a_binary_tensor_that_lies(server, size):
    document = json.dumps({"inputs": [tensor(parameters={"binary_data_size": size})]}).encode()
    answer = server.ask(
        "POST",
        "/v2/models/m/infer",
        content=document + b"\0" * 24,
        headers={"Inference-Header-Content-Length": str(len(document))},
    )
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_in_gzip(server, layers):
    bomb = b"0" * (200 * MIB)
    for _ in range(layers):
        bomb = gzip.compress(bomb, 1)
    coding = ", ".join(["gzip"] * layers)
    answer = server.ask("POST", "/models/m/predict", content=bomb, headers={"content-encoding": coding})
    assert answer.status_code in {413, 415}


def test_half_a_body_and_then_silence_or_an_end(server):
    body = json.dumps({"inputs": [[0] * 6]}).encode()
    with Raw(server) as silent, Raw(server) as ended:
        silent.send(head(length=len(body)) + body[:10])
        ended.send(head(length=len(body)) + body[:10])
        ended.socket.shutdown(socket.SHUT_WR)
        assert ended.status() in {400, 0}
        assert server.value() == 7.0


def test_a_thousand_pipelined_requests_are_all_answered_in_order(server):
    body = json.dumps({"inputs": [[0] * 6]}).encode()
    with Raw(server) as raw:
        stream = b"".join(
            head("/models/m/predict", f"X-Request-ID: {number}", length=len(body)) + body for number in range(1000)
        )
        raw.send(stream)
        data = b""
        while data.count(b"HTTP/1.1 200") < 1000:
            piece = raw.socket.recv(1 << 20)
            assert piece, data[-500:]
            data += piece
    assert re.findall(rb"x-request-id: (\d+)", data) == [b"%d" % number for number in range(1000)]


@pytest.mark.parametrize(
    "path",
    [
        "/models/../../etc/passwd/predict",
        "/models/%2e%2e%2f%2e%2e%2fetc/predict",
        "/models/m/versions/..%2f1/predict",
        "/models/m%00/predict",
        "/models/" + "m" * 5000 + "/predict",
        "/v2/models/m/versions/99999999999999999999999999/infer",
        "/v2/models/%ff%fe/infer",
    ],
)
def test_names_that_lead_elsewhere(server, path):
    with Raw(server) as raw:
        raw.send(head(path, length=2) + b"{}")
        assert raw.status() in {400, 404, 414, 431}


def test_a_thousand_idle_connections_harm_nobody(server):
    idle = [Raw(server) for _ in range(1000)]
    body = json.dumps({"inputs": [[0] * 6]}).encode()
    for number, raw in enumerate(idle):
        raw.send(head(length=len(body))[: number % 40])
    for _ in range(20):
        assert server.value() == 7.0
    for raw in idle:
        raw.socket.close()
    deadline = time.monotonic() + 60
    files = Path(f"/proc/{server.process.pid}/fd")
    while len(list(files.iterdir())) > 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
