"""Every setting of the server: one frozen object, read from the environment and the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.cpus import available_cores
from app.errors import AppError

ENV_PREFIX = "PANTHER_"


class SettingsError(AppError):
    """A setting has a value that can't be used."""


class Settings(BaseSettings):
    """All settings; each is a flag of ``python -m app`` and a variable ``PANTHER_…`` of the environment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        nested_model_default_partial_update=False,
    )

    model_dir: Path = Field(default=Path("models"), description="folder of models, laid out as NAME/VERSION/model.onnx")
    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="where models run: cuda (or never ready), cpu, or auto: cuda where it works, else cpu",
    )
    workers: int = Field(default=1, ge=1, le=256, description="processes that serve, each with its own models")
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="threads of onnxruntime in each worker; default: the usable cores, shared out among the workers",
    )
    max_body_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1024, description="largest request body in bytes, as sent and when decompressed"
    )
    compression_min_bytes: int = Field(
        default=1024, ge=0, description="answers shorter than this are never compressed, whatever the client accepts"
    )
    default_model: str | None = Field(
        default=None, min_length=1, description="model of POST /predict; default: the only model that is served"
    )
    version_policy: str = Field(
        default="latest", description="versions of each model to serve: latest, all, or numbers such as 1,3"
    )
    model_control: Literal["none", "explicit"] = Field(
        default="none", description="explicit lets clients load and unload models through v2/repository; none does not"
    )
    max_batch_rows: int = Field(default=256, ge=1, description="most rows that are run together")
    inline_run_us: int = Field(
        default=2000,
        ge=0,
        description="a run expected to take no longer happens in the event loop, a longer one on a thread of the model",
    )
    keep_alive_s: int = Field(default=30, ge=1, description="how long an idle connection is kept open")
    shutdown_timeout_s: int = Field(
        default=30, ge=1, description="how long requests in hand may take to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe level logged"
    )
    tracing: Literal["none", "otlp"] = Field(
        default="none",
        description="otlp sends OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra otel",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="form of a log line")

    @field_validator("version_policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        if value not in {"latest", "all"} and not all(part.strip().isdecimal() for part in value.split(",")):
            raise ValueError("must be latest, all, or version numbers separated by commas")
        return value

    def threads(self) -> int:
        """Threads of one onnxruntime session, always a definite number."""
        return self.num_threads or max(1, available_cores() // self.workers)


def read_settings(arguments: Sequence[str] | None = None, **values: Any) -> Settings:
    """Read the settings; command line before environment before defaults.

    Args:
        arguments: the command line without the program's name; None reads the environment alone.
        values: settings given by name, stronger than the environment.

    Raises:
        SettingsError: a value breaks its rule; names the variable, the value and the rule.
        SystemExit: ``--help``, or a flag that doesn't exist.
    """
    try:
        if arguments is None:
            return Settings(**values)
        return Settings(
            _cli_parse_args=list(arguments),  # type: ignore[call-arg]
            _cli_prog_name="python -m app",
            **values,
        )
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    rule = str(item["msg"]).removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    flag = "--" + name.replace("_", "-")
    return f"{ENV_PREFIX}{name.upper()} (or {flag}): {item['input']!r} is not accepted: {rule}"
