"""API keys: access to inference and statistics, and to model control.

Only digests of keys are compared, each with every known one and in constant time, so neither the time nor the
memory of the comparison reveals how much of a guess was right.

See docs/decisions/0015-deny-by-default-access.md.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from app.config.settings import Settings
from app.config.settings_file import SettingsError
from app.errors import AccessForbiddenError, UnauthorizedError

log = logging.getLogger(__name__)

KEY_HEADER = b"x-api-key"
MIN_KEY_LENGTH = 16
REREAD_S = 5.0
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})\Z")
_HOW = "send one as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
# The page and the interface description contain no data of this server.
_OPEN_PATHS = {"/", "/docs", "/openapi.json"}
_OPEN_FOLDERS = ("/health/", "/v2/health/", "/docs/", "/dashboard/")
_READING = {"GET", "HEAD", "OPTIONS"}
_INDEX = "/v2/repository/index"  # a POST that only reads
_INFERENCE = ("/predict", ":predict", "/infer")  # ends of paths
Need = Literal["none", "predict", "control"]


class Keys:
    """The keys of one scope: those of a setting, and those of a file, which is read again when it changes.

    Args:
        setting: Name of the setting, for messages.
        given: Its value, keys separated by commas.
        file: File with one key per line; empty lines and lines that start with # are ignored.

    Raises:
        SettingsError: A key is too short, the file is not readable, or there is no key; messages never contain keys.
    """

    def __init__(self, setting: str, given: str | None, file: Path | None) -> None:
        parts = [part.strip() for part in (given or "").split(",")]
        self._given = frozenset(_digest(part, setting) for part in parts if part)
        self._file = file
        self._stamp: object = None
        self._digests = self._given
        if file is not None:
            self._digests = self._given | self._read(file)
            if not self._digests:
                raise SettingsError(f"{str(file)!r} ({setting}_file) holds no keys; add one per line")
        elif not self._digests:
            raise SettingsError(
                f"{setting} holds no keys, which refuses every request; remove the setting to allow access without keys"
            )

    def has(self, digest: bytes) -> bool:
        """Whether the digest of a key is known."""
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def refresh(self) -> bool:
        """Read the file again if it has changed. Return whether the keys changed.

        An unusable file leaves the keys unchanged; a file without keys removes all keys that came from it.
        """
        if self._file is None:
            return False
        before = self._digests
        try:
            if _stamp(self._file) == self._stamp:
                return False
            self._digests = self._given | self._read(self._file)
        except SettingsError as error:
            log.error("keeping the previous API keys: %s", error)
            return False
        if self._digests == before:
            return False
        log.info("reloaded %d API keys from %s", len(self._digests), self._file)
        return True

    def _read(self, file: Path) -> frozenset[bytes]:
        try:
            self._stamp = _stamp(file)
            lines = file.read_text(encoding="utf-8-sig").splitlines()  # some editors write a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise SettingsError(f"the file of keys {str(file)!r} can't be read: {reason}") from None
        found = set()
        for number, line in enumerate(lines, start=1):
            key = line.strip()
            if key and not key.startswith("#"):
                found.add(_digest(key, f"line {number} of {str(file)!r}"))
        return frozenset(found)


class Access:
    """Checks the API keys of requests.

    Args:
        predict: Keys for inference and statistics; None allows access without a key.
        control: Keys that may also load, unload and benchmark models.
        protect_metrics: Whether ``/metrics`` requires a key, too.
    """

    def __init__(self, predict: Keys | None, control: Keys | None, *, protect_metrics: bool = False) -> None:
        self._predict = predict
        self._control = control
        self._open = _OPEN_PATHS if protect_metrics else {*_OPEN_PATHS, "/metrics"}

    @classmethod
    def of(cls, settings: Settings) -> "Access | None":
        """Access rules from the settings; None without keys.

        Raises:
            SettingsError: See ``Keys``.
        """
        predict = _keys("predict_keys", settings)
        control = _keys("control_keys", settings)
        if predict is None and control is None:
            return None
        return cls(predict, control, protect_metrics=settings.protect_metrics)

    def needed(self, method: str, path: str) -> Need:
        """Key scope for a request that is not inference.

        Requests that change nothing require a key of the predict scope. Health checks, the dashboard, the interface
        description and, by default, metrics require none. All other requests require a key of the control scope.
        """
        if changes_something(method, path):
            return "control"
        if self._predict is None or path in self._open or path.startswith(_OPEN_FOLDERS):
            return "none"
        return "predict"

    def check(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Check that a request other than inference is allowed.

        Raises:
            UnauthorizedError, AccessForbiddenError: See below.
        """
        need = self.needed(method, path)
        if need == "predict":
            self.check_predict(headers)
        elif need == "control":
            self.check_control(headers)

    def check_predict(self, headers: Mapping[bytes, bytes]) -> None:
        """Check that a request may use inference and read statistics.

        Raises:
            UnauthorizedError: The request has no key, or an unknown one.
        """
        if self._predict is None:
            return
        digest = _sent(headers)
        known = self._predict.has(digest)
        if self._control is not None:
            known |= self._control.has(digest)
        if not known:
            raise UnauthorizedError(f"the API key is unknown; {_HOW}", key_sent=True)

    def check_control(self, headers: Mapping[bytes, bytes]) -> None:
        """Check that a request may control models.

        Raises:
            UnauthorizedError: The request has no key, or an unknown one.
            AccessForbiddenError: The key only allows inference.
        """
        if self._control is None:
            self.check_predict(headers)
            raise AccessForbiddenError(
                "no API key may load, unload or benchmark models; set PANTHER_CONTROL_KEYS_FILE or PANTHER_CONTROL_KEYS"
            )
        digest = _sent(headers)
        if self._control.has(digest):
            return
        if self._predict is not None and self._predict.has(digest):
            raise AccessForbiddenError("this API key allows inference, but not to load, unload or benchmark models")
        raise UnauthorizedError(f"the API key is unknown; {_HOW}", key_sent=True)

    def refresh(self) -> bool:
        """Read changed key files again. Return whether any key changed."""
        changed = [keys.refresh() for keys in (self._predict, self._control) if keys is not None]
        return any(changed)

    def needed_by_operation(self, method: str, path: str) -> Need:
        """Key scope of an operation in the OpenAPI schema."""
        if path.endswith(_INFERENCE):
            return "none" if self._predict is None else "predict"
        return self.needed(method.upper(), path)


def changes_something(method: str, path: str) -> bool:
    """Whether a request other than inference may change the served models; True if unknown."""
    return method not in _READING and path != _INDEX


def describe_access(schema: dict[str, Any], access: Access | None) -> None:
    """Add the authentication schemes and the key scope of each operation to an OpenAPI schema."""
    schema.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
        "key": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "the same key in a separate header",
        },
    }
    if access is None:
        return
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            need = access.needed_by_operation(method, path)
            if need != "none":
                operation["security"] = [{"bearer": []}, {"key": []}]
                operation["responses"]["401"] = {"description": "an API key is required", "content": content}
            if need == "control":
                operation["responses"]["403"] = {"description": "the API key does not allow this", "content": content}


async def watch_keys(access: Access | None, on_change: Callable[[], None]) -> None:
    """Reread the key files while they change, until cancelled.

    Args:
        access: The keys; None without keys.
        on_change: Called on the event loop after the set of keys changed.
    """
    while access is not None:
        await asyncio.sleep(REREAD_S)
        if await asyncio.to_thread(access.refresh):
            on_change()


def warn_of_open_doors(settings: Settings) -> None:
    """Warn of key files that others can read, and of access without keys from other machines."""
    for name in ("predict_keys_file", "control_keys_file"):
        file = getattr(settings, name)
        with contextlib.suppress(OSError):
            mode = file.stat().st_mode if file is not None else 0
            if mode & stat.S_IROTH:
                log.warning(
                    "%r (%s) is readable by every user of this machine (mode %o); fix with: chmod o-r",
                    str(file),
                    name,
                    stat.S_IMODE(mode),
                )
    if _is_local(settings.host):
        return
    predict = settings.predict_keys is not None or settings.predict_keys_file is not None
    control = settings.control_keys is not None or settings.control_keys_file is not None
    if not predict:
        log.warning(
            "listening on %s without API keys: all clients that reach the port may use inference and statistics; "
            "set PANTHER_PREDICT_KEYS_FILE, or restrict access to the port",
            settings.host,
        )
    if settings.model_control == "explicit" and not control and not predict:
        log.warning(
            "model_control is explicit without API keys on %s: all clients of the port may load and unload models; "
            "set PANTHER_CONTROL_KEYS_FILE",
            settings.host,
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(setting: str, settings: Settings) -> Keys | None:
    given, file = getattr(settings, setting), getattr(settings, f"{setting}_file")
    if given is None and file is None:
        return None
    return Keys(setting, None if given is None else given.get_secret_value(), file)


def _digest(entry: str, where: str) -> bytes:
    if entry.startswith("sha256:"):
        match = _DIGEST.match(entry)
        if match is None:
            raise SettingsError(f"{where}: a digest must be 'sha256:' and 64 hexadecimal digits")
        return bytes.fromhex(match[1])
    if len(entry) < MIN_KEY_LENGTH:
        raise SettingsError(
            f"{where}: a key has {len(entry)} characters; at least {MIN_KEY_LENGTH} are required. "
            "Generate one with: openssl rand -hex 24"
        )
    if not entry.isascii() or not entry.isprintable() or " " in entry:
        raise SettingsError(f"{where}: a key must consist of printable ASCII characters without spaces")
    return hashlib.sha256(entry.encode()).digest()


def _sent(headers: Mapping[bytes, bytes]) -> bytes:
    """The digest of the key in a request."""
    key = headers.get(KEY_HEADER)
    if key is None:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = b""
    key = key.strip()
    if not key:
        raise UnauthorizedError(f"an API key is required; {_HOW}")
    return hashlib.sha256(key).digest()


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        raise SettingsError(f"the file of keys {str(file)!r} can't be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size, found.st_ino
