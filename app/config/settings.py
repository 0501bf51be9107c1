"""Every setting of the server: one frozen object with defaults, bounds and help; `settings_sources` reads it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, PrivateAttr, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.config.model_url import ModelUrl, is_url
from app.config.settings_file import FileSource
from app.config.version_policy import check_policy
from app.system.cpus import available_cores

ENV_PREFIX = "PANTHER_"
# Without body_threads: no thread below so many cores, and never more threads than this.
_MIN_CORES_FOR_BODY_THREADS, _MAX_BODY_THREADS = 4, 8
_HOST = re.compile(r"(?:\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)\Z")
_ORIGIN = re.compile(r"https?://[^/?#\s,*]+\Z")


def _folder_or_url(value: Any) -> Any:
    """The value of ``model_dir``: a URL if it looks like one."""
    return ModelUrl(value) if isinstance(value, str) and is_url(value) else value


class Settings(BaseSettings):
    """Serve the models of a folder.

    Each setting is a flag, an environment variable (PANTHER_ and the name in capitals) and a key of a TOML file
    (the name with underscores); a flag overrides a variable, and a variable overrides the file.
    """

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

    config: Path | None = Field(default=None, description="TOML file of settings, by their names")
    model_dir: Annotated[Path | InstanceOf[ModelUrl], BeforeValidator(_folder_or_url)] = Field(
        default=Path("models"),
        description="folder of models with the layout NAME/VERSION/model.onnx; or its URL: s3://, gs://, az:// or "
        "https://, which requires the extra s3, gs, az or https",
    )
    model_cache: Path | None = Field(
        default=None,
        description="cache folder for models from a URL. Default: panther/models in the user's cache folder, or "
        "otherwise in the folder for temporary files",
    )
    model_cache_max_bytes: int = Field(
        default=64 * 1024**3, ge=1, description="maximum bytes of a URL's files; if exceeded, nothing is mirrored"
    )
    model_cache_max_files: int = Field(
        default=10_000, ge=1, description="maximum number of a URL's files; if exceeded, nothing is mirrored"
    )
    remote_interval_s: float = Field(
        default=30.0,
        ge=0.05,
        le=86400,
        description="polling interval of a URL with model_control watch",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all interfaces")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 for a free port")
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None,
        description="TCP port of the Open Inference Protocol over gRPC, usually 8001; 0 for a free one; requires the "
        "extra grpc. Default: no gRPC",
    )
    grpc_transport: Literal["auto", "nghttp2", "grpcio"] = Field(
        default="auto",
        description="HTTP/2 library of gRPC: nghttp2 (package ngh2), grpcio, or auto: the first that is installed",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="device for models: cuda (not ready without it), cpu, or auto: cuda if available, else cpu",
    )
    cuda_devices: str = Field(
        default="0", description="CUDA devices: all, or numbers such as 0,2; assigned to the workers in turn"
    )
    cuda_graphs: bool = Field(
        default=True,
        description="run a model on CUDA as one captured graph per batch size, if possible",
    )
    cuda_tf32: bool = Field(
        default=False, description="compute float32 products in TF32 on CUDA: faster, with 10 bits of mantissa"
    )
    cuda_memory_limit_bytes: Annotated[int, Field(ge=1024 * 1024)] | None = Field(
        default=None, description="limit of the device memory of one model; default: no limit"
    )
    cuda_arena: Literal["next_power_of_two", "same_as_requested"] = Field(
        default="next_power_of_two", description="growth strategy of a model's device memory arena"
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="number of worker processes, each with its own copy of the models"
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="onnxruntime threads per worker; default: the usable cores divided by the workers",
    )
    body_threads: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None,
        description="threads per worker that copy bodies of 256 KiB and more beside the event loop; 0 for none; "
        "default: half of the worker's cores, at most 8; 0 if it has fewer than 4",
    )
    max_body_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="maximum size of a request body in bytes, as sent and when decompressed",
    )
    max_request_rows: int = Field(default=1_000_000, ge=1, description="maximum rows per request (413 if exceeded)")
    max_header_bytes: int = Field(
        default=32 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="maximum size of the request line and headers in bytes (431 if exceeded)",
    )
    max_connections: int = Field(
        default=4096,
        ge=1,
        description="maximum open connections per worker; further ones get 503, except health checks",
    )
    header_timeout_s: float = Field(
        default=10.0,
        ge=0.05,
        le=86400,
        description="time limit for receiving a complete request header (slow-client protection)",
    )
    body_timeout_s: float = Field(
        default=20.0,
        ge=0.05,
        le=86400,
        description="time limit for each 1 KiB of a request body",
    )
    write_timeout_s: float = Field(
        default=30.0,
        ge=0.05,
        le=86400,
        description="time limit for a client to read its response before the connection is closed",
    )
    compression_min_bytes: int = Field(default=1024, ge=0, description="minimum size of a response to compress")
    default_model: str | None = Field(
        default=None,
        min_length=1,
        description="model of POST /predict; default: the one with default = true in panther.toml, else the only one",
    )
    version_policy: str = Field(
        default="latest", description="versions of each model to serve: latest, all, or numbers such as 1,3"
    )
    model_control: Literal["none", "explicit", "watch"] = Field(
        default="none",
        description="explicit: clients load and unload models through v2/repository; watch: hot reload on changes of "
        "the model folder; none: neither",
    )
    required_models: str | None = Field(
        default=None,
        min_length=1,
        description="models that must be served for readiness, separated by commas; default: those in the folder at "
        "the start. A model that was served once also counts",
    )
    strict_readiness: bool = Field(
        default=False,
        description="every model of the folder counts for readiness: one invalid new model makes the "
        "whole server not ready",
    )
    watch_interval_s: float = Field(
        default=2.0,
        ge=0.05,
        le=3600,
        description="polling interval of model_control watch; a change counts once two polls have seen it",
    )
    trial_load_s: float = Field(
        default=60.0,
        ge=0,
        le=86400,
        description="time limit for test-loading each model in a separate process; models that crash, hang or exhaust "
        "memory there are rejected. 0 disables it",
    )
    allow_custom_ops: bool = Field(
        default=False,
        description="register custom operator libraries that a model's panther.toml names in the model's folder; "
        "they run inside the server, so only trusted users may write to the model folder",
    )
    predict_keys: SecretStr | None = Field(
        default=None,
        description="API keys for inference, separated by commas, each in plain text or as sha256:HEX; a file is safer",
    )
    predict_keys_file: Path | None = Field(
        default=None, description="file of such keys, one per line; read again when it changes"
    )
    control_keys: SecretStr | None = Field(
        default=None, description="API keys for inference and model control (load, unload, benchmark); as predict_keys"
    )
    control_keys_file: Path | None = Field(default=None, description="file of such keys, one per line")
    protect_metrics: bool = Field(default=False, description="require an API key for GET /metrics")
    cors_origins: str | None = Field(
        default=None,
        min_length=1,
        description="allowed CORS origins, separated by commas, such as https://a.example; * for all",
    )
    allowed_hosts: str | None = Field(
        default=None,
        min_length=1,
        description="allowed Host names of model control requests, separated by "
        "commas, besides IP addresses, localhost and the host; *.a.example for all subdomains, * for all. "
        "Default: none; all if API keys are set",
    )
    max_batch_rows: int = Field(default=256, ge=1, description="maximum rows per batch")
    max_queue_rows: int = Field(
        default=8192, ge=1, description="maximum queued rows per model; if exceeded, requests get 503 at once"
    )
    max_queue_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=1024,
        description="maximum bytes of requests in flight per worker, and of queued tensors per model; "
        "if exceeded, requests get 503 at once",
    )
    max_queue_ms: int = Field(
        default=10_000,
        ge=1,
        description="maximum expected time in the queue; if exceeded, requests get 503 at once",
    )
    inline_run_us: int = Field(
        default=2000,
        ge=0,
        description="runs expected to finish within this time execute on the event loop, longer ones on a thread",
    )
    keep_alive_s: int = Field(default=30, ge=1, le=86400, description="idle time before a connection is closed")
    shutdown_delay_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="time after SIGTERM to accept new requests while /health/ready returns 503, for load balancers",
    )
    shutdown_timeout_s: int = Field(
        default=30,
        ge=1,
        le=86400,
        description="time limit for requests in flight after SIGTERM and shutdown_delay_s",
    )
    stuck_run_s: float = Field(
        default=120.0,
        ge=0,
        le=86400,
        description="time after which a running model fails the liveness check, and with several workers "
        "its worker is replaced; 0 disables it",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="minimum severity of log records"
    )
    tracing: Literal["none", "otlp"] = Field(
        default="none",
        description="otlp sends OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT; requires the extra otel",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="format of a log line")

    access_log: bool = Field(
        default=False, description="log one line per request: method, path, status and time, never its content"
    )

    # Source of each setting from outside the file: a flag, a variable, or "code"; set by read_settings.
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Sources in order: arguments and the command line, then the environment, then the file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, FileSource(settings_cls)

    @field_validator("version_policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        return check_policy(value)

    @field_validator("cuda_devices")
    @classmethod
    def _known_devices(cls, value: str) -> str:
        if value != "all" and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", value):
            raise ValueError("must be all, or numbers of devices separated by commas")
        return value

    @field_validator("predict_keys", "control_keys", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        # A file may give a list.
        return ",".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value

    @field_validator("cors_origins")
    @classmethod
    def _known_origins(cls, value: str | None) -> str | None:
        for origin in (value or "*").split(","):
            if origin.strip() != "*" and not _ORIGIN.match(origin.strip()):
                raise ValueError("must be *, or origins such as https://a.example:8443, without a path")
        return value

    def required(self) -> tuple[str, ...] | None:
        """Models that must be served for readiness; None for those in the folder at the start."""
        if self.required_models is None:
            return None
        names = [name.strip() for name in self.required_models.split(",")]
        return tuple(dict.fromkeys(name for name in names if name))

    @field_validator("allowed_hosts")
    @classmethod
    def _known_hosts(cls, value: str | None) -> str | None:
        for host in (value or "*").split(","):
            if not _HOST.match(host.strip()):
                raise ValueError("must be *, or host names such as a.example or *.a.example, without scheme and port")
        return value

    def control_hosts(self) -> tuple[str, ...]:
        """Additional host names allowed for control requests; loopback and IP addresses are always allowed.

        A page that reaches the server by DNS rebinding has no API key, so keys are sufficient protection.
        """
        if self.allowed_hosts is not None:
            return (self.host, *(part.strip() for part in self.allowed_hosts.split(",")))
        keys = (self.predict_keys, self.predict_keys_file, self.control_keys, self.control_keys_file)
        return (self.host,) if all(key is None for key in keys) else ("*",)

    def origins(self) -> tuple[str, ...]:
        """The origins of pages that may send requests; empty without CORS."""
        return tuple(part.strip() for part in self.cors_origins.split(",")) if self.cors_origins else ()

    def body_thread_count(self) -> int:
        """Number of threads per worker that copy long bodies; 0 copies them on the event loop."""
        if self.body_threads is not None:
            return self.body_threads
        cores = available_cores() // self.workers
        return 0 if cores < _MIN_CORES_FOR_BODY_THREADS else min(_MAX_BODY_THREADS, cores // 2)

    def threads(self) -> int:
        """Number of threads of one onnxruntime session, never automatic."""
        return self.num_threads or max(1, available_cores() // self.workers)
