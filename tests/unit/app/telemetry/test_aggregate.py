"""Counters of the workers, and their sum."""

import json

import pytest

from app.telemetry.aggregate import aggregate, merge, process_counters
from app.telemetry.statistics import GRPC, OIP, PLAIN, SUCCESS, Statistics


def told(successes=0, oip=0, failures=(), depth=0, cpu=1.0, rows=1, dropped=0):
    statistics = Statistics()
    for index in range(successes):
        statistics.succeeded((1_000_000, 1000, 10, 500_000, 10))
        statistics.rows += rows
        statistics.executed(rows, 10, 500_000)
        if index < oip:
            statistics.parts[OIP].success += 1
            statistics.parts[OIP].rows += rows
    for reason, protocol in failures:
        statistics.failed(reason, 7, protocol)
    process = {
        "process_cpu_seconds_total": cpu,
        "process_resident_memory_bytes": 100,
        "process_start_time_seconds": cpu,
    }
    counters = {
        "statistics": [["m", "1", statistics.snapshot()]],
        "unrouted": [["plain", "ModelNotFoundError", 2]],
        "loads": [],
        "process": process,
        "depths": [["m", "1", depth]],
        "dropped_log_lines": dropped,
    }
    return json.loads(json.dumps(counters))


def test_counts_are_summed_and_outcomes_split_by_protocol():
    total = aggregate(
        [told(3, oip=1, failures=[("A", OIP), ("A", PLAIN)], depth=2), told(2, failures=[("B", GRPC)], depth=1)]
    )
    statistics = total.statistics["m", "1"]
    assert statistics.outcomes() == {
        (PLAIN, SUCCESS): 4, (OIP, SUCCESS): 1, (GRPC, SUCCESS): 0,
        (PLAIN, "A"): 1, (OIP, "A"): 1, (GRPC, "A"): 0, (PLAIN, "B"): 0, (OIP, "B"): 0, (GRPC, "B"): 1,
    }  # fmt: skip
    assert statistics.success.count == 5
    assert statistics.success.quantile_ns(0.5) == pytest.approx(1e6, rel=0.13)
    assert statistics.rows_by_protocol() == {PLAIN: 4, OIP: 1, GRPC: 0}
    assert set(aggregate([told(1)]).statistics["m", "1"].rows_by_protocol()) == {PLAIN, OIP}  # nothing by gRPC
    assert (statistics.rows, statistics.batches[1][0]) == (5, 5)
    assert total.depths["m", "1"] == 3
    assert total.unrouted["plain", "ModelNotFoundError"] == 4
    assert total.workers == 2


def test_workers_of_the_past_keep_what_they_counted_and_hold_nothing():
    total = aggregate([told(1, depth=1, cpu=5.0)], [told(4, depth=9, cpu=3.0)])
    assert total.statistics["m", "1"].success.count == 5
    assert total.depths["m", "1"] == 1
    assert total.workers == 1
    assert total.process == {
        "process_cpu_seconds_total": 8.0, "process_resident_memory_bytes": 100, "process_start_time_seconds": 5.0,
    }  # fmt: skip


def test_this_process_has_counters():
    counters = process_counters()
    assert counters["process_resident_memory_bytes"] > 10e6
    assert counters["process_cpu_seconds_total"] > 0


def test_counters_of_workers_that_have_ended_are_summed_to_one():
    gone = None
    for successes in (1, 2, 3):
        gone = merge(gone, told(successes, depth=5, cpu=2.0, dropped=1))
    total = aggregate([told(4)], [json.loads(json.dumps(gone))])
    assert total.statistics["m", "1"].success.count == 10
    assert (total.depths["m", "1"], total.workers, total.dropped_log_lines) == (0, 1, 3)
    assert total.unrouted["plain", "ModelNotFoundError"] == 8
    assert total.process["process_cpu_seconds_total"] == 7.0
    assert total.process["process_resident_memory_bytes"] == 100
