"""The parser of requests: what it refuses, and how."""

import pytest
from helpers.raw_http import BODY, FAST, SLOW, answer, rest, wire

from app.config.limits import Limits
from app.http.connection.request_parser import RefusedRequestError, RequestParser


class Events:
    def __init__(self):
        self.calls = []

    def message_began(self):
        self.calls.append("began")

    def headers_received(self):
        self.calls.append("headers")

    def body_received(self, piece):
        self.calls.append(piece)

    def message_received(self):
        self.calls.append("whole")


def parse(*pieces, **limits):
    events = Events()
    parser = RequestParser(events, Limits(**limits))
    for piece in pieces:
        parser.feed(piece)
    return parser, events.calls


def request(*headers, version="1.1", method="POST"):
    return "\r\n".join([f"{method} /predict?a=b HTTP/{version}", *headers, "", ""]).encode()


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_request_is_found_however_it_is_cut(size):
    text = request("Host: x", "X-Name: Value", "Content-Length: 4") + b"body"
    parser, calls = parse(*(text[at : at + size] for at in range(0, len(text), size)))
    assert (parser.method, parser.url, parser.version) == (b"POST", b"/predict?a=b", "1.1")
    assert parser.headers == [(b"host", b"x"), (b"x-name", b"Value"), (b"content-length", b"4")]
    assert calls[:2] == ["began", "headers"]
    assert b"".join(calls[2:-1]) == b"body"
    assert calls[-1] == "whole"
    assert not parser.in_message


@pytest.mark.parametrize(
    ("headers", "version", "message"),
    [
        ((), "1.1", "the request has no Host headers; exactly 1 is required"),
        (("Host: a", "Host: b"), "1.1", "the request has 2 Host headers; exactly 1 is required"),
        (("Host: a", "HOST: a"), "1.1", "the request has 2 Host headers; exactly 1 is required"),
        (("Host: a", "Host: b"), "1.0", "the request has 2 Host headers; exactly 1 is required"),
        (("Host: a b",), "1.1", "the Host header is not valid"),
        (("Host: a/b",), "1.1", "the Host header is not valid"),
        (("Host: user@a",), "1.1", "the Host header is not valid"),
        (("Host: a, b",), "1.1", "the Host header is not valid"),
    ],
)
def test_a_request_needs_one_valid_host(headers, version, message):
    with pytest.raises(RefusedRequestError, match=message) as caught:
        parse(request(*headers, version=version))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("host", "version"),
    [("Host: a", "1.1"), ("Host:", "1.1"), ("Host: [::1]:8000", "1.1"), ("Host: a_b-c.d:80", "1.1"), ("X: y", "1.0")],
)
def test_other_hosts_are_taken(host, version):
    assert parse(request(host, version=version, method="GET"))[1] == ["began", "headers", "whole"]


@pytest.mark.parametrize("path", [FAST, SLOW])
@pytest.mark.parametrize("hosts", [[], ["Host: a", "Host: b"]])
def test_without_one_host_a_request_gets_400_and_its_connection_is_closed(client, path, hosts):
    with wire(client) as sock:
        lines = [f"POST {path} HTTP/1.1", *hosts, f"Content-Length: {len(BODY)}", "", ""]
        sock.sendall("\r\n".join(lines).encode() + BODY)
        status, headers, document = answer(rest(sock))
    assert (status, headers["connection"]) == (400, "close")
    assert document["error"].endswith("Host headers; exactly 1 is required")


def test_a_length_that_contradicts_is_no_http():
    with pytest.raises(RefusedRequestError, match="the request is not valid HTTP") as caught:
        parse(request("Host: x", "Content-Length: 3", "Content-Length: 4"))
    assert caught.value.status == 400


def test_headers_over_the_limit_are_refused_whole_or_not():
    for text in (request("Host: x", "X: " + "a" * 2000), request("Host: x", "X: " + "a" * 2000)[:-2]):
        with pytest.raises(RefusedRequestError, match=r"longer than max_header_bytes \(1024\)") as caught:
            parse(*(text[at : at + 100] for at in range(0, len(text), 100)), max_header_bytes=1024)
        assert caught.value.status == 431


def test_a_defect_of_the_events_is_logged_and_answered(caplog):
    events = Events()
    events.headers_received = lambda: 1 / 0
    with pytest.raises(RefusedRequestError, match="not valid HTTP"):
        RequestParser(events, Limits()).feed(request("Host: x", method="GET"))
    assert "ZeroDivisionError" in caplog.text
