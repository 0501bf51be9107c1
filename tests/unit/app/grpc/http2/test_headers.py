"""Headers of calls are read by gRPC's protocol, and those of answers are as it wants them."""

from urllib.parse import unquote

import pytest

from app.errors import InvalidRequestError, OverloadedError, UnsupportedMediaTypeError
from app.grpc.http2 import headers
from app.grpc.http2.headers import failure, refused_by_http
from app.grpc.status import StatusError

CALL = (
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b"content-type", b"application/grpc"),
)  # fmt: skip


def read(fields, limit):
    return headers.read(fields, dict(fields), limit)


def test_known_headers_are_kept_and_others_are_not():
    given = read((*CALL, (b"x-api-key", b"k"), (b"user-agent", b"u"), (b"accept-encoding", b"gzip")), 10_000)
    assert given == ("/s/m", {b"x-api-key": b"k"}, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"3H", 10800), (b"2M", 120), (b"7S", 7), (b"250m", 0.25), (b"99999999u", 99.999999), (b"5n", 5e-9), (b"0S", 0)],
)
def test_timeouts(text, seconds):
    assert read((*CALL, (b"grpc-timeout", text)), 10_000).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"3", b"S", b"3s", b"-3S", b"123456789S", b"3S ", b"1.5S", "٣S".encode()])
def test_what_is_no_timeout_is_told(text):
    with pytest.raises(InvalidRequestError, match=r"grpc-timeout is '.*'; expected 1 to 8 digits and one of H, M, S"):
        read((*CALL, (b"grpc-timeout", text)), 10_000)


def test_encodings():
    assert read((*CALL, (b"grpc-encoding", b"gzip")), 10_000).coding() == b"gzip"
    assert read((*CALL, (b"grpc-encoding", b"identity")), 10_000).encoding is None
    with pytest.raises(
        UnsupportedMediaTypeError, match="grpc-encoding is 'snappy'; known: identity, deflate, gzip"
    ) as e:
        read((*CALL, (b"grpc-encoding", b"snappy")), 10_000)
    told = dict(failure([], e.value))
    assert (told[b"grpc-status"], told[b"grpc-accept-encoding"]) == (b"12", b"identity,deflate,gzip")
    with pytest.raises(StatusError, match="flagged as compressed, and the call names no grpc-encoding"):
        read(CALL, 10_000).coding()


def test_metadata_over_the_limit_is_told():
    size = sum(len(name) + len(value) + 32 for name, value in CALL)
    read(CALL, size)
    with pytest.raises(StatusError, match=rf"has {size} bytes, more than max_header_bytes \({size - 1}\)") as found:
        read(CALL, size - 1)
    assert found.value.code.name == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("method", "kind", "status"),
    [
        (b"POST", b"application/grpc", None),
        (b"POST", b"application/grpc+proto", None),
        (b"POST", b"application/grpc;x=y", None),
        (b"POST", b"application/grpc-web", b"415"),
        (b"POST", b"text/html", b"415"),
        (b"GET", b"application/grpc", b"405"),
    ],
)
def test_what_is_no_call_gets_a_status_of_http(method, kind, status):
    assert refused_by_http({b":method": method, b"content-type": kind}) == status


def test_a_request_without_a_content_type_is_no_call():
    assert refused_by_http(dict(CALL[:3])) == b"415"


def test_the_details_of_an_error_travel_as_ascii():
    text = "é 100% \n 'a' ~\x7f ∞"
    found = dict(failure([(b"x-request-id", b"a")], OverloadedError(text, wait_s=2)))
    assert unquote(found[b"grpc-message"].decode("ascii")) == text
    assert found[b"grpc-message"].startswith(b"%C3%A9 100%25 %0A 'a' ~%7F")
    assert (found[b"grpc-status"], found[b"x-request-id"], found[b"retry-after"]) == (b"8", b"a", b"2")
