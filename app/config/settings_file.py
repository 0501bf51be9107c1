"""A TOML file of settings: one table, one key per setting, with the names of ``Settings``."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, TomlConfigSettingsSource

from app.errors import AppError, shortened


class SettingsError(AppError):
    """A setting has an invalid value."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most similar to a mistyped one; None if none is similar."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parse the bytes of a TOML file, without a leading byte order mark.

    Raises:
        ValueError: The text is not TOML; the message says where and why.
    """
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    except ValueError as error:
        raise ValueError(shortened(str(error))) from None


def read_file(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a file.

    Args:
        path: Path of the file.
        known: Allowed keys.

    Raises:
        SettingsError: The file is unreadable, not TOML, or has an unknown key; the message names the most similar one.
    """
    try:
        document = parse_toml(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"the settings file {str(path)!r} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"the settings file {str(path)!r} is not valid TOML: {error}") from None
    known = set(known)
    for key in document:
        if key not in known:
            like = nearest(key, known)
            hint = f"did you mean {like!r}?" if like else f"known: {', '.join(sorted(known))}"
            raise SettingsError(f"unknown key {key[:60]!r} in the settings file {str(path)!r}; {hint}")
    return document


class FileSource(TomlConfigSettingsSource):
    """The file in the setting ``config``; sources with higher precedence have set it before."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, toml_file=None)  # its path is not known yet

    def __call__(self) -> dict[str, Any]:
        """All settings of the file; empty without a file."""
        config = self.current_state.get("config")
        return self._read_file(Path(config)) if config else {}

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        # A file that names another file would obscure the origin of a value.
        return read_file(file_path, set(self.settings_cls.model_fields) - {"config"})
