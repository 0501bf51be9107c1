import pytest

from panther_client.errors import InvalidRequestError
from panther_client.url import ServerUrl


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ServerUrl("127.0.0.1:8000", grpc=False, secure=False)),
        ("https://me:key@example.org/prefix", ServerUrl("me:key@example.org", grpc=False, secure=True)),
        ("grpc://[::1]:8001", ServerUrl("[::1]:8001", grpc=True, secure=False)),
        ("grpcs://example.org:443/", ServerUrl("example.org:443", grpc=True, secure=True)),
    ],
)
def test_the_scheme_chooses_the_protocol(url, expected):
    assert ServerUrl.of(url) == expected


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("127.0.0.1:8000", "must be http://, https://, grpc://, grpcs:// and a host"),
        ("ftp://example.org", "must be http://"),
        ("http://", "and a host"),
        ("http://example.org?x=1", "and a host"),
        ("grpc://example.org", "must be grpc://HOST:PORT only"),
        ("grpc://example.org:8001/path", "must be grpc://HOST:PORT only"),
        ("grpc://me:SECRET@example.org:8001", r"url 'grpc://\*\*\*@example.org:8001' must be grpc://HOST:PORT only"),
        ("http://example.org:99999", "is not valid: Port out of range"),
        ("http://[::1", "is not valid"),
    ],
)
def test_a_wrong_url_is_refused_with_its_rule(url, rule):
    with pytest.raises(InvalidRequestError, match=rule) as raised:
        ServerUrl.of(url)
    assert "SECRET" not in str(raised.value)
