"""Counters of the whole server: the sum over all workers.

See docs/decisions/0024-gather-counters-on-request.md.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import ProcessCollector

from app.telemetry.statistics import Statistics

_PROCESS = ProcessCollector(registry=None)
_EARLIEST = "process_start_time_seconds"


@dataclass
class ServerCounters:
    """Counters of all workers.

    Attributes:
        statistics: Counters by model and version.
        unrouted: Failed requests that matched no model, by protocol and reason.
        depths: Requests in the queue, by model and version.
        loads: Loads of models, by name and outcome.
        process: Process metrics of prometheus_client: sums over the running workers, the earliest start time, and the
            processor seconds including those of ended workers.
        workers: Number of workers that responded.
        dropped_log_lines: Log lines that were not written, because the log was not read or could not be written.
    """

    statistics: dict[tuple[str, str], Statistics] = field(default_factory=dict)
    unrouted: Counter[tuple[str, str]] = field(default_factory=Counter)
    depths: Counter[tuple[str, str]] = field(default_factory=Counter)
    process: dict[str, float] = field(default_factory=dict)
    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    workers: int = 0
    dropped_log_lines: int = 0


def process_counters() -> dict[str, float]:
    """Memory, processor time and files of this process by prometheus_client's names; empty without ``/proc``."""
    return {sample.name: sample.value for metric in _PROCESS.collect() for sample in metric.samples}


def aggregate(present: Iterable[dict[str, Any]], past: Iterable[dict[str, Any]] = ()) -> ServerCounters:
    """Sum the counters of workers.

    Args:
        present: Counters of the workers that responded.
        past: Last known counters of the other workers: their totals count, but not their queues and memory.
    """
    total = ServerCounters()
    for counters in present:
        total.workers += 1
        _add(total, counters)
        for name, version, depth in counters["depths"]:
            total.depths[name, version] += depth
        for name, value in counters["process"].items():
            known = total.process.get(name)
            if known is None:
                total.process[name] = value
            else:
                total.process[name] = min(known, value) if name == _EARLIEST else known + value
    for counters in past:
        _add(total, counters)
        for name, value in counters["process"].items():
            if name.endswith("_total") and name in total.process:
                total.process[name] += value
    return total


def merge(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Sum the counters of two ended workers, as plain data in the format of a worker's report."""
    total = ServerCounters()
    for counters in (one, other):
        if counters is not None:
            _add(total, counters)
            for name, value in counters["process"].items():
                if name.endswith("_total"):
                    total.process[name] = total.process.get(name, 0) + value
    return {
        "statistics": [[*key, item.snapshot()] for key, item in total.statistics.items()],
        "unrouted": [[*key, count] for key, count in total.unrouted.items()],
        "loads": [[*key, count] for key, count in total.loads.items()],
        "process": total.process,
        "depths": [],
        "dropped_log_lines": total.dropped_log_lines,
    }


def _add(total: ServerCounters, counters: dict[str, Any]) -> None:
    total.dropped_log_lines += counters["dropped_log_lines"]
    for name, version, snapshot in counters["statistics"]:
        total.statistics.setdefault((name, version), Statistics()).merge(snapshot)
    for name, outcome, count in counters["loads"]:
        total.loads[name, outcome] += count
    for protocol, reason, count in counters["unrouted"]:
        total.unrouted[protocol, reason] += count
