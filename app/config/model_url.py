"""The URL of a remote model repository: validation, and display without secrets."""

import re
from urllib.parse import unquote, urlsplit

SCHEMES = {"s3": "s3", "gs": "gs", "az": "az", "https": "https", "http": "https"}
"""Supported URL schemes, each with its required extra."""
_WEB = ("http", "https")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,254}\Z")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
_MOST_CHARACTERS = 2048


class ModelUrl:
    """The URL of a folder of models in an object store or on a web server.

    ``str`` returns the URL without its secrets: user, password and query.

    Args:
        url: For example ``s3://bucket/models`` or ``https://example.org/models``.

    Attributes:
        scheme: ``s3``, ``gs``, ``az``, ``https`` or ``http``.
        root: The folder, without a trailing slash: bucket and prefix, or the URL without its query.
        query: The query with its question mark, sent with every request; empty if there is none.

    Raises:
        ValueError: The URL breaks a rule; the message names the rule.
    """

    def __init__(self, url: str) -> None:
        if len(url) > _MOST_CHARACTERS:
            raise ValueError(f"a URL may have at most {_MOST_CHARACTERS} characters; this one has {len(url)}")
        if _UNPRINTABLE.search(url):
            raise ValueError("a URL must not contain spaces, control characters or backslashes")
        parts = urlsplit(url)
        self.scheme = parts.scheme.lower()
        if self.scheme not in SCHEMES or "://" not in url:
            raise ValueError(f"must be a folder, or a URL with {', '.join(f'{name}://' for name in SCHEMES)}")
        path = parts.path.rstrip("/")
        _check_path(path, quoted=self.scheme in _WEB)
        if parts.fragment or url.endswith("#"):
            raise ValueError("must not have a fragment (#…)")
        if self.scheme in _WEB:
            _check_web_host(parts.hostname)
            if parts.port == 0:
                raise ValueError("port must be 1 to 65535, not 0")
            self._user, _, host = parts.netloc.rpartition("@")
        else:
            host = parts.netloc
            self._user = ""
            if "@" in host or ":" in host or parts.query or url.endswith("?"):
                raise ValueError(
                    f"must be {self.scheme}://BUCKET/FOLDER only; credentials and endpoints come from the environment"
                )
            if not _BUCKET.match(host):
                raise ValueError("must name a bucket of letters, digits, '.', '_' and '-'")
        self.query = f"?{parts.query}" if parts.query else ""
        self.root = f"{host}{path}" if self.scheme not in _WEB else f"{self.scheme}://{parts.netloc}{path}"
        shown = "***@" if self._user else ""
        self._shown = f"{self.scheme}://{shown}{host}{path}" + ("?***" if self.query else "")

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"ModelUrl({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelUrl) and (self.root, self.query) == (other.root, other.query)

    def __hash__(self) -> int:
        return hash((self.root, self.query))

    def scrub(self, text: str) -> str:
        """Remove the secrets of the URL from a text, such as a library's message."""
        user, _, password = self._user.partition(":")
        secrets = {f"{user}:{password}@": "***@", f"{user}@": "***@", password: "***", self.query: "?***"}
        for secret, instead in secrets.items():
            if secret.strip(":@"):
                text = text.replace(secret, instead).replace(unquote(secret), instead)
        return text


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a folder."""
    return bool(_URL.match(text) or _ONE_SLASH.match(text))


def redacted(text: str) -> str:
    """Remove user, password and query from a text that may be a URL, even an invalid one."""
    if not is_url(text):
        return text
    scheme, colon, rest = text.partition(":")
    before, question, _ = rest.partition("?")
    user, at, host = before.rpartition("@")
    slashes = "//" if user.startswith("//") else ""
    return f"{scheme}{colon}{f'{slashes}***@{host}' if at else before}" + ("?***" if question else "")


def _check_web_host(host: str | None) -> None:
    if not host:
        raise ValueError("must name a host")


def _check_path(path: str, *, quoted: bool) -> None:
    """Check that a path has no parts that lead elsewhere.

    Raises:
        ValueError: The path has such a part.
    """
    for part in path.split("/")[1:]:
        if (unquote(part) if quoted else part) in ("", ".", ".."):
            raise ValueError(f"must not have {part!r} in its path" if part else "must not have '//' in its path")
