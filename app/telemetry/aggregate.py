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
        statistics: by model and version.
        unrouted: failed requests that reached no model, by protocol and reason.
        depths: requests in the queue, by model and version.
        loads: of models, by name and outcome.
        process: prometheus_client's metrics of a process: sums over the running workers, the earliest start, and the
            processor seconds of workers that have ended, too.
        workers: how many answered.
        dropped_log_lines: log lines that were not written: the log was not read, or could not be written.
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
        present: counters of the workers that answered.
        past: last known counters of workers that did not: their totals stay, their queues and memory do not count.
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
    """Sum the counters of two workers that have ended, as plain data in the form in which a worker sends its own."""
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
