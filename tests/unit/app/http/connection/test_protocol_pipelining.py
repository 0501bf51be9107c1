"""What comes behind a request that is still being answered never takes its answer."""

import json
import time

import pytest
from helpers.build import put, running, slow_graph
from helpers.raw_http import head, rest, wire

SLOW_BODY = json.dumps({"inputs": [0.5] * 2}).encode()
SLOW = head("/predict", length=len(SLOW_BODY)) + SLOW_BODY
QUICK = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
REFUSED = {
    "garbage": (b"this is no HTTP\r\n\r\n", 400),
    "a byte": (b"\x00", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a bad chunk": (head("/predict", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
    "a bad chunk for the application": (head("/v2/repository/index", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
    "long headers": (head("/predict", "X-Long: " + "a" * 40_000), 431),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    put(root, slow_graph(), "m")
    with running(root, num_threads=1, body_timeout_s=0.3) as client:
        yield client


def statuses(data):
    return [int(part.split(b" ", 1)[0]) for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("behind", "status"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("before", [SLOW, SLOW + SLOW, QUICK + SLOW, SLOW + QUICK, SLOW + QUICK + SLOW])
def test_earlier_requests_are_answered_before_what_is_refused(client, before, behind, status, apart):
    with wire(client) as sock:
        if apart:
            sock.sendall(before)
            time.sleep(0.01)
            sock.sendall(behind)
        else:
            sock.sendall(before + behind)
        data = rest(sock)
    count = before.count(b" HTTP/1.1\r\n")
    assert statuses(data) == [200] * count + [status], data
    assert data.count(b"connection: close") == 1


def test_a_body_that_stops_behind_a_request_does_not_take_its_answer(client):
    with wire(client) as sock:
        sock.sendall(SLOW * 3 + head("/v2/repository/index", length=100) + b"{")
        assert statuses(rest(sock)) == [200, 200, 200, 408]


def test_nothing_is_read_behind_what_is_refused(client):
    before = client.get("/stats").json()["models"][0]["live"]["requests"]
    with wire(client) as sock:
        sock.sendall(SLOW + b"garbage\r\n\r\n" + SLOW * 50)
        data = rest(sock).replace(b"<reset>", b"")
    assert statuses(data)[:1] == [200]
    assert client.get("/stats").json()["models"][0]["live"]["requests"] == before + 1
