"""Live figures of one model version: plain integers, cheap to raise, and cheap to add up over workers."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """One more, which took ``ns``."""
        self.count += 1
        self.ns += ns


DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class Statistics:
    """Counters since the start of the process.

    ``success`` and ``fail`` count requests from the first look at the body to the last byte of the answer; a request's
    ``compute_infer`` is the whole run of the batch that it was in. ``rows`` are rows of successful requests,
    ``executions`` runs of the model. ``batches`` maps rows in a run to [runs, input ns, infer ns, output ns].
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    rows: int = 0
    executions: int = 0
    executed_rows: int = 0
    last_inference_ms: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    batches: dict[int, list[int]] = field(default_factory=dict)

    def executed(self, rows: int, input_ns: int, infer_ns: int) -> None:
        """One run of the model ended."""
        self.executions += 1
        self.executed_rows += rows
        self.last_inference_ms = int(time.time() * 1000)
        batch = self.batches.get(rows)
        if batch is None:
            self.batches[rows] = [1, input_ns, infer_ns, 0]
        else:
            batch[0] += 1
            batch[1] += input_ns
            batch[2] += infer_ns

    def failed(self, reason: str, ns: int) -> None:
        """One request ended with an error."""
        self.fail.add(ns)
        self.failures[reason] += 1

    def snapshot(self) -> dict[str, Any]:
        """Everything as plain data, to be sent to another worker."""
        data: dict[str, Any] = {name: [getattr(self, name).count, getattr(self, name).ns] for name in DURATIONS}
        data.update(
            rows=self.rows,
            executions=self.executions,
            executed_rows=self.executed_rows,
            last_inference_ms=self.last_inference_ms,
            failures=dict(self.failures),
            batches=[[rows, *figures] for rows, figures in self.batches.items()],
        )
        return data

    def merge(self, data: dict[str, Any]) -> None:
        """Add another worker's snapshot."""
        for name in DURATIONS:
            duration = getattr(self, name)
            count, ns = data[name]
            duration.count += count
            duration.ns += ns
        self.rows += data["rows"]
        self.executions += data["executions"]
        self.executed_rows += data["executed_rows"]
        self.last_inference_ms = max(self.last_inference_ms, data["last_inference_ms"])
        self.failures.update(data["failures"])
        for rows, *figures in data["batches"]:
            mine = self.batches.setdefault(rows, [0, 0, 0, 0])
            self.batches[rows] = [left + right for left, right in zip(mine, figures, strict=True)]
