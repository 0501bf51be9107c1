"""What workers tell of themselves, and how it adds up."""

import asyncio
import json

import pytest

from app.figures import add_up, process_figures
from app.peers import Peers
from app.statistics import OIP, PLAIN, SUCCESS, Statistics


def told(successes=0, oip=0, failures=(), depth=0, cpu=1.0, rows=1):
    statistics = Statistics()
    for index in range(successes):
        statistics.success.add(1_000_000)
        statistics.queue.add(1000)
        statistics.compute_infer.add(500_000)
        statistics.rows += rows
        statistics.executed(rows, 10, 500_000)
        if index < oip:
            statistics.oip_success += 1
            statistics.oip_rows += rows
    for reason, is_oip in failures:
        statistics.failed(reason, 7, oip=is_oip)
    process = {
        "process_cpu_seconds_total": cpu,
        "process_resident_memory_bytes": 100,
        "process_start_time_seconds": cpu,
    }
    figures = {
        "statistics": [["m", "1", statistics.snapshot()]],
        "unrouted": [["plain", "ModelNotFoundError", 2]],
        "loads": [],
        "process": process,
        "depths": [["m", "1", depth]],
    }
    return json.loads(json.dumps(figures))


def test_counts_add_up_and_outcomes_split_by_protocol():
    total = add_up(
        [told(3, oip=1, failures=[("A", True), ("A", False)], depth=2), told(2, failures=[("B", True)], depth=1)]
    )
    statistics = total.statistics["m", "1"]
    assert statistics.outcomes() == {
        (PLAIN, SUCCESS): 4, (OIP, SUCCESS): 1, (PLAIN, "A"): 1, (OIP, "A"): 1, (PLAIN, "B"): 0, (OIP, "B"): 1,
    }  # fmt: skip
    assert statistics.success.count == 5
    assert statistics.success.quantile_ns(0.5) == pytest.approx(1e6, rel=0.13)
    assert (statistics.rows, statistics.oip_rows, statistics.batches[1][0]) == (5, 1, 5)
    assert total.depths["m", "1"] == 3
    assert total.unrouted["plain", "ModelNotFoundError"] == 4
    assert total.workers == 2


def test_workers_of_the_past_keep_what_they_counted_and_hold_nothing():
    total = add_up([told(1, depth=1, cpu=5.0)], [told(4, depth=9, cpu=3.0)])
    assert total.statistics["m", "1"].success.count == 5
    assert total.depths["m", "1"] == 1
    assert total.workers == 1
    assert total.process == {
        "process_cpu_seconds_total": 8.0, "process_resident_memory_bytes": 100, "process_start_time_seconds": 5.0,
    }  # fmt: skip


def test_this_process_has_figures():
    figures = process_figures()
    assert figures["process_resident_memory_bytes"] > 10e6
    assert figures["process_cpu_seconds_total"] > 0


def test_a_counter_that_was_shown_never_falls_when_a_worker_dies(tmp_path):
    async def scenario():
        async def answer(message):
            assert message == {"ask": "figures"}
            figures = told(4)
            other.remember(figures)
            return figures

        async def nobody(message):
            raise AssertionError(message)

        other, own = Peers(tmp_path, answer), Peers(tmp_path, nobody)
        await other.start()
        await own.start()
        seen = []
        present, past = await own.figures(told(1))
        seen.append((len(present), len(past), add_up([told(1), *present], past).statistics["m", "1"].success.count))
        await other.stop()
        present, past = await own.figures(told(2))
        seen.append((len(present), len(past), add_up([told(2), *present], past).statistics["m", "1"].success.count))
        await own.stop()
        return seen

    assert asyncio.run(scenario()) == [(1, 0, 5), (0, 1, 6)]
