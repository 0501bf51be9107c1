"""Prometheus metrics, computed from the counters at each scrape; docs/metrics.md lists them.

Metrics cost nothing between scrapes. With several workers each metric covers all of them, whichever worker responds.

See docs/decisions/0025-metrics-from-counters-at-scrape.md.
See docs/decisions/0026-own-metric-names.md.
"""

from collections import Counter
from collections.abc import Iterable

import onnxruntime as ort
from prometheus_client import CollectorRegistry, Metric, PlatformCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder

import app
from app.repository.served_model import Serving
from app.repository.versions import State
from app.service.state import AppState
from app.telemetry.aggregate import ServerCounters
from app.telemetry.histogram import Histogram
from app.telemetry.statistics import Statistics

SECONDS_NS = tuple(round(step * 10**decade) for decade in range(4, 11) for step in (1.0, 2.5, 5.0))
"""Bounds of the histograms of times: from 10 µs to 50 s."""
BATCH_ROWS = tuple(2**power for power in range(11))

_MODEL = ["model", "version"]
_PLATFORM = PlatformCollector(registry=None)
_PROCESS_HELP = {
    "process_cpu_seconds_total": "Processor time of all workers in seconds.",
    "process_resident_memory_bytes": "Resident memory of all workers in bytes.",
    "process_virtual_memory_bytes": "Virtual memory of all workers in bytes.",
    "process_open_fds": "Open file descriptors of all workers.",
    "process_max_fds": "Limit of open file descriptors of all workers.",
    "process_start_time_seconds": "Start time of the first worker in seconds since 1970.",
}
_TIMES = (
    (
        "panther_request_seconds",
        "success",
        "Time of successful requests, from decoding to the last byte of the response.",
    ),
    ("panther_queue_seconds", "queue", "Time in the queue."),
    ("panther_compute_seconds", "compute_infer", "Run time of the batch of a request."),
)


class Collected:
    """Collector with the metrics of one scrape."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self._metrics


async def scrape(state: AppState, accept: str) -> tuple[bytes, str]:
    """Text of one scrape and its content type: OpenMetrics or the older format, according to ``accept``."""
    counters = await state.all_counters()
    registry = CollectorRegistry()
    registry.register(Collected(server_metrics(state, counters)))
    registry.register(Collected(model_metrics(state)))
    registry.register(Collected(live_metrics(counters, list(state.repository.statistics()))))
    registry.register(Collected(_PLATFORM.collect()))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def server_metrics(state: AppState, counters: ServerCounters) -> Iterable[Metric]:
    """Metrics of the server and its processes."""
    build = InfoMetricFamily("panther_build", "Versions of the server and the runtime.")
    build.add_metric([], {"version": app.__version__, "onnxruntime": ort.__version__})
    yield build
    ready = state.not_ready_because() is None
    yield GaugeMetricFamily("panther_ready", "Whether the server is ready, 0 or 1.", ready)
    live = state.stuck_because() is None
    yield GaugeMetricFamily("panther_live", "Whether the server is live, 0 or 1.", live)
    yield GaugeMetricFamily("panther_workers", "Number of workers that responded to this scrape.", counters.workers)
    yield GaugeMetricFamily("panther_workers_wanted", "Configured number of workers.", state.settings.workers)
    yield CounterMetricFamily(
        "panther_log_lines_dropped",
        "Log lines dropped because the log is not read or the disk is full.",
        counters.dropped_log_lines,
    )
    failing = state.mirroring is not None and state.mirroring.problem is not None
    yield GaugeMetricFamily("panther_mirror_failing", "Whether mirroring models from a URL fails, 0 or 1.", failing)
    unrouted = CounterMetricFamily(
        "panther_unrouted_requests", "Failed requests for unknown models or paths.", labels=["protocol", "outcome"]
    )
    for (protocol, outcome), count in sorted(counters.unrouted.items()):
        unrouted.add_metric([protocol, outcome], count)
    yield unrouted
    loads = CounterMetricFamily(
        "panther_model_loads", "Loads of model versions by outcome.", labels=["model", "outcome"]
    )
    for (name, outcome), count in sorted(counters.loads.items()):
        loads.add_metric([name, outcome], count)
    yield loads
    for name, text in _PROCESS_HELP.items():
        value = counters.process.get(name)
        if value is not None:
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, text, value)


def model_metrics(state: AppState) -> Iterable[Metric]:
    """Metrics of each version: state, file and savings, if known."""
    states = GaugeMetricFamily(
        "panther_model_state", "1 for the current state, 0 for the others.", labels=[*_MODEL, "state"]
    )
    info = InfoMetricFamily("panther_model", "Execution provider and options of a loaded version.", labels=_MODEL)
    gauges = {
        name: GaugeMetricFamily(f"panther_model_{name}", text, labels=_MODEL)
        for name, text in (
            ("file_bytes", "Size on disk in bytes."),
            ("dense_twin_weight_bytes", "Size of the dense twin's weights in bytes."),
            ("saved_bytes", "Size of the dense twin's weights minus the size on disk, in bytes."),
            ("resident_bytes", "Increase of one worker's resident memory by loading the model, in bytes."),
            ("load_seconds", "Duration of the load in seconds."),
            ("loaded_timestamp_seconds", "Time of the load in seconds since 1970."),
        )
    }
    parameters = GaugeMetricFamily(
        "panther_model_parameters", "Parameters of the whole model, by way of counting.", labels=[*_MODEL, "count"]
    )
    instances = GaugeMetricFamily(
        "panther_model_instances", "Instances of a loaded version in one worker.", labels=[*_MODEL, "device"]
    )
    failing = GaugeMetricFamily(
        "panther_model_load_failing", "Whether the version in the folder fails to load, 0 or 1.", labels=_MODEL
    )
    for entry in state.repository.entries.values():
        for item in entry.versions.values():
            labels = [entry.name, item.version]
            for one in State:
                states.add_metric([*labels, one.value], item.state is one)
            failing.add_metric(labels, item.failed)
            if item.serving is None:
                continue
            model = item.serving.model
            info.add_metric(
                labels,
                {
                    "provider": model.provider,
                    "batched": str(model.batched).lower(),
                    "default": str(item.version == entry.served).lower(),
                },
            )
            for device, number in Counter(instance.device for instance in model.instances).items():
                instances.add_metric([*labels, device], number)
            for name, value in {**_sizes(item.serving), "loaded_timestamp_seconds": item.loaded_at}.items():
                if value is not None:
                    gauges[name].add_metric(labels, value)
            if model.card is not None:
                for count, value in model.card.totals.model:
                    parameters.add_metric([*labels, count], value)
    yield from (states, failing, info, instances, *gauges.values(), parameters)


def _sizes(serving: Serving) -> dict[str, float | None]:
    model = serving.model
    twin = model.card.dense_twin.weight_bytes if model.card else None
    return {
        "file_bytes": model.file_bytes,
        "dense_twin_weight_bytes": twin,
        "saved_bytes": None if twin is None else twin - model.file_bytes,
        "resident_bytes": serving.resident_bytes,
        "load_seconds": model.load_duration_s,
    }


def live_metrics(counters: ServerCounters, loaded: Iterable[tuple[str, str]]) -> Iterable[Metric]:
    """Metrics of requests and runs of each loaded version."""
    requests = CounterMetricFamily("panther_requests", "Requests by outcome.", labels=[*_MODEL, "protocol", "outcome"])
    rows = CounterMetricFamily("panther_rows", "Rows of successful requests.", labels=[*_MODEL, "protocol"])
    codec = CounterMetricFamily(
        "panther_codec_seconds",
        "Time spent on decoding requests and encoding responses.",
        labels=[*_MODEL, "direction"],
    )
    running = CounterMetricFamily("panther_execution_seconds", "Run time of the model.", labels=_MODEL)
    failed = CounterMetricFamily("panther_failed_request_seconds", "Time spent on failed requests.", labels=_MODEL)
    depth = GaugeMetricFamily("panther_queue_depth", "Requests in the queue.", labels=_MODEL)
    mismatched = CounterMetricFamily(
        "panther_mismatched_runs", "Runs with a different number of rows in outputs and inputs.", labels=_MODEL
    )
    batches = HistogramMetricFamily("panther_batch_rows", "Rows of each run of the model.", labels=_MODEL)
    times = [HistogramMetricFamily(name, text, labels=_MODEL) for name, _, text in _TIMES]
    for key in loaded:
        statistics = counters.statistics.get(key)
        if statistics is None:
            continue
        labels = list(key)
        for (protocol, outcome), count in sorted(statistics.outcomes().items()):
            requests.add_metric([*labels, protocol, outcome], count)
        for protocol, count in statistics.rows_by_protocol().items():
            rows.add_metric([*labels, protocol], count)
        codec.add_metric([*labels, "input"], statistics.compute_input.ns / 1e9)
        codec.add_metric([*labels, "output"], statistics.compute_output.ns / 1e9)
        running.add_metric(labels, sum(infer_ns for _, _, infer_ns, _ in statistics.batches.values()) / 1e9)
        failed.add_metric(labels, statistics.fail.ns / 1e9)
        depth.add_metric(labels, counters.depths[key])
        mismatched.add_metric(labels, statistics.mismatched_runs)
        batches.add_metric(labels, _batch_buckets(statistics), statistics.executed_rows)
        for family, (_, name, _) in zip(times, _TIMES, strict=True):
            histogram: Histogram = getattr(statistics, name)
            family.add_metric(labels, _time_buckets(histogram), histogram.ns / 1e9)
    yield from (requests, rows, codec, running, failed, depth, mismatched, batches, *times)


def _time_buckets(histogram: Histogram) -> list[tuple[str, float]]:
    counts = histogram.at_most(SECONDS_NS)
    bounds = [str(bound / 1e9) for bound in SECONDS_NS]
    return [*zip(bounds, map(float, counts), strict=True), ("+Inf", float(histogram.count))]


def _batch_buckets(statistics: Statistics) -> list[tuple[str, float]]:
    sizes = {rows: batch[0] for rows, batch in statistics.batches.items()}
    counts = [float(sum(runs for rows, runs in sizes.items() if rows <= bound)) for bound in BATCH_ROWS]
    return [*zip(map(str, map(float, BATCH_ROWS)), counts, strict=True), ("+Inf", float(statistics.executions))]
