"""A TOML file of settings: one table, one key for each setting, by the names of ``Settings``."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from app.errors import AppError


class SettingsError(AppError):
    """A setting has a value that can't be used."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a mistyped one is most like; None where none is."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds; a byte order mark, with which some editors begin a file, is no part of it.

    Args:
        path: of the file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no TOML; says where and why.
    """
    text = path.read_bytes().decode("utf-8-sig")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None


def read_file(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a file.

    Args:
        path: of the file.
        known: names that may be in it.

    Raises:
        SettingsError: it can't be read, is no TOML, or holds a key that is not known; names the nearest that is.
    """
    try:
        document = read_toml(path)
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


class FileSource(PydanticBaseSettingsSource):
    """The file that the setting ``config`` names, which stronger sources have given by then."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the file is read as a whole."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All settings of the file; none where no file is named."""
        config = self.current_state.get("config")
        if not config:
            return {}
        # A file that names another would make it hard to say where a value came from.
        return read_file(Path(config), set(self.settings_cls.model_fields) - {"config"})
