import itertools
import math
import time

import numpy as np
import pytest

from panther.export.graph.lower import DENSE, TWO_PRODUCTS, Site, factor_constants
from panther.export.ort import Target, _cgroup_quota
from panther.export.planning import plan as planning
from panther.export.planning.measure import clock_of, median_us, resized, undisturbed_medians
from panther.export.planning.plan import better, choose, measure_site
from panther.nn import SKLinear


def site(name, in_features=64, out_features=48, rank=8):
    A, B = factor_constants(SKLinear(in_features, out_features, 1, rank))
    return Site([name], A, B, np.zeros(out_features, np.float32))


def decide(sites, requested="auto", **options):
    settings = {
        "input_shapes": {layer: (4, s.in_features) for s in sites for layer in s.layers},
        "example_batch": 4,
        "batch_sizes": (1, 8),
        "target": Target(),
        "precision": "float32",
        "other_weight_bytes": 100,
        "max_weight_bytes": None,
    }
    return choose(sites, requested, **(settings | options))


@pytest.fixture
def times(monkeypatch):
    """Injected times: times[in_features] = {plan: [one a batch size]}; calls are recorded under 'calls'."""
    table = {"calls": []}

    def measured(site, shapes, target, precision, budget_s):
        table["calls"].append((site.name, shapes, budget_s))
        return table[site.in_features]

    monkeypatch.setattr(planning, "measure_site", measured)
    return table


@pytest.mark.parametrize(
    ("two", "dense", "expected"),
    [
        ([10, 10], [20, 20], TWO_PRODUCTS),
        ([20, 20], [10, 10], DENSE),
        ([10.1, 10.1], [10, 10], TWO_PRODUCTS),  # within noise: the smaller
        ([10.3, 10], [10, 10], DENSE),
        ([10, 100], [12, 60], DENSE),  # 1.2 at worst against 1.67
        ([10, 60], [25, 50], TWO_PRODUCTS),  # 1.2 at worst against 2.5
    ],
)
def test_taken_is_the_plan_whose_worst_ratio_is_smallest(two, dense, expected):
    chosen, reason = better({TWO_PRODUCTS: two, DENSE: dense})
    assert chosen == expected
    assert reason.startswith("measured: ")


def test_plans_come_from_the_measured_times(times):
    times[64] = {TWO_PRODUCTS: [1, 1], DENSE: [2, 2]}
    times[80] = {TWO_PRODUCTS: [2, 2], DENSE: [1, 1]}
    sites = [site("a"), site("b", 80), site("c")]
    planned = decide(sites)
    assert [planned[name].plan for name in "abc"] == [TWO_PRODUCTS, DENSE, TWO_PRODUCTS]
    assert planned["b"].median_us == times[80]
    assert planned["a"].weight_bytes == 4 * 16 * (64 + 48)
    assert planned["b"].weight_bytes == 4 * 80 * 48
    # equal sites are measured once, at the batch sizes
    assert [call[:2] for call in times["calls"]] == [("a", ((1, 64), (8, 64))), ("b", ((1, 80), (8, 80)))]


def test_a_plan_by_layer_and_auto_for_the_rest(times):
    times[64] = {TWO_PRODUCTS: [1, 1], DENSE: [2, 2]}
    planned = decide([site("a"), site("b")], {"a": "dense"})
    assert (planned["a"].plan, planned["a"].reason, planned["a"].median_us) == (DENSE, "as requested", {})
    assert planned["b"].plan == TWO_PRODUCTS
    assert len(times["calls"]) == 1
    with pytest.raises(ValueError, match=r"plan names layer 'z'; the sketched layers are \['a'\]"):
        decide([site("a")], {"z": "dense"})
    with pytest.raises(ValueError, match=r"plan \('fast'\) must be"):
        decide([site("a")], {"a": "fast"})


def test_what_is_far_smaller_is_not_measured(times):
    (planned,) = decide([site("a", 2048, 2048, 4)]).values()
    assert (planned.plan, planned.reason, planned.median_us) == (TWO_PRODUCTS, "dense is far larger", {})
    assert times["calls"] == []


def test_a_limit_on_bytes_takes_back_what_loses_least(times):
    times[64] = {TWO_PRODUCTS: [12, 12], DENSE: [10, 10]}
    times[80] = {TWO_PRODUCTS: [90, 90], DENSE: [10, 10]}
    sites = [site("a"), site("b", 80)]
    dense_a, two_a, dense_b, two_b = 4 * 64 * 48, 4 * 16 * 112, 4 * 80 * 48, 4 * 16 * 128
    for limit, expected in (
        (100 + dense_a + dense_b, [DENSE, DENSE]),
        (100 + dense_a + dense_b - 1, [TWO_PRODUCTS, DENSE]),
        (100 + two_a + dense_b - 1, [TWO_PRODUCTS, TWO_PRODUCTS]),
    ):
        planned = decide(sites, max_weight_bytes=limit)
        assert [entry.plan for entry in planned.values()] == expected
        assert 100 + sum(entry.weight_bytes for entry in planned.values()) <= limit
    assert "max_weight_bytes" in planned["a"].reason
    with pytest.raises(ValueError, match=rf"must be at least {100 + two_a + two_b:,}, the bytes of the weights"):
        decide(sites, max_weight_bytes=100 + two_a + two_b - 1)


def test_a_hundred_different_layers_share_a_bounded_time(times):
    sites = [site(str(i), 64 + i) for i in range(100)]
    times.update({64 + i: {TWO_PRODUCTS: [1, 1], DENSE: [2, 2]} for i in range(100)})
    decide(sites)
    assert len(times["calls"]) == 100
    assert sum(call[2] for call in times["calls"]) <= 30.001


@pytest.mark.parametrize(
    ("example", "rows", "expected"),
    [((4, 64), 4, ((2, 64),)), ((4, 7, 64), 4, ((2, 7, 64),)), ((12, 64), 4, ((6, 64),)), ((64,), 1, ((2, 64),))],
)
def test_the_shapes_that_are_measured(example, rows, expected, times):
    times[64] = {TWO_PRODUCTS: [1], DENSE: [2]}
    decide([site("a")], input_shapes={"a": example}, example_batch=rows, batch_sizes=(2,))
    assert times["calls"][0][1] == expected


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_measuring_runs_both_plans(precision):
    measured = measure_site(site("a"), ((1, 64), (3, 5, 64))[:1], Target(), precision, 0.02)
    assert set(measured) == {TWO_PRODUCTS, DENSE}
    assert all(0 < time < 1e5 for entry in measured.values() for time in entry)


def test_disturbed_rounds_do_not_count():
    quiet, loud = [10.0, 10.2, 10.1, 10.3], [35.0, 10.0, 70.0, 10.1]
    assert undisturbed_medians({"a": quiet + loud, "b": [20.0] * 4 + [20.0, 90.0, 20.0, 80.0]}) == {
        "a": pytest.approx(10.15),
        "b": 20.0,
    }


def test_candidates_take_turns():
    calls = []
    medians = median_us({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget_s=0.001)
    assert set(medians) == {"a", "b"}
    changes = sum(first != second for first, second in itertools.pairwise(calls))
    assert changes >= 12


def test_one_thread_is_timed_by_its_own_processor_time():
    assert clock_of(Target("cpu", 1)) is time.thread_time
    assert clock_of(Target("cpu", 2)) is clock_of(Target("cuda", 1)) is time.perf_counter
    # what sleeps takes no processor time
    runs = {"sleeps": lambda: time.sleep(0.001), "works": lambda: sum(range(20_000))}
    medians = median_us(runs, budget_s=0.01, clock=time.thread_time)
    assert medians["sleeps"] < medians["works"]


def test_inputs_are_resized_along_the_axes_of_a_name():
    feeds = {"x": np.arange(6).reshape(3, 2), "y": np.arange(4), "z": np.arange(3)}
    axes = {"x": {0: "batch"}, "y": {0: "other"}, "z": {0: "batch"}}
    result = resized(feeds, axes, "batch", 5)
    assert result["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert (result["y"].tolist(), result["z"].tolist()) == ([0, 1, 2, 3], [0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_the_quota_of_the_control_group(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroup_quota(tmp_path) == expected
