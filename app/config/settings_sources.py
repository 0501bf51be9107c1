"""Read the settings from the command line, the environment and a file, and record the source of each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings.exceptions import SettingsError as CommandLineError

from app.config.model_url import ModelUrl, redacted
from app.config.settings import ENV_PREFIX, Settings
from app.config.settings_file import SettingsError, nearest
from app.errors import shortened

MASK = "********"


def read_settings(arguments: Sequence[str] | None = None, *, program: str = "python -m app", **values: Any) -> Settings:
    """Read the settings; the command line before the environment before the file before the defaults.

    Args:
        arguments: The command line without the program's name; None reads no command line.
        program: Name of the program, for ``--help``.
        values: Settings by name, which override the environment.

    Raises:
        SettingsError: A value breaks its rule, or a flag or key is unknown; the message names the variable, flag or
            key, the value and the rule.
        SystemExit: ``--help``.
    """
    try:
        if arguments is None:
            settings = Settings(**values)
        else:
            settings = Settings(
                _cli_parse_args=list(arguments),  # type: ignore[call-arg]
                _cli_prog_name=program,
                _cli_exit_on_error=False,
                **values,
            )
    except CommandLineError as error:
        raise SettingsError(_explain_command_line(str(error))) from None
    except ValidationError as error:
        sources = _sources_of(arguments or (), values)
        raise SettingsError("\n".join(_explain(item, sources) for item in error.errors())) from None
    settings._sources = _sources_of(arguments or (), values)
    return settings


def effective(settings: Settings) -> dict[str, tuple[Any, str | None]]:
    """Every setting with its value, secrets masked, and where it was set: a flag, a variable or ``file``.

    None means the default.
    """
    found: dict[str, tuple[Any, str | None]] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = MASK
        elif isinstance(value, Path | ModelUrl):
            value = str(value)
        source = settings._sources.get(name)
        found[name] = value, source or ("file" if name in settings.model_fields_set else None)
    return found


def ignored_variables() -> list[str]:
    """A line for each environment variable that looks like a misspelt setting."""
    names = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    lines = []
    for given in sorted(os.environ):
        if given.startswith(ENV_PREFIX) and given not in names:
            like = nearest(given.removeprefix(ENV_PREFIX), Settings.model_fields, cutoff=0.7)
            if like is not None:
                lines.append(f"{given} is not a setting and is ignored; did you mean {ENV_PREFIX}{like.upper()}?")
    return lines


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sources_of(arguments: Sequence[str], values: dict[str, Any]) -> dict[str, str]:
    """Settings from other sources than the file, with their source."""
    flags = {argument.partition("=")[0].replace("--no-", "--", 1) for argument in arguments}
    variables = {name.upper() for name, value in os.environ.items() if value}
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        if _flag(name) in flags:
            found[name] = _flag(name)
        elif name in values:
            found[name] = "code"
        elif ENV_PREFIX + name.upper() in variables:
            found[name] = ENV_PREFIX + name.upper()
    return found


def _explain(item: Any, sources: dict[str, str]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    rule = str(item["msg"]).removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    where = f"{ENV_PREFIX}{name.upper()} (or {_flag(name)})"
    if name not in sources:
        where = f"{name} in the settings file"
    field = Settings.model_fields.get(name)
    shown = MASK if field is not None and "SecretStr" in str(field.annotation) else shortened(_shown(item["input"]))
    return f"{where}: {shown} is not valid: {rule}"


def _shown(value: Any) -> str:
    return repr(redacted(value) if isinstance(value, str) else value)


def _explain_command_line(message: str) -> str:
    message = message.removeprefix("error parsing CLI: ")
    _, unknown, rest = message.partition("unrecognized arguments: ")
    if unknown and rest.startswith("--"):
        like = nearest(rest.split()[0].partition("=")[0].removeprefix("--"), Settings.model_fields)
        hint = f"did you mean {_flag(like)}? " if like else ""
        return f"unknown flag {rest.split()[0]}; {hint}--help lists all flags"
    return f"{message}; --help lists all flags"
