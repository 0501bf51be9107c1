"""``/stats?format=table``: the same figures for a terminal."""

import io
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 118
UNKNOWN = "unknown"


def stats_table(document: dict[str, Any]) -> str:
    """The answer of ``/stats`` as plain text; what is not known is said to be."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, no_color=True, force_terminal=False, highlight=False, markup=False)
    server = document.get("server")
    if server is not None:
        state = "ready" if server["ready"] else f"NOT READY: {server['not_ready_because']}"
        console.print(
            f"panther {server['version']}: {state}; up {server['uptime_s']:.0f} s; {server['workers']} workers, "
            f"{server['num_threads']} threads each; resident {_bytes(server['resident_bytes'])}; "
            f"onnxruntime {server['onnxruntime']}"
        )
    for report in document["models"]:
        console.print()
        _version(console, report)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _version(console: Console, report: dict[str, Any]) -> None:
    mark = " (default)" if report["served_by_default"] else ""
    console.print(f"{report['name']} version {report['version']}{mark}: {report['state']}{_because(report['reason'])}")
    if "live" not in report:
        return
    if report["card_problem"]:
        console.print(f"card: {report['card_problem']}")
    if report["layers"]:
        console.print(_layers(report))
    elif not report["has_card"]:
        console.print("parameters, error and accuracy are unknown: the file has no card")
    for line in (_size(report), _quality(report), _latency(report), _live(report["live"], report["runtime"])):
        if line:
            console.print(Text(line))


def _layers(report: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("layer", "shape", "L·k", "plan"):
        table.add_column(heading)
    for heading in ("dense", "learnable", "saved", "+fixed", "saved", "multiply-adds"):
        table.add_column(heading, justify="right")
    for layer in report["layers"]:
        adds = layer["multiply_adds_per_row"]
        shape = f"{layer['in_features']}→{layer['out_features']}"
        rank = f"{layer['num_terms']}·{layer['low_rank']}"
        part = _percent(100 * adds["planned"] / adds["dense"]) if adds["dense"] else UNKNOWN
        table.add_row(layer["name"], shape, rank, layer["plan"], *_counts(layer["parameters"]), part)
    table.add_section()
    adds = report["multiply_adds_per_row"]
    part = _percent(100 * adds["planned"] / adds["dense"]) if adds["dense"] else UNKNOWN
    table.add_row("sum", "", "", "", *_counts(report["totals"]["sketched_layers"]), part)
    table.add_row("model", "", "", "", *_counts(report["totals"]["model"]), "")
    return table


def _counts(parameters: dict[str, Any]) -> list[str]:
    # Of the counts themselves: rounding what is rounded already is off by a tenth now and then.
    dense, learnable, both = (parameters[name] for name in ("dense", "learnable", "learnable_and_fixed"))
    return [f"{dense:,}", f"{learnable:,}", _saved(dense, learnable), f"{both:,}", _saved(dense, both)]


def _saved(dense: int, ours: int) -> str:
    return _percent(100 * (1 - ours / dense) if dense else None)


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}%"


def _bytes(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,} bytes"


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def _size(report: dict[str, Any]) -> str:
    size = report["bytes"]
    return (
        f"file {_bytes(size['file_bytes'])}; dense weights {_bytes(size['dense_twin_weight_bytes'])}; "
        f"resident {_bytes(size['resident_bytes'])}"
    )


def _quality(report: dict[str, Any]) -> str:
    parts = []
    check, training = report["check"], report["training"] or {}
    if check:
        parts.append(f"export error {check['max_relative_error']:.1e} (allowed {check['tolerance']:.0e})")
    for whose, metrics in (("trained", training.get("metrics")), ("dense twin", training.get("dense_twin_metrics"))):
        parts += [f"{whose} {name} {value:.4g}" for name, value in (metrics or {}).items()]
    if training.get("dataset"):
        parts.append(f"on {training['dataset']}")
    return "; ".join(parts)


def _latency(report: dict[str, Any]) -> str:
    latency = report["latency"]
    if latency is None:
        return "latency against dense: unknown"
    cells = [
        f"batch {size}: {ours:,.0f} µs, {ratio:.2f} of dense"
        for size, ours, ratio in zip(
            latency["batch_sizes"], latency["median_us"], latency["ratio_to_dense_twin"], strict=True
        )
    ]
    return f"one run on {latency['device']}, {latency['num_threads']} threads: {'; '.join(cells)}"


def _live(live: dict[str, Any], runtime: dict[str, Any]) -> str:
    head = f"{runtime['provider']}: {live['requests']:,} requests, {live['rows']:,} rows, {live['failed']:,} failed"
    if not live["succeeded"]:
        return head
    spread = live["percentiles_ms"]
    times = "; ".join(
        f"{name} {'/'.join(f'{value:.3g}' for value in spread[key].values())}"
        for name, key in (("request", "request"), ("queue", "queue"), ("compute", "compute_infer"))
    )
    batch = UNKNOWN if live["mean_batch_rows"] is None else live["mean_batch_rows"]
    return f"{head}; batch {batch}; p50/p90/p99 in ms: {times}"
