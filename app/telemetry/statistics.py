"""Counters of one model version: plain integers, cheap to increment and to sum over workers.

The times of successful requests are noted first, and counted in bulk.
See docs/decisions/0095-times-are-counted-in-bulk.md.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.telemetry.histogram import Histogram


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration."""

    count: int = 0
    ns: int = 0

    def add(self, ns: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Count durations, in nanoseconds."""
        self.count += len(ns)
        self.ns += int(ns.sum())

    def plain(self) -> list[int]:
        """The duration as plain data."""
        return [self.count, self.ns]

    def merge(self, data: list[int]) -> None:
        """Add a duration from plain data."""
        self.count += data[0]
        self.ns += data[1]


PLAIN, OIP, GRPC = "plain", "oip", "grpc"
"""Protocols: the plain API, and the Open Inference Protocol over HTTP and over gRPC."""
_PARTS = (OIP, GRPC)
SUCCESS = "success"
TIMES = ("success", "queue", "compute_input", "compute_infer", "compute_output")
"""Times of a successful request, in the order of the argument of ``Statistics.succeeded``."""
_MOST_NOTED = 256
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class ProtocolCounters:
    """Counters of a version for one protocol.

    Attributes:
        success: Number of requests that succeeded.
        rows: Rows of these requests.
        failures: Number of failed requests, by reason.
    """

    success: int = 0
    rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def snapshot(self) -> list[Any]:
        """All counters as plain data."""
        return [self.success, self.rows, dict(self.failures)]

    def merge(self, data: list[Any]) -> None:
        """Add the counters of another worker."""
        self.success += data[0]
        self.rows += data[1]
        self.failures.update(data[2])


@dataclass(slots=True)
class Statistics:
    """Counters since the start of the process; the fields are the numbers of ``/stats`` and ``/metrics``.

    The times of ``success`` and ``fail`` last from the start of decoding to the last byte of the response; a request's
    ``compute_infer`` is the whole run of its batch. ``rows`` are rows of successful requests, ``executions`` runs of
    the model. ``failures`` counts by reason; ``parts`` has the requests of protocols other than the plain API.
    ``mismatched_runs`` are runs whose outputs had a different number of rows than the inputs. ``batches`` maps rows in
    a run to [runs, input ns, infer ns, output ns]. ``noted`` has the times of successful requests that are not counted
    yet; ``settle`` and ``snapshot`` count them.
    """

    success: Histogram = field(default_factory=Histogram)
    fail: Duration = field(default_factory=Duration)
    queue: Histogram = field(default_factory=Histogram)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Histogram = field(default_factory=Histogram)
    compute_output: Duration = field(default_factory=Duration)
    rows: int = 0
    executions: int = 0
    executed_rows: int = 0
    last_inference_ms: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    parts: dict[str, ProtocolCounters] = field(default_factory=lambda: {name: ProtocolCounters() for name in _PARTS})
    batches: dict[int, list[int]] = field(default_factory=dict)
    mismatched_runs: int = 0
    noted: list[tuple[int, ...]] = field(default_factory=list)

    def succeeded(self, times: tuple[int, ...]) -> None:
        """Note the times of a successful request, in nanoseconds; see ``TIMES``."""
        self.noted.append(times)
        if len(self.noted) >= _MOST_NOTED:
            self.settle()

    def settle(self) -> None:
        """Count the noted times."""
        if self.noted:
            noted, self.noted = np.array(self.noted, np.int64), []
            for name, column in zip(TIMES, noted.T, strict=True):
                getattr(self, name).add(column)

    def executed(self, rows: int, input_ns: int, infer_ns: int, output_ns: int = 0) -> None:
        """Count a finished run of the model."""
        self.executions += 1
        self.executed_rows += rows
        self.last_inference_ms = int(time.time() * 1000)
        batch = self.batches.get(rows)
        if batch is None:
            self.batches[rows] = [1, input_ns, infer_ns, output_ns]
        else:
            batch[0] += 1
            batch[1] += input_ns
            batch[2] += infer_ns
            batch[3] += output_ns

    def failed(self, reason: str, ns: int, protocol: str = PLAIN) -> None:
        """Count a request that ended with an error."""
        self.fail.count += 1
        self.fail.ns += ns
        self.failures[reason] += 1
        if protocol != PLAIN:
            self.parts[protocol].failures[reason] += 1

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Requests by protocol and outcome: ``success``, or the reason of the failure."""
        parts = self._shown_parts()
        counts = {(PLAIN, SUCCESS): self.success.count - sum(part.success for part in parts.values())}
        counts |= {(name, SUCCESS): part.success for name, part in parts.items()}
        for reason, count in self.failures.items():
            counts |= {(name, reason): part.failures[reason] for name, part in parts.items()}
            counts[PLAIN, reason] = count - sum(part.failures[reason] for part in parts.values())
        return counts

    def rows_by_protocol(self) -> dict[str, int]:
        """Rows of successful requests, by protocol."""
        parts = {name: part.rows for name, part in self._shown_parts().items()}
        return {PLAIN: self.rows - sum(parts.values()), **parts}

    def _shown_parts(self) -> dict[str, ProtocolCounters]:
        """All parts, without gRPC's if it had no request, as on a server without that port."""
        return {name: part for name, part in self.parts.items() if name != GRPC or part.success or part.failures}

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data, to be sent to another worker."""
        self.settle()
        data: dict[str, Any] = {name: getattr(self, name).plain() for name in DURATIONS}
        data.update(
            rows=self.rows,
            executions=self.executions,
            executed_rows=self.executed_rows,
            last_inference_ms=self.last_inference_ms,
            failures=dict(self.failures),
            parts={name: part.snapshot() for name, part in self.parts.items()},
            mismatched_runs=self.mismatched_runs,
            batches=[[rows, *batch] for rows, batch in self.batches.items()],
        )
        return data

    def merge(self, data: dict[str, Any]) -> None:
        """Add another worker's snapshot."""
        for name in DURATIONS:
            getattr(self, name).merge(data[name])
        self.rows += data["rows"]
        self.executions += data["executions"]
        self.executed_rows += data["executed_rows"]
        self.last_inference_ms = max(self.last_inference_ms, data["last_inference_ms"])
        self.failures.update(data["failures"])
        for name, part in data["parts"].items():
            self.parts[name].merge(part)
        self.mismatched_runs += data["mismatched_runs"]
        for rows, *batch in data["batches"]:
            mine = self.batches.setdefault(rows, [0, 0, 0, 0])
            self.batches[rows] = [left + right for left, right in zip(mine, batch, strict=True)]
