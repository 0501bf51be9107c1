"""Remote model repositories: object stores, which list their objects, and web servers with a ``SHA256SUMS``.

See docs/decisions/0076-models-by-url.md.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.config.model_url import ModelUrl
from app.errors import shortened
from app.repository.remote.checksums import Checksum, checksum_of
from app.repository.remote.errors import RemoteError
from app.repository.remote.extra import require_extra

MANIFEST = "SHA256SUMS"
MOST_MANIFEST_BYTES = 16 * 1024 * 1024
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)\Z")
_CONNECT_S, _READ_S = 15, 60
_TOKENS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime")
_LOGGERS = ("adlfs", "aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")
Received = Callable[[int], None]
"""Called with the number of received bytes; an exception aborts the download."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a remote repository.

    Attributes:
        size: Size in bytes; None if unknown before the download.
        token: Changes with the content.
        checksum: Checksum of the content; None if the store has none.
    """

    size: int | None
    token: str
    checksum: Checksum | None = None


class Store(ABC):
    """A remote model repository.

    Args:
        url: URL of the repository.

    Raises:
        MissingExtraError: The packages for its scheme are not installed.
    """

    def __init__(self, url: ModelUrl) -> None:
        require_extra(url)
        self.url = url

    @abstractmethod
    def files(self, scratch: Path) -> dict[str, RemoteFile]:
        """Every file below the URL, by relative path; paths are not validated.

        Args:
            scratch: A temporary file for the listing.

        Raises:
            Exception: An error of the store's library; or RemoteError for an invalid listing.
        """

    @abstractmethod
    def download(self, path: str, target: Path, received: Received) -> None:
        """Write a file of the listing to ``target``; raises the same exceptions as ``files``."""

    def is_md5(self, path: str) -> bool:  # noqa: ARG002 - for stores where it depends on the path
        """Whether the listing's MD5 of this file is an MD5 of its content."""
        return True


def open_store(url: ModelUrl) -> Store:
    """Make the store of a URL, without connecting.

    Raises:
        MissingExtraError: The packages for its scheme are not installed.
    """
    return WebStore(url) if url.scheme in ("http", "https") else ObjectStore(url)


class ObjectStore(Store):
    """S3, Google Cloud Storage or Azure Blob Storage; credentials and endpoints come from the environment."""

    def __init__(self, url: ModelUrl) -> None:
        super().__init__(url)
        self._bucket = url.root.partition("/")[0]
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if url.scheme == "s3":
            # A failed pass is repeated as a whole.
            retries = {"max_attempts": 2, "mode": "standard"}
            options["config_kwargs"] = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": retries}
        self._files: Any = _filesystem(url.scheme, options)

    def files(self, scratch: Path) -> dict[str, RemoteFile]:  # noqa: ARG002 - see Store
        """See ``Store``."""
        self._files.invalidate_cache()
        prefix = f"{self.url.root}/"
        listed: dict[str, dict[str, Any]] = self._files.find(self.url.root, detail=True)
        return {
            name.removeprefix(prefix): self._file(info)
            for name, info in listed.items()
            if name.startswith(prefix) and info.get("type") != "directory"
        }

    def _file(self, info: dict[str, Any]) -> RemoteFile:
        token = next((str(info[name]) for name in _TOKENS if info.get(name)), "")
        size = int(info["size"])
        return RemoteFile(size, f"{size} {token}", checksum_of(self.url.scheme, info, self._bucket))

    def download(self, path: str, target: Path, received: Received) -> None:
        """See ``Store``."""
        self._files.get_file(f"{self.url.root}/{path}", str(target), callback=_callback(received))

    def is_md5(self, path: str) -> bool:
        """Whether the ETag of an object is its MD5: on S3, not with KMS encryption."""
        if self.url.scheme != "s3":
            return True
        key = f"{self.url.root}/{path}".removeprefix(f"{self._bucket}/")
        told = self._files.call_s3("head_object", Bucket=self._bucket, Key=key)
        return not str(told.get("ServerSideEncryption", "")).startswith("aws:kms") and not told.get("SSEKMSKeyId")


class WebStore(Store):
    """A web server. It has no listing, so the file ``SHA256SUMS`` (format of the program sha256sum) lists the files."""

    def __init__(self, url: ModelUrl) -> None:
        super().__init__(url)
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
        options = {"client_kwargs": {"timeout": timeout}, "encoded": True, "skip_instance_cache": True}
        self._files: Any = _filesystem(url.scheme, options)

    def files(self, scratch: Path) -> dict[str, RemoteFile]:
        """See ``Store``."""

        def bound(count: int) -> None:
            if count > MOST_MANIFEST_BYTES:
                raise RemoteError(f"{MANIFEST} has more than {MOST_MANIFEST_BYTES} bytes, the maximum")

        try:
            self.download(MANIFEST, scratch, bound)
        except FileNotFoundError:
            raise RemoteError(
                f"{MANIFEST}, the list of files, is missing; in the folder of models, run: "
                f"find * -type f ! -name {MANIFEST} -exec sha256sum {{}} + > {MANIFEST}"
            ) from None
        return parse_manifest(scratch.read_bytes())

    def download(self, path: str, target: Path, received: Received) -> None:
        """See ``Store``."""
        url = f"{self.url.root}/{quote(path)}{self.url.query}"
        self._files.get_file(url, str(target), callback=_callback(received))


def parse_manifest(content: bytes) -> dict[str, RemoteFile]:
    """Parse a ``SHA256SUMS``.

    Raises:
        RemoteError: A line is invalid; the message names it.
    """
    found: dict[str, RemoteFile] = {}
    try:
        text = content.decode()
    except UnicodeError:
        raise RemoteError(f"{MANIFEST} is not UTF-8") from None
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            rule = "must be 64 hexadecimal digits, two spaces and a path"
            raise RemoteError(f"{MANIFEST}, line {number}: {shortened(line, 80)!r} {rule}")
        digest, name = match[1].lower(), match[2].removeprefix("./")
        if found.get(name, RemoteFile(None, digest)).token != digest:
            raise RemoteError(f"{MANIFEST}, line {number}: {shortened(name, 80)!r} is listed with two checksums")
        found[name] = RemoteFile(None, digest, Checksum("sha256", digest))
    return found


def _filesystem(scheme: str, options: dict[str, Any]) -> Any:
    import fsspec

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)  # at lower levels they log each request with its headers
    return fsspec.filesystem(scheme, **options)


def _callback(received: Received) -> Any:
    """An fsspec callback that counts the bytes of one download."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"received": lambda size, value, **_: received(value)})  # noqa: ARG005 - fsspec's signature
