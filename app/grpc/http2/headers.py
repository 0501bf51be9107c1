"""Request headers, response headers and trailers of gRPC over HTTP/2."""

import re
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

import grpc

from app.engine.codec import HeaderList, Headers
from app.errors import AppError, InvalidRequestError, UnsupportedMediaTypeError
from app.grpc.status import READ, StatusError, code_of, details_of, trailing

_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_READ = tuple(name.encode() for name in READ)
_FIELD_BYTES = 32  # that HTTP/2 counts for each field besides its name and value
_ENCODINGS = (b"gzip", b"deflate")
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")

RESPONSE: HeaderList = [(b":status", b"200"), (b"content-type", b"application/grpc")]
SUCCESS = (b"grpc-status", b"0")
_ACCEPTED = (b"grpc-accept-encoding", b"identity,deflate,gzip")

Fields = tuple[tuple[bytes, bytes], ...]


class CallHeaders(NamedTuple):
    """Parsed headers of a call.

    Attributes:
        path: Path of the method.
        known: Headers that the service reads.
        timeout_s: Seconds until the deadline; None without one.
        encoding: Encoding of compressed messages; None if the call names none.
    """

    path: str
    known: Headers
    timeout_s: float | None
    encoding: bytes | None

    def coding(self) -> bytes:
        """The encoding of a compressed message.

        Raises:
            StatusError: The call names none.
        """
        if self.encoding is None:
            said = "a message is flagged as compressed, and the call names no grpc-encoding"
            raise StatusError(grpc.StatusCode.INTERNAL, said)
        return self.encoding


def refused_by_http(given: Headers) -> bytes | None:
    """HTTP status for a request that is not a gRPC call; None for a gRPC call."""
    if given.get(b":method") != b"POST":
        return b"405"
    kind = given.get(b"content-type", b"")
    if not kind.startswith(b"application/grpc") or kind[16:17] not in (b"", b"+", b";"):
        return b"415"
    return None


def read(fields: Fields, given: Headers, max_bytes: int) -> CallHeaders:
    """Read the headers of a call.

    Args:
        fields: Header fields as received, including pseudo-headers.
        given: The same fields by name.
        max_bytes: Limit of their size.

    Raises:
        InvalidRequestError: The timeout is invalid.
        StatusError: The headers are too long.
        UnsupportedMediaTypeError: The encoding is unknown.
    """
    size = _FIELD_BYTES * len(fields) + sum(map(len, chain.from_iterable(fields)))
    if size > max_bytes:
        raise StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the metadata has {size} bytes, more than max_header_bytes ({max_bytes})",
        )
    encoding = given.get(b"grpc-encoding")
    if encoding is not None and encoding not in _ENCODINGS:
        if encoding != b"identity":
            shown = encoding[:40].decode("latin-1")
            raise UnsupportedMediaTypeError(f"grpc-encoding is {shown!r}; known: identity, deflate, gzip")
        encoding = None
    timeout = given.get(b"grpc-timeout")
    return CallHeaders(
        given[b":path"].decode("latin-1"),
        {name: given[name] for name in _READ if name in given},
        None if timeout is None else _seconds(timeout),
        encoding,
    )


def _seconds(timeout: bytes) -> float:
    match = _TIMEOUT.match(timeout)
    if match is None:
        shown = timeout[:40].decode("latin-1")
        raise InvalidRequestError(f"grpc-timeout is {shown!r}; expected 1 to 8 digits and one of H, M, S, m, u, n")
    return int(match[1]) * _UNITS_S[match[2]]


def failure(headers: HeaderList, error: AppError) -> HeaderList:
    """The trailing metadata of a call that fails.

    Args:
        headers: Headers of the outcome.
        error: Error of the outcome.
    """
    found: HeaderList = [
        (b"grpc-status", b"%d" % code_of(error).value[0]),
        (b"grpc-message", quote(details_of(error), safe=_PRINTABLE).encode()),
    ]
    found += [(name.encode(), value.encode("latin-1")) for name, value in trailing(headers, error)]
    if isinstance(error, UnsupportedMediaTypeError):
        found.append(_ACCEPTED)
    return found
