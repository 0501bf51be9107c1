"""The answer of ``/stats`` as OpenAPI describes it; docs/stats.md tells how each figure comes about.

A field that can be null is null where the figure is not known; no figure is 0 for that reason.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.card import Check, Storage, Training
from app.versions import State


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ParameterReduction(_Part):
    """How much less than dense, in percent, by each way of counting; below 0 where it is more."""

    learnable: float | None
    learnable_and_fixed: float | None


class ParameterCounts(_Part):
    """The three counts and their sum, never mixed up."""

    dense: int
    learnable: int
    fixed: int
    learnable_and_fixed: int
    reduction_percent: ParameterReduction


class LayerMultiplyAdds(_Part):
    """Multiply-adds for one row."""

    dense: int
    planned: int


class MultiplyAdds(LayerMultiplyAdds):
    """The same over all sketched layers."""

    reduction_percent: float | None


class LayerStats(_Part):
    """One sketched layer."""

    name: str
    in_features: int
    out_features: int
    num_terms: int
    low_rank: int
    bias: bool
    sketch: str | None
    plan: str = Field(description="two_products: (x·A)·B; dense: x·W; merged: within the layer that merged_into names")
    merged_into: str | None
    parameters: ParameterCounts
    multiply_adds_per_row: LayerMultiplyAdds


class Totals(_Part):
    """Sums over the sketched layers, and over the whole model."""

    sketched_layers: ParameterCounts
    model: ParameterCounts


class Bytes(_Part):
    """On disk and in memory."""

    file_bytes: int = Field(description="the file and its external data")
    dense_twin_weight_bytes: int | None
    reduction_percent: float | None = Field(description="of file_bytes against dense_twin_weight_bytes")
    loaded_weight_bytes: int | None = Field(description="all constants once the file is loaded, by the export")
    resident_bytes: int | None = Field(description="what the process grew by while the model was loaded and warmed up")


class LatencyStats(_Part):
    """The export's measurement against the dense twin; lists have one entry for each batch size."""

    device: str
    num_threads: int
    batch_sizes: list[int]
    median_us: list[float]
    dense_twin_median_us: list[float]
    ratio_to_dense_twin: list[float] = Field(description="below 1 is quicker than dense")


class Placement(_Part):
    """What one execution provider runs of the graph."""

    provider: str
    nodes: int
    op_types: dict[str, int] = Field(description="nodes by type")
    node_names: list[str] | None = Field(default=None, description="only where nodes=true asked for them")


class CudaStats(_Part):
    """How the model runs on CUDA."""

    device_id: int
    mode: Literal["graph", "bound", "host"] = Field(
        description="graph: one CUDA graph for each batch size; bound: node by node from buffers that stay; "
        "host: node by node from arrays of the host"
    )
    reason: str | None = Field(description="why not a quicker mode")
    batch_sizes: list[int] | None = Field(description="to which batches are padded")
    padded_to: list[int] | None = Field(
        description="for each of batch_sizes the one that its batches run at: itself, or a larger that is quicker"
    )
    buffer_bytes: int = Field(description="of the device, for inputs and outputs")
    tf32: bool
    tf32_max_relative_error: float | None = Field(
        description="of the outputs with TF32 against those without, over the largest, on random rows"
    )


class Runtime(_Part):
    """What the session really runs on."""

    provider: str
    providers: list[str]
    device_reason: str | None
    placement: list[Placement] | None = Field(description="which provider runs how many nodes; null: not told")
    cuda: CudaStats | None
    num_threads: int
    batched: bool
    load_duration_s: float
    onnxruntime: str


class Percentiles(_Part):
    """Milliseconds that 50, 90 and 99% of the requests did not exceed."""

    p50: float | None
    p90: float | None
    p99: float | None


class LivePercentiles(_Part):
    """Of the whole request, of its wait and of the run of its batch."""

    request: Percentiles
    queue: Percentiles
    compute_infer: Percentiles


class HistogramStats(_Part):
    """Buckets that are not empty."""

    total_ms: float
    upper_bounds_ms: list[float | None] = Field(description="null: no bound")
    counts: list[int]


class LiveHistograms(_Part):
    """Only where ``histograms=true`` asked for them."""

    request: HistogramStats
    queue: HistogramStats
    compute_infer: HistogramStats


class Live(_Part):
    """Counts since the start of the server, over all workers."""

    requests: int
    succeeded: int
    failed: int
    failures_by_reason: dict[str, int]
    waiting: int = Field(description="requests in the queue at this moment")
    rows: int
    executions: int
    executed_rows: int
    mean_batch_rows: float | None
    mean_request_ms: float | None
    mean_queue_ms: float | None
    mean_compute_input_ms: float | None
    mean_compute_infer_ms: float | None
    mean_compute_output_ms: float | None
    percentiles_ms: LivePercentiles
    last_inference_ms: int | None = Field(description="milliseconds since 1970")
    histograms: LiveHistograms | None = None


class VersionStats(_Part):
    """One version that is not loaded: where it stands, and why."""

    name: str
    version: str
    served_by_default: bool
    state: State
    reason: str | None


class LoadedStats(VersionStats):
    """One version that is loaded; what comes from its card is null where it has none."""

    has_card: bool
    card_problem: str | None
    layers: list[LayerStats] | None
    totals: Totals | None
    multiply_adds_per_row: MultiplyAdds | None
    bytes: Bytes
    schema_version: str | None
    created_at: str | None
    check: Check | None
    storage: Storage | None
    latency: LatencyStats | None
    training: Training | None
    versions: dict[str, str] | None
    runtime: Runtime
    loaded_at_s: float | None = Field(description="seconds since 1970")
    live: Live


class GpuStats(_Part):
    """The GPU of the worker that answers; versions are those of CUDA."""

    id: int
    name: str
    free_bytes: int
    total_bytes: int
    driver_version: str
    runtime_version: str


class DeviceStats(_Part):
    """What was asked for and what can be had."""

    requested: str
    providers: list[str] | None
    reason: str | None
    available_providers: list[str]
    gpu: GpuStats | None


class ServerStats(_Part):
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
    resident_bytes: int | None = Field(description="of all workers, the libraries included")
    cpu_seconds: float | None
    failures_without_model: dict[str, int] = Field(description="failed requests that met no model, by reason")
    onnxruntime: str


class ModelStatsAnswer(_Part):
    """A model's versions."""

    models: list[LoadedStats | VersionStats]


class StatsAnswer(ModelStatsAnswer):
    """The server, and every version of every model."""

    server: ServerStats
