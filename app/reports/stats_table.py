"""``/stats?format=table``: the stats as plain text for a terminal."""

import io
from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.reports.live import LiveStats
from app.reports.savings import LatencyStats, ParameterStats
from app.reports.stats import (
    ByteStats,
    LiveVersionStats,
    LoadedStats,
    ModelStatsAnswer,
    RuntimeStats,
    ServerStats,
    StatsAnswer,
    VersionStats,
)

_WIDTH = 118
UNKNOWN = "unknown"


def stats_table(answer: StatsAnswer | ModelStatsAnswer) -> str:
    """Render the stats as text; null reads ``unknown``."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, no_color=True, force_terminal=False, highlight=False, markup=False)
    if isinstance(answer, StatsAnswer):
        console.print(_server(answer.server))
    versions = Counter(version.name for version in answer.models)
    for version in answer.models:
        console.print()
        _version(console, version, several=versions[version.name] > 1)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _server(server: ServerStats) -> str:
    state = "ready" if server.ready else f"NOT READY: {server.not_ready_because}"
    return (
        f"panther {server.version}: {state}; up {server.uptime_s:.0f} s; {_count(server.workers, 'worker')}, "
        f"{_count(server.num_threads, 'thread')} each; resident {_bytes(server.resident_bytes)}; "
        f"onnxruntime {server.onnxruntime}"
    )


def _version(console: Console, version: VersionStats, *, several: bool) -> None:
    mark = " (default version)" if several and version.served_by_default else ""
    reason = f": {version.reason}" if version.reason else ""
    console.print(f"{version.name} version {version.version}{mark}: {version.state}{reason}")
    if isinstance(version, LiveVersionStats):
        console.print(Text(_live(version.live)))
    if not isinstance(version, LoadedStats):
        return
    if version.card_problem:
        console.print(f"card: {version.card_problem}")
    if version.layers:
        console.print(_layers(version))
    elif not version.has_card:
        console.print("parameters, error and accuracy are unknown: the file has no card")
    lines = (
        _size(version.bytes),
        _quality(version),
        _latency(version.latency),
        _runtime(version.runtime),
        f"{version.runtime.provider}: {_live(version.live)}",
    )
    for line in filter(None, lines):
        console.print(Text(line))


def _layers(version: LoadedStats) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("layer", "shape", "L·k", "plan"):
        table.add_column(heading)
    for heading in ("dense", "learnable", "saved", "+fixed", "saved", "multiply-adds saved"):
        table.add_column(heading, justify="right")
    for layer in version.layers or ():
        adds = layer.multiply_adds_per_row
        shape = f"{layer.in_features}→{layer.out_features}"
        terms = f"{layer.num_terms}·{layer.low_rank}"
        counts = _counts(layer.parameters)
        table.add_row(layer.name, shape, terms, layer.plan, *counts, _saved(adds.planned, adds.dense))
    table.add_section()
    if version.totals and version.multiply_adds_per_row:
        total = version.multiply_adds_per_row
        counts = _counts(version.totals.sketched_layers)
        table.add_row("sum", "", "", "", *counts, _saved(total.planned, total.dense))
        table.add_row("model", "", "", "", *_counts(version.totals.model), "")
    return table


def _counts(parameters: ParameterStats) -> list[str]:
    # Computed from the counts: rounding the rounded reduction again is sometimes off by a tenth.
    dense, learnable, both = parameters.dense, parameters.learnable, parameters.learnable_and_fixed
    return [f"{dense:,}", f"{learnable:,}", _saved(learnable, dense), f"{both:,}", _saved(both, dense)]


def _saved(ours: int, dense: int) -> str:
    return f"{100 * (1 - ours / dense):.1f}%" if dense else UNKNOWN


def _bytes(value: int | None) -> str:
    """A size in a suitable unit, with factors of 1,000."""
    if value is None:
        return UNKNOWN
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit != "B" else f"{value} B"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(size: ByteStats) -> str:
    return (
        f"file {_bytes(size.file_bytes)}; dense weights {_bytes(size.dense_twin_weight_bytes)}; "
        f"resident {_bytes(size.resident_bytes)}"
    )


def _quality(version: LoadedStats) -> str:
    parts = []
    check, training = version.check, version.training
    if check:
        parts.append(f"export error {check.max_relative_error:.1e} (allowed {check.tolerance:.0e})")
    if training:
        for whose, metrics in (("trained", training.metrics), ("dense twin", training.dense_twin_metrics)):
            parts += [f"{whose} {name} {value:.4g}" for name, value in (metrics or {}).items()]
        parts += [f"unit of {output.name}: {output.unit}" for output in version.outputs or () if output.unit]
        if training.dataset:
            parts.append(f"on {training.dataset}")
    return "; ".join(parts)


def _latency(latency: LatencyStats | None) -> str:
    if latency is None:
        return f"latency against dense: {UNKNOWN}"
    cells = [
        f"batch {size}: {ours:,.0f} µs, {ratio:.2f} of dense"
        for size, ours, ratio in zip(latency.batch_sizes, latency.median_us, latency.ratio_to_dense_twin, strict=True)
    ]
    return f"one run on {latency.device}, {_count(latency.num_threads, 'thread')}: {'; '.join(cells)}"


def _runtime(runtime: RuntimeStats) -> str:
    """Choices in the model's settings, and the reason why it is not batched."""
    session, parts = runtime.session, []
    if session.graph_optimization != "all":
        parts.append(f"graph optimization {session.graph_optimization}")
    if session.wanted_providers:
        parts.append(f"providers {', '.join(session.wanted_providers)}")
    if session.custom_ops:
        parts.append(f"custom operators of {', '.join(session.custom_ops)}")
    if not runtime.batched:
        parts.append(f"not batched: {runtime.batching.reason}")
    return "; ".join(parts)


def _live(live: LiveStats) -> str:
    counts = f"{live.requests:,} requests, {live.rows:,} rows, {live.failed:,} failed"
    if not live.succeeded:
        return counts
    spread = live.percentiles_ms
    times = "; ".join(
        f"{name} {times.p50:.3g}/{times.p90:.3g}/{times.p99:.3g}"
        for name, times in (("request", spread.request), ("queue", spread.queue), ("compute", spread.compute_infer))
    )
    batch = UNKNOWN if live.mean_batch_rows is None else live.mean_batch_rows
    return f"{counts}; batch {batch}; p50/p90/p99 in ms: {times}"
