"""The figures of the whole server: what its workers count, added up."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import ProcessCollector

from app.statistics import Statistics

_PROCESS = ProcessCollector(registry=None)
_EARLIEST = "process_start_time_seconds"


@dataclass
class Figures:
    """Figures of all workers.

    Attributes:
        statistics: by model and version.
        unrouted: failed requests that met no model, by protocol and reason.
        depths: requests that wait, by model and version.
        loads: of models, by name and outcome.
        process: prometheus_client's figures of a process; sums over the workers that are there, the start of the
            first of them, and the processor seconds of those that were, too.
        workers: how many answered.
    """

    statistics: dict[tuple[str, str], Statistics] = field(default_factory=dict)
    unrouted: Counter[tuple[str, str]] = field(default_factory=Counter)
    depths: Counter[tuple[str, str]] = field(default_factory=Counter)
    process: dict[str, float] = field(default_factory=dict)
    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    workers: int = 0


def process_figures() -> dict[str, float]:
    """This process by prometheus_client's names; empty where the kernel has no /proc."""
    return {sample.name: sample.value for metric in _PROCESS.collect() for sample in metric.samples}


def add_up(present: Iterable[dict[str, Any]], past: Iterable[dict[str, Any]] = ()) -> Figures:
    """Add up what workers told.

    Args:
        present: of workers that answered.
        past: the last word of workers that did not; what they counted stays counted, what they held is gone.
    """
    total = Figures()
    for told in present:
        total.workers += 1
        _count(total, told)
        for name, version, depth in told["depths"]:
            total.depths[name, version] += depth
        for name, value in told["process"].items():
            known = total.process.get(name)
            if known is None:
                total.process[name] = value
            else:
                total.process[name] = min(known, value) if name == _EARLIEST else known + value
    for told in past:
        _count(total, told)
        for name, value in told["process"].items():
            if name.endswith("_total") and name in total.process:
                total.process[name] += value
    return total


def _count(total: Figures, told: dict[str, Any]) -> None:
    for name, version, snapshot in told["statistics"]:
        total.statistics.setdefault((name, version), Statistics()).merge(snapshot)
    for name, outcome, count in told["loads"]:
        total.loads[name, outcome] += count
    for protocol, reason, count in told["unrouted"]:
        total.unrouted[protocol, reason] += count
