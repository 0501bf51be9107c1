"""Clients that offer to go on by another protocol, as Java's does with each request, are answered by HTTP/1.1."""

import json

import pytest
from helpers.raw_http import BODY, FAST, SLOW, answer, head, rest, wire

OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
SOCKET = ("Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13")
LAST = (OFFER[0] + ", close", *OFFER[1:])


def chunked(body):
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def asked(client, *pieces):
    with wire(client) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return rest(sock)


@pytest.mark.parametrize("path", [FAST, SLOW])
@pytest.mark.parametrize("offer", [LAST, (*SOCKET, "Connection: close")])
def test_a_body_behind_an_offer_is_read(client, path, offer):
    body = BODY if path == FAST else b'{"ready": true}'
    expected = asked(client, head(path, "Connection: close", length=len(body)) + body)
    found = asked(client, head(path, *offer, length=len(body)) + body)
    assert answer(found)[::2] == answer(expected)[::2]
    assert answer(asked(client, head(path, *offer, "Transfer-Encoding: chunked") + chunked(body)))[0] == 200


@pytest.mark.parametrize("size", [1, 7, 100])
def test_however_it_is_cut(client, size):
    whole = head(FAST, *LAST, length=len(BODY)) + BODY
    assert answer(asked(client, *(whole[at : at + size] for at in range(0, len(whole), size))))[0] == 200


def test_a_long_body_behind_an_offer_is_read(client):
    row = json.loads(BODY)["inputs"][0]
    body = json.dumps({"inputs": [row] * 5000}).encode()
    status, _, document = answer(asked(client, head(FAST, *LAST, length=len(body)) + body))
    assert (status, len(document["outputs"]["logits"])) == (200, 5000)


def test_the_connection_goes_on_behind_it_and_many_may_be_pipelined(client):
    one = head(FAST, *OFFER, length=len(BODY)) + BODY
    plain = head(FAST, length=len(BODY)) + BODY
    last = head(SLOW, *LAST, length=2) + b"{}"
    data = asked(client, one * 150 + plain + one + last)
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 153
    assert data.count(b'"model":"tiny"') == 152
    assert data.endswith(b"]")


def test_limits_hold_behind_an_offer_too(client):
    assert answer(asked(client, head(FAST, *OFFER, length=1 << 40)))[0] == 413
    long = [f"X-{i}: {'a' * 1000}" for i in range(40)]
    assert answer(asked(client, head(FAST, *OFFER, *long, length=2)))[0] == 431
    assert asked(client, head(FAST, *OFFER, "Transfer-Encoding: chunked") + b"zz\r\n").startswith(b"HTTP/1.1 400 ")
    assert answer(asked(client, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 400


def test_a_client_that_waits_behind_its_offer_is_told_to_go_on(client):
    with wire(client) as sock:
        sock.sendall(head(FAST, *LAST, "Expect: 100-continue", length=len(BODY)))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert answer(rest(sock))[0] == 200
