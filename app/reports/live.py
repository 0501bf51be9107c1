"""Live part of ``/stats``: counters of one model version since the start of the server, as means and percentiles."""

from typing import Generic, Self, TypeVar

from pydantic import Field

from app.reports.savings import StatsPart
from app.telemetry.histogram import BOUNDS_NS, Histogram
from app.telemetry.statistics import Duration, Statistics

Part = TypeVar("Part")


def _ms(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e6, 4)


def _mean_ms(duration: Duration | Histogram) -> float | None:
    return _ms(duration.ns / duration.count) if duration.count else None


class Percentiles(StatsPart):
    """50th, 90th and 99th percentile in milliseconds; null before the first request."""

    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> Self:
        """Read the percentiles from a histogram."""
        p50, p90, p99 = (_ms(histogram.quantile_ns(fraction)) for fraction in (0.5, 0.9, 0.99))
        return cls(p50=p50, p90=p90, p99=p99)


class Buckets(StatsPart):
    """The non-empty buckets of a histogram."""

    total_ms: float
    upper_bounds_ms: list[float | None] = Field(description="null: unbounded")
    counts: list[int]

    @classmethod
    def of(cls, histogram: Histogram) -> Self:
        """The non-empty buckets with their upper bounds."""
        filled = histogram.filled()
        bounds = [BOUNDS_NS[index] / 1e6 if index < len(BOUNDS_NS) else None for index, _ in filled]
        return cls(total_ms=histogram.ns / 1e6, upper_bounds_ms=bounds, counts=[count for _, count in filled])


class Times(StatsPart, Generic[Part]):
    """Distribution of the whole request time, the queue time, and the run time of the batch."""

    request: Part
    queue: Part
    compute_infer: Part


class LiveStats(StatsPart):
    """Counters over all workers since the start of the server; times are null before the first request."""

    requests: int
    succeeded: int
    failed: int
    failures_by_reason: dict[str, int]
    waiting: int = Field(description="requests in the queue now")
    rows: int
    executions: int
    executed_rows: int
    mean_batch_rows: float | None
    mean_request_ms: float | None
    mean_queue_ms: float | None
    mean_compute_input_ms: float | None
    mean_compute_infer_ms: float | None
    mean_compute_output_ms: float | None
    percentiles_ms: Times[Percentiles]
    last_inference_ms: int | None = Field(description="milliseconds since 1970")
    histograms: Times[Buckets] | None = Field(default=None, description="only with histograms=true")

    @classmethod
    def of(cls, counters: Statistics, waiting: int) -> Self:
        """Compute means and percentiles.

        Args:
            counters: Counters of the version, over all workers.
            waiting: Number of requests in its queues.
        """
        times = {"request": counters.success, "queue": counters.queue, "compute_infer": counters.compute_infer}
        means = times | {"compute_input": counters.compute_input, "compute_output": counters.compute_output}
        runs = counters.executions
        return cls(
            requests=counters.success.count + counters.fail.count,
            succeeded=counters.success.count,
            failed=counters.fail.count,
            failures_by_reason=dict(counters.failures),
            waiting=waiting,
            rows=counters.rows,
            executions=runs,
            executed_rows=counters.executed_rows,
            mean_batch_rows=round(counters.executed_rows / runs, 2) if runs else None,
            **{f"mean_{name}_ms": _mean_ms(duration) for name, duration in means.items()},
            percentiles_ms=Times(**{name: Percentiles.of(histogram) for name, histogram in times.items()}),
            last_inference_ms=counters.last_inference_ms or None,
            histograms=Times(**{name: Buckets.of(histogram) for name, histogram in times.items()}),
        )
