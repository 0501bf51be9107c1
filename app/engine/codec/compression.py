"""gzip and deflate for requests and responses, within a bound."""

import zlib

from app.engine.codec import Body
from app.engine.codec.preferences import preferences
from app.errors import BodyTooLargeError, InvalidRequestError, UnsupportedMediaTypeError

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
MAX_CODINGS = 2
"""Maximum number of content codings; each may cost as much as decompressing max_body_bytes."""
MAX_RATIO = 250
"""Maximum compression ratio: JSON numbers reach 3, rows of zeros 100; a higher ratio indicates an attack."""
_FREE_BYTES = 4 * 1024 * 1024
_MOST_MEMBERS = 16
_LEVEL = 1  # tensors hardly compress; a higher level would cost more than it saves


def decompress_short(body: Body, encoding: bytes, most: int, limit: int) -> Body | None:
    """Undo a Content-Encoding of at most ``most`` decompressed bytes; None if there are more.

    Raises:
        BodyTooLargeError: The decompressed body exceeds ``limit`` bytes.
        InvalidRequestError, UnsupportedMediaTypeError: See ``decompress``.
    """
    if most >= limit:
        return decompress(body, encoding, limit)
    try:
        return decompress(body, encoding, most)
    except BodyTooLargeError:
        return None


def decompress(body: Body, encoding: bytes, limit: int) -> Body:
    """Undo a Content-Encoding.

    Raises:
        BodyTooLargeError: The decompressed body exceeds ``limit`` bytes.
        InvalidRequestError: The data is corrupt.
        UnsupportedMediaTypeError: The encoding is not supported.
    """
    names = [name.strip() for name in encoding.lower().split(b",")]
    codings = [name for name in names if name not in (b"", b"identity")]
    if len(codings) > MAX_CODINGS:
        raise UnsupportedMediaTypeError(
            f"content-encoding names {len(codings)} codings; at most {MAX_CODINGS} are supported"
        )
    for coding in reversed(codings):
        if coding not in (b"gzip", b"x-gzip", b"deflate"):
            shown = coding.decode("latin-1")[:40]
            raise UnsupportedMediaTypeError(
                f"content-encoding {shown!r} is not supported; known: gzip, deflate, identity"
            )
        body = _inflate(body, coding, limit)
    return body


def _inflate(body: Body, coding: bytes, limit: int) -> bytes:
    # By the standard deflate is zlib's format, but some clients send the raw format.
    bare = coding == b"deflate" and not (len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0)
    plain, rest = b"", bytes(body)
    try:
        for _ in range(_MOST_MEMBERS):
            stream = zlib.decompressobj(-zlib.MAX_WBITS if bare else _GZIP_OR_ZLIB)
            part = stream.decompress(rest, limit - len(plain) + 1)
            plain = plain + part if plain else part
            if len(plain) > limit:
                raise BodyTooLargeError(f"the decompressed body is larger than max_body_bytes ({limit})")
            if len(plain) > _FREE_BYTES and len(plain) > MAX_RATIO * len(body):
                raise BodyTooLargeError(
                    f"the body decompresses to more than {MAX_RATIO} times its {len(body)} bytes; send it uncompressed"
                )
            if not stream.eof:
                raise InvalidRequestError(f"the body is not valid {coding.decode()}: it ends too early")
            rest = stream.unused_data
            if not rest:
                return plain
            if coding == b"deflate":  # a gzip file may have several members, one after the other
                break
    except zlib.error as error:
        raise InvalidRequestError(f"the body is not valid {coding.decode()}: {error}") from None
    raise InvalidRequestError(f"the body is not valid {coding.decode()}: {len(rest)} bytes follow its end")


def accepted(header: bytes) -> bytes | None:
    """The coding of the response: the preferred one of gzip and deflate, or None if neither is accepted."""
    best: tuple[float, bytes] | None = None
    for coding, quality in preferences(header):
        if coding in (b"gzip", b"deflate") and quality > 0 and (best is None or quality > best[0]):
            best = (quality, coding)
    return None if best is None else best[1]


def compress(body: bytes, coding: bytes) -> bytes:
    """Apply gzip or deflate."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | (16 if coding == b"gzip" else 0))
    return stream.compress(body) + stream.flush()
