"""Checksums of files in remote stores: MD5, CRC-32C and SHA-256."""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
_MD5_HEX = re.compile(r'"?([0-9a-f]{32})"?\Z')


@dataclass(frozen=True)
class Checksum:
    """A store's checksum of a file.

    Attributes:
        kind: ``md5``, ``sha256`` or ``crc32c``.
        value: Hexadecimal digits.
    """

    kind: str
    value: str

    def of_file(self, path: Path) -> str:
        """Compute the checksum of this kind for a file."""
        counted = _crc32c() if self.kind == "crc32c" else hashlib.new(self.kind, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                counted.update(block)
        return str(counted.digest().hex())


def checksum_of(scheme: str, info: Mapping[str, Any], bucket: str) -> Checksum | None:
    """The checksum of an object in a listing; None if there is none.

    Args:
        scheme: ``s3``, ``gs`` or ``az``.
        info: Description of the object by its fsspec file system.
        bucket: Bucket of the object.
    """
    if scheme == "s3":
        # Only for an upload in one part, and not in directory buckets. See https://docs.aws.amazon.com, "ETag".
        match = _MD5_HEX.match(str(info.get("ETag", "")))
        return Checksum("md5", match[1]) if match and not bucket.endswith("--x-s3") else None
    if scheme == "gs":
        md5, crc = _from_base64(info.get("md5Hash")), _from_base64(info.get("crc32c"))
        if md5 is not None:
            return Checksum("md5", md5)
        return None if crc is None else Checksum("crc32c", crc)
    content_md5 = (info.get("content_settings") or {}).get("content_md5")
    if isinstance(content_md5, bytes | bytearray) and content_md5:
        return Checksum("md5", bytes(content_md5).hex())
    return None


def _from_base64(value: Any) -> str | None:
    try:
        return base64.b64decode(value, validate=True).hex() or None if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None


def _crc32c() -> Any:
    import google_crc32c  # a dependency of gcsfs, the only store with such checksums

    return google_crc32c.Checksum()
