"""Settings of one model: ``NAME/panther.toml``.

See docs/decisions/0019-model-settings-in-panther-toml.md.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.config.settings_file import parse_toml
from app.config.version_policy import check_policy
from app.errors import LoadError, shortened
from app.repository.placement import PlacementSettings
from app.system.files import read_regular, require_regular

SETTINGS_FILE = "panther.toml"
MAX_SETTINGS_BYTES = 256 * 1024


class SessionSettings(BaseModel):
    """The table ``[session]``: session options of onnxruntime.

    Attributes:
        threads: Threads of the runtime; None for the server's setting.
        graph_optimization: Graph optimization level; None for onnxruntime's default, ``all``.
        providers: Execution providers in order of preference; empty for those of the server's device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    graph_optimization: Literal["disabled", "basic", "extended", "all"] | None = None
    providers: Annotated[list[str], Field(max_length=16)] = []


class ModelSettings(BaseModel):
    """Settings of one model; None means the server's setting.

    Attributes:
        batching: Whether rows of several requests may run together: ``auto`` if the graph proves that they are
            independent, ``on`` if the operator knows it, ``off`` never. true means ``auto`` and false means ``off``.
        max_batch_rows: Maximum number of rows that run together.
        batch_delay_us: Maximum time in microseconds that a request waits for others to run with.
        version_policy: Versions to serve: ``latest``, ``all``, or numbers such as ``1,3``.
        custom_ops: Shared libraries with operators, as paths in the model's folder; the server must allow them.
        default: Whether requests without a model name use this model, unless the server's settings name one.
        session: Session options of onnxruntime.
        placement: Devices of the model, and the number of its instances on each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    batching: Literal["auto", "on", "off"] = "auto"
    max_batch_rows: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    batch_delay_us: int = Field(default=0, ge=0, le=10_000_000)
    version_policy: str | None = None
    custom_ops: Annotated[list[str], Field(max_length=16)] = []
    default: bool = False
    session: SessionSettings = SessionSettings()
    placement: PlacementSettings = PlacementSettings()

    @field_validator("batching", mode="before")
    @classmethod
    def _by_word(cls, value: Any) -> Any:
        return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("version_policy")
    @classmethod
    def _known_policy(cls, value: str | None) -> str | None:
        return None if value is None else check_policy(value)


def read_model_settings(name: str, folder: Path) -> ModelSettings:
    """Read a model's settings; the defaults if it has no settings file.

    Args:
        name: Name of the model.
        folder: Folder of the model.

    Raises:
        LoadError: The file is not readable, is not TOML, or a value breaks its rule; the message says which.
    """
    where = f"model {name!r}: {SETTINGS_FILE}"
    try:
        document = parse_toml(read_regular(folder / SETTINGS_FILE, MAX_SETTINGS_BYTES))
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


def custom_libraries(name: str, folder: Path, settings: ModelSettings, *, allowed: bool) -> tuple[str, ...]:
    """Paths of a model's custom operator libraries.

    Args:
        name: Name of the model.
        folder: Folder of the model, which must contain the libraries.
        settings: Settings of the model.
        allowed: Whether the server's settings permit such libraries, which run inside the server.

    Raises:
        LoadError: Libraries are not allowed, or one is outside the folder or not a regular file.
    """
    where = f"model {name!r}: {SETTINGS_FILE}: custom_ops"
    if settings.custom_ops and not allowed:
        raise LoadError(
            f"{where}: this server does not allow models to load libraries; "
            "set PANTHER_ALLOW_CUSTOM_OPS=true if you trust the model folder"
        )
    found = []
    for library in settings.custom_ops:
        path = (folder / library).resolve()
        shown = shortened(library)
        if not path.is_relative_to(folder.resolve()):
            raise LoadError(f"{where}: {shown!r} is not in the folder of the model")
        try:
            require_regular(path)
        except OSError as error:
            raise LoadError(f"{where}: {shown!r} can't be read: {error.strerror}") from None
        found.append(str(path))
    return tuple(found)


_TABLES: dict[str, type[BaseModel]] = {"session": SessionSettings, "placement": PlacementSettings}


def _explain(item: Any) -> str:
    key = shortened(".".join(str(part) for part in item["loc"]))
    if item["type"] == "extra_forbidden":
        known = _TABLES.get(key.partition(".")[0], ModelSettings) if "." in key else ModelSettings
        return f"{key} is not a setting of a model; known settings: {', '.join(known.model_fields)}"
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{key}: {shortened(repr(item['input']))} is not valid: {rule[:1].lower()}{rule[1:]}"
