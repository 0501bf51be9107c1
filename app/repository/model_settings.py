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
    """The table ``[session]``: how onnxruntime runs the model.

    Attributes:
        threads: of the runtime; None for the server's.
        graph_optimization: how far the graph is optimised; None for onnxruntime's default, ``all``.
        providers: execution providers in the order of preference; none for those of the server's device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    graph_optimization: Literal["disabled", "basic", "extended", "all"] | None = None
    providers: Annotated[list[str], Field(max_length=16)] = []


class ModelSettings(BaseModel):
    """Settings of one model; None means the server's setting.

    Attributes:
        batching: whether rows of several requests may run together: ``auto`` where the graph proves that they are
            independent, ``on`` where you know it, ``off`` never. true is read as ``auto`` and false as ``off``.
        max_batch_rows: most rows that are run together.
        batch_delay_us: how long a request may wait for others to run with, in microseconds.
        version_policy: versions to serve: ``latest``, ``all``, or numbers such as ``1,3``.
        custom_ops: shared libraries with operators, by their paths in the model's folder; the server has to allow them.
        default: whether requests that name no model go to this one, where the server's settings name none.
        session: how onnxruntime runs the model.
        placement: devices that it runs on, and the number of its instances.
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
    """Read a model's own settings; the defaults where it has no such file.

    Args:
        name: of the model.
        folder: of the model.

    Raises:
        LoadError: the file can't be read, is not TOML, or a value breaks its rule; says which.
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
    """The paths of a model's libraries of operators.

    Args:
        name: of the model.
        folder: of the model, which they have to lie in.
        settings: of the model.
        allowed: whether the server's settings permit such libraries, which run as part of the server.

    Raises:
        LoadError: they are not allowed, or one lies elsewhere or is no regular file.
    """
    where = f"model {name!r}: {SETTINGS_FILE}: custom_ops"
    if settings.custom_ops and not allowed:
        raise LoadError(
            f"{where}: this server allows no libraries of a model; "
            "set PANTHER_ALLOW_CUSTOM_OPS=true if you trust what is in the model folder"
        )
    found = []
    for library in settings.custom_ops:
        path = (folder / library).resolve()
        shown = shortened(library)
        if not path.is_relative_to(folder.resolve()):
            raise LoadError(f"{where}: {shown!r} is not in the model's own folder")
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
        return f"{key} is no setting of a model; there are {', '.join(known.model_fields)}"
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{key}: {shortened(repr(item['input']))} is not accepted: {rule[:1].lower()}{rule[1:]}"
