"""The URL of a remote model repository: its rules, and its form without secrets."""

import re
from urllib.parse import unquote, urlsplit

SCHEMES = {"s3": "s3", "gs": "gs", "az": "az", "https": "https", "http": "https"}
"""The schemes of URLs, each with the extra that it needs."""
_WEB = ("http", "https")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,254}\Z")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
_MOST_CHARACTERS = 2048


class ModelUrl:
    """The URL of a folder of models in an object store or on a web server.

    ``str`` gives the URL without its secrets, which are the user, the password and the query.

    Args:
        url: such as ``s3://bucket/models`` or ``https://example.org/models``.

    Attributes:
        scheme: ``s3``, ``gs``, ``az``, ``https`` or ``http``.
        root: the folder, without a slash at its end: bucket and prefix, or the URL without its query.
        query: the query with its question mark, which goes with every request; empty where there is none.

    Raises:
        ValueError: the URL breaks a rule; the message says which.
    """

    def __init__(self, url: str) -> None:
        if len(url) > _MOST_CHARACTERS:
            raise ValueError(f"a URL has at most {_MOST_CHARACTERS} characters, not {len(url)}")
        if _UNPRINTABLE.search(url):
            raise ValueError("a URL has no spaces, control characters or backslashes")
        parts = urlsplit(url)
        self.scheme = parts.scheme.lower()
        if self.scheme not in SCHEMES or "://" not in url:
            raise ValueError(f"must be a folder, or a URL of {', '.join(f'{name}://' for name in SCHEMES)}")
        path = parts.path.rstrip("/")
        _check_path(path, quoted=self.scheme in _WEB)
        if parts.fragment or url.endswith("#"):
            raise ValueError("must have no fragment (#…)")
        if self.scheme in _WEB:
            _check_web_host(parts.hostname)
            if parts.port == 0:
                raise ValueError("port 0 can't be connected to")
            self._user, _, host = parts.netloc.rpartition("@")
        else:
            host = parts.netloc
            self._user = ""
            if "@" in host or ":" in host or parts.query or url.endswith("?"):
                raise ValueError(
                    f"must be {self.scheme}://BUCKET/FOLDER alone; credentials and endpoints come from the environment"
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
        """A text, such as the message of a library, without the secrets of the URL."""
        user, _, password = self._user.partition(":")
        secrets = {f"{user}:{password}@": "***@", f"{user}@": "***@", password: "***", self.query: "?***"}
        for secret, instead in secrets.items():
            if secret.strip(":@"):
                text = text.replace(secret, instead).replace(unquote(secret), instead)
        return text


def is_url(text: str) -> bool:
    """Whether a text is meant as a URL and not as a folder."""
    return bool(_URL.match(text) or _ONE_SLASH.match(text))


def redacted(text: str) -> str:
    """A text without the user, the password and the query of a URL that it may be, however wrong that is."""
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
    """See that a path has no parts that lead elsewhere.

    Raises:
        ValueError: it has.
    """
    for part in path.split("/")[1:]:
        if (unquote(part) if quoted else part) in ("", ".", ".."):
            raise ValueError(f"must have no {part!r} in its path" if part else "must have no '//' in its path")
