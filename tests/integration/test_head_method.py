"""``HEAD`` is answered as ``GET`` is, without the body: monitors and ``curl --head`` ask so."""

import pytest
from helpers.raw_http import rest, wire


def asked(method, path, *, last):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(["Connection: close"] if last else []), "", ""]
    return "\r\n".join(lines).encode()


def top(data):
    lines = data.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    return [line for line in lines if not line.startswith(("date", "x-request-id", "connection"))]


@pytest.mark.parametrize(
    "path", ["/", "/health/live", "/health/ready", "/v2", "/models", "/openapi.json", "/nowhere", "/predict"]
)
def test_it_is_answered_without_the_body(client, path):
    with wire(client) as sock:
        sock.sendall(asked("GET", path, last=True))
        expected = rest(sock)
    with wire(client) as sock:
        sock.sendall(asked("HEAD", path, last=False) + asked("HEAD", path, last=True))
        found = rest(sock)
    first, second, nothing = found.split(b"\r\n\r\n")
    assert top(first) == top(second) == top(expected)
    assert not nothing
    assert expected.partition(b"\r\n\r\n")[2]


def test_what_changes_something_is_not_done(client):
    with wire(client) as sock:
        sock.sendall(asked("HEAD", "/v2/repository/models/tiny/unload", last=True))
        assert top(rest(sock))[0].startswith("http/1.1 405")
    assert client.get("/health/ready").status_code == 200
