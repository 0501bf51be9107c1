"""The response of ``/stats``: savings, runtime and live counters of every model version, and the server itself.

An unknown value is null, never 0. docs/stats.md explains every field.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Self

import onnxruntime as ort
from pydantic import Field

import app
from app.reports.live import LiveStats
from app.reports.savings import (
    LatencyStats,
    LayerStats,
    MultiplyAddStats,
    OutputStats,
    StatsPart,
    TotalStats,
    card_fields,
    reduction_percent,
)
from app.repository.served_model import Serving
from app.repository.versions import Entry, State, Version
from app.runtime.batching import Batching
from app.runtime.card import Check, CompressionCurve, Convolution, Embedding, QuantizedLayer, Storage, Training
from app.runtime.cuda.accelerate import CudaReport
from app.runtime.cuda.cudart import Gpu
from app.runtime.placement import Node
from app.runtime.session_choices import Optimization
from app.service.state import AppState
from app.telemetry.aggregate import ServerCounters


class ByteStats(StatsPart):
    """Bytes on disk and in memory."""

    file_bytes: int = Field(description="size of the file and its external data")
    dense_twin_weight_bytes: int | None
    reduction_percent: float | None = Field(description="reduction of file_bytes against dense_twin_weight_bytes")
    loaded_weight_bytes: int | None = Field(description="size of all constants after loading, from the export")
    resident_bytes: int | None = Field(description="growth of the process while the model was loaded and warmed up")

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """Compare the size of a loaded version with that of its dense twin."""
        model, card = serving.model, serving.model.card
        twin = card.dense_twin.weight_bytes if card else None
        return cls(
            file_bytes=model.file_bytes,
            dense_twin_weight_bytes=twin,
            reduction_percent=None if twin is None else reduction_percent(twin, model.file_bytes),
            loaded_weight_bytes=card.storage.weight_bytes if card and card.storage else None,
            resident_bytes=serving.resident_bytes,
        )


class PlacementStats(StatsPart):
    """The part of the graph that one execution provider runs."""

    provider: str
    nodes: int
    op_types: dict[str, int] = Field(description="number of nodes by type")
    node_names: list[str] | None = Field(default=None, description="only with nodes=true")

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> list[Self]:
        """Group the nodes of a session by provider."""
        providers = dict.fromkeys(node.provider for node in nodes)
        parts = {provider: [node for node in nodes if node.provider == provider] for provider in providers}
        return [
            cls(
                provider=provider,
                nodes=len(part),
                op_types=dict(Counter(node.op_type for node in part)),
                node_names=[node.name for node in part],
            )
            for provider, part in parts.items()
        ]


class BatchingStats(StatsPart):
    """Whether rows of several requests run together, and why."""

    decided_by: Literal["proof", "trial", "settings", "run"]
    verdict: Literal["independent", "mixed", "unknown"]
    reason: str
    node: str | None = Field(description="the deciding node")
    op_type: str | None
    input_axes: dict[str, int | None]
    output_axes: dict[str, int | None]

    @classmethod
    def of(cls, batching: Batching) -> Self:
        """Describe the decision."""
        return cls(
            decided_by=batching.decided_by,
            verdict=batching.verdict,
            reason=batching.reason,
            node=batching.node or None,
            op_type=batching.op_type or None,
            input_axes=dict(batching.input_axes),
            output_axes=dict(batching.output_axes),
        )


class SessionStats(StatsPart):
    """Session options from the model's settings."""

    graph_optimization: Optimization = Field(description="as the session reports it")
    wanted_providers: list[str] = Field(description="providers in panther.toml; empty: those of the server's device")
    custom_ops: list[str] = Field(description="custom operator libraries in the model's folder")

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """Describe the choices for a loaded model."""
        session = serving.model.session
        return cls(
            graph_optimization=session.choices.level_of(session.ort),
            wanted_providers=list(session.choices.providers),
            custom_ops=serving.settings.custom_ops,
        )


class InstanceStats(StatsPart):
    """One instance of a model: a session on one device."""

    device: str = Field(description="cpu, or cuda: and the number of the device")
    runs: int = Field(description="since the model was loaded, in the worker that answers")
    cuda: CudaReport | None

    @classmethod
    def of(cls, serving: Serving) -> list[Self]:
        """Describe the instances of a loaded model."""
        counted = zip(serving.model.instances, serving.batcher.runs_by_instance, strict=True)
        return [cls(device=instance.device, runs=runs, cuda=instance.cuda) for instance, runs in counted]


class RuntimeStats(StatsPart):
    """Execution providers and options of the session, read back from it."""

    provider: str
    providers: list[str]
    device_reason: str | None
    placement: list[PlacementStats] | None = Field(description="nodes by provider; null: not reported")
    cuda: CudaReport | None = Field(description="of the first instance")
    instances: list[InstanceStats] = Field(description="what takes batches from the model's queue")
    num_threads: int = Field(description="of each instance")
    session: SessionStats
    batched: bool
    batching: BatchingStats
    load_duration_s: float
    onnxruntime: str

    @classmethod
    def of(cls, serving: Serving) -> Self:
        """Describe the session of a loaded model."""
        model = serving.model
        return cls(
            provider=model.provider,
            providers=model.providers,
            device_reason=model.device_reason,
            placement=None if model.placement is None else PlacementStats.of(model.placement),
            cuda=model.cuda,
            instances=InstanceStats.of(serving),
            num_threads=model.num_threads,
            session=SessionStats.of(serving),
            batched=model.batched,
            batching=BatchingStats.of(model.batching),
            load_duration_s=round(model.load_duration_s, 4),
            onnxruntime=ort.__version__,
        )


class VersionStats(StatsPart):
    """A version that is not loaded: its state and the reason."""

    name: str
    version: str
    served_by_default: bool
    state: State
    reason: str | None


class LiveVersionStats(VersionStats):
    """Live counters of a loaded version, for a page that polls them every few seconds."""

    loaded_at_s: float | None = Field(description="seconds since 1970")
    live: LiveStats


class LoadedStats(VersionStats):
    """A loaded version; fields from its card are null without a card."""

    has_card: bool
    card_problem: str | None
    outputs: list[OutputStats] | None = None
    layers: list[LayerStats] | None
    quantized_layers: list[QuantizedLayer] | None = Field(
        description="quantized linear layers, embeddings and convolutions"
    )
    convolutions: list[Convolution] | None = Field(description="sketched convolutions")
    embeddings: list[Embedding] | None = Field(description="low-rank embeddings")
    totals: TotalStats | None
    multiply_adds_per_row: MultiplyAddStats | None
    bytes: ByteStats
    schema_version: str | None
    created_at: str | None
    check: Check | None
    storage: Storage | None
    compression_curve: CompressionCurve | None = Field(description="models that a compression to a budget considered")
    latency: LatencyStats | None
    training: Training | None
    versions: dict[str, str] | None
    runtime: RuntimeStats
    loaded_at_s: float | None = Field(description="seconds since 1970")
    live: LiveStats


def version_stats(entry: Entry, version: Version, counters: ServerCounters, *, live_only: bool = False) -> VersionStats:
    """Describe one version of a model.

    Args:
        entry, version: Entry and version in the repository.
        counters: Counters of all workers.
        live_only: Leave out fields that are constant while the version is loaded.
    """
    common: dict[str, Any] = {
        "name": entry.name,
        "version": version.version,
        "served_by_default": version.version == entry.served,
        "state": version.state,
        "reason": version.reason or None,
    }
    serving = version.serving
    if serving is None:
        return VersionStats(**common)
    key = entry.name, version.version
    counted = counters.statistics.get(key) or serving.batcher.statistics
    live = LiveStats.of(counted, counters.depths[key])
    if live_only:
        return LiveVersionStats(**common, loaded_at_s=version.loaded_at, live=live)
    return LoadedStats(
        **common,
        has_card=serving.model.card is not None,
        card_problem=serving.model.card_problem,
        bytes=ByteStats.of(serving),
        **card_fields(serving.model.card),
        runtime=RuntimeStats.of(serving),
        loaded_at_s=version.loaded_at,
        live=live,
    )


class DeviceStats(StatsPart):
    """The requested device and the available one."""

    requested: str
    providers: list[str] | None
    reason: str | None
    available_providers: list[str]
    gpu: Gpu | None

    @classmethod
    def of(cls, state: AppState) -> Self:
        """Describe the device of this worker."""
        device = state.loader.device
        return cls(
            requested=state.settings.device,
            providers=list(device.providers) if device else None,
            reason=device.reason if device else state.loader.device_problem,
            available_providers=ort.get_available_providers(),
            gpu=device.gpu() if device else None,
        )


class ServerStats(StatsPart):
    """The server as a whole."""

    version: str
    ready: bool
    not_ready_because: str | None
    started_at_s: float
    uptime_s: float
    device: DeviceStats
    model_control: str
    workers: int
    num_threads: int
    resident_bytes: int | None = Field(description="resident memory of all workers, including libraries")
    cpu_seconds: float | None
    failures_without_model: dict[str, int] = Field(description="failed requests that matched no model, by reason")
    onnxruntime: str

    @classmethod
    def of(cls, state: AppState, counters: ServerCounters) -> Self:
        """Describe the server with the counters of all workers."""
        problem = state.not_ready_because()
        resident = counters.process.get("process_resident_memory_bytes")
        failures: Counter[str] = Counter()
        for (_, reason), count in counters.unrouted.items():
            failures[reason] += count
        return cls(
            version=app.__version__,
            ready=problem is None,
            not_ready_because=problem,
            started_at_s=state.started_at_s,
            uptime_s=round(time.monotonic() - state.started_clock, 3),
            device=DeviceStats.of(state),
            model_control=state.settings.model_control,
            workers=state.settings.workers,
            num_threads=state.loader.num_threads,
            resident_bytes=None if resident is None else int(resident),
            cpu_seconds=counters.process.get("process_cpu_seconds_total"),
            failures_without_model=dict(failures),
            onnxruntime=ort.__version__,
        )


class ModelStatsAnswer(StatsPart):
    """The versions of one model."""

    models: list[LoadedStats | VersionStats]


class StatsAnswer(StatsPart):
    """The server, and every version of every model."""

    server: ServerStats
    models: list[LoadedStats | LiveVersionStats | VersionStats]


def stats_document(
    answer: StatsAnswer | ModelStatsAnswer, *, histograms: bool = False, nodes: bool = False
) -> dict[str, Any]:
    """The response as JSON; histograms and node names only if the request includes them."""
    version: dict[str, Any] = {}
    if not histograms:
        version["live"] = {"histograms"}
    if not nodes:
        version["runtime"] = {"placement": {"__all__": {"node_names"}}}
    return answer.model_dump(mode="json", exclude={"models": {"__all__": version}})
