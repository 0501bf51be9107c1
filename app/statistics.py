"""Live figures of one model version: plain integers, cheap to raise, and cheap to add up over workers."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from app.histogram import Histogram


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """One more, which took ``ns``."""
        self.count += 1
        self.ns += ns

    def plain(self) -> list[int]:
        """As plain data."""
        return [self.count, self.ns]

    def merge(self, data: list[int]) -> None:
        """Add one given as plain data."""
        self.count += data[0]
        self.ns += data[1]


PLAIN, OIP = "plain", "oip"
PROTOCOLS = (PLAIN, OIP)
SUCCESS = "success"
HISTOGRAMS = ("success", "queue", "compute_infer")
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Statistics:
    """Counters since the start of the process.

    ``success`` and ``fail`` count requests from the first look at the body to the last byte of the answer; a request's
    ``compute_infer`` is the whole run of the batch that it was in. ``rows`` are rows of successful requests,
    ``executions`` runs of the model. ``failures`` counts by reason; the ``oip_…`` figures are the part that
    came by the Open Inference Protocol. ``batches`` maps rows in a run to [runs, input ns, infer ns, output ns].
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
    oip_success: int = 0
    oip_rows: int = 0
    oip_failures: Counter[str] = field(default_factory=Counter)
    batches: dict[int, list[int]] = field(default_factory=dict)

    def executed(self, rows: int, input_ns: int, infer_ns: int, output_ns: int = 0) -> None:
        """One run of the model ended."""
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

    def failed(self, reason: str, ns: int, *, oip: bool = False) -> None:
        """One request ended with an error."""
        self.fail.add(ns)
        self.failures[reason] += 1
        if oip:
            self.oip_failures[reason] += 1

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Requests by protocol and outcome: ``success``, or the reason of the failure."""
        counts = {(PLAIN, SUCCESS): self.success.count - self.oip_success, (OIP, SUCCESS): self.oip_success}
        for reason, count in self.failures.items():
            oip = self.oip_failures[reason]
            counts[PLAIN, reason] = count - oip
            counts[OIP, reason] = oip
        return counts

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data, to be sent to another worker."""
        data: dict[str, Any] = {name: getattr(self, name).plain() for name in DURATIONS}
        data.update(
            rows=self.rows,
            executions=self.executions,
            executed_rows=self.executed_rows,
            last_inference_ms=self.last_inference_ms,
            failures=dict(self.failures),
            oip_success=self.oip_success,
            oip_rows=self.oip_rows,
            oip_failures=dict(self.oip_failures),
            batches=[[rows, *figures] for rows, figures in self.batches.items()],
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
        self.oip_success += data["oip_success"]
        self.oip_rows += data["oip_rows"]
        self.oip_failures.update(data["oip_failures"])
        for rows, *figures in data["batches"]:
            mine = self.batches.setdefault(rows, [0, 0, 0, 0])
            self.batches[rows] = [left + right for left, right in zip(mine, figures, strict=True)]
