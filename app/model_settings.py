"""``NAME/panther.toml``: what one model wants otherwise than the server's settings say."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.errors import LoadError
from app.settings_file import read_toml

SETTINGS_FILE = "panther.toml"


def check_policy(value: str) -> str:
    """See that a text is a version policy.

    Raises:
        ValueError: it is neither ``latest`` nor ``all`` nor numbers separated by commas.
    """
    if value not in {"latest", "all"} and not all(part.strip().isdecimal() for part in value.split(",")):
        raise ValueError("must be latest, all, or version numbers separated by commas")
    return value


class ModelSettings(BaseModel):
    """Settings of one model; what is None is as the server's settings have it.

    Attributes:
        batching: whether rows of several requests may run together.
        max_batch_rows: most rows that are run together.
        batch_delay_us: how long a request may wait for others to run with, in microseconds.
        version_policy: versions to serve: ``latest``, ``all``, or numbers such as ``1,3``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    batching: bool = True
    max_batch_rows: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    batch_delay_us: int = Field(default=0, ge=0, le=10_000_000)
    version_policy: str | None = None

    @field_validator("version_policy")
    @classmethod
    def _known_policy(cls, value: str | None) -> str | None:
        return None if value is None else check_policy(value)


def read_model_settings(name: str, folder: Path) -> ModelSettings:
    """Read a model's own settings; the defaults where it has no such file.

    Args:
        name: of the model.
        folder: of the model.

    Raises:
        LoadError: the file can't be read, is not TOML, or a value breaks its rule; says which.
    """
    where = f"model {name!r}: {SETTINGS_FILE}"
    try:
        document = read_toml(folder / SETTINGS_FILE)
    except FileNotFoundError:
        return ModelSettings()
    except OSError as error:
        raise LoadError(f"{where} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise LoadError(f"{where} is not TOML: {error}") from None
    try:
        return ModelSettings.model_validate(document)
    except ValidationError as error:
        raise LoadError(f"{where}: {'; '.join(_explain(item) for item in error.errors())}") from None


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key} is no setting of a model; there are {', '.join(ModelSettings.model_fields)}"
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{key}: {item['input']!r} is not accepted: {rule[:1].lower()}{rule[1:]}"
