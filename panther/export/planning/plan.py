"""Which products each sketched layer is computed by, decided by measuring on the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from panther.export.card import PlannedSite
from panther.export.graph.lower import DENSE, TWO_PRODUCTS, Site
from panther.export.graph.precision import ENTRY_BYTES, quantize_proto
from panther.export.ort import Target, load
from panther.export.planning.measure import clock_of, median_us, runner

PLANS = (TWO_PRODUCTS, DENSE)
# below this share of dense's multiply-adds nothing is measured; above it neither, if dense would not fit a file
HOPELESS = 1 / 32
# two products take less memory, and win unless dense is faster by more than this
NOISE = 0.02
_BUDGET_S, _SITE_BUDGET_S = 30.0, 1.5
_MAX_MEASURED_BYTES = 1 << 30


def choose(
    sites: Sequence[Site],
    requested: str | Mapping[str, str],
    *,
    input_shapes: Mapping[str, tuple[int, ...]],
    example_batch: int,
    batch_sizes: Sequence[int],
    target: Target,
    precision: str,
    other_weight_bytes: int,
    max_weight_bytes: int | None,
) -> dict[str, PlannedSite]:
    """Decide a plan for each site.

    Each site is measured separately, as its own graph, for all batch sizes: taken is the plan whose worst ratio to
    the faster one is smallest; within noise, two products, which take less memory. Sites of the same shape are measured
    once.

    Args:
        sites: to decide on.
        requested: "auto", or a plan for all, or a plan for some layers by name ("auto" for the rest).
        input_shapes: of each layer's x when the model runs on the example inputs.
        example_batch: the batch size of the example inputs.
        batch_sizes: to measure at.
        target: to measure on.
        precision: of the graph: "float32", "float16" or "int8".
        other_weight_bytes: resident constants that belong to no site.
        max_weight_bytes: limit on all resident constants; dense layers that don't fit become two products, first those
            that lose least time for the bytes.

    Returns:
        A decision for each site's name.

    Raises:
        ValueError: an unknown plan or layer is requested, or the limit can't be kept.
    """
    wanted = _requested(sites, requested)
    entry_bytes = ENTRY_BYTES[precision]
    undecided = {site.name for site in sites if wanted[site.name] == "auto" and not _hopeless(site)}
    shapes = {
        site.name: _shapes(input_shapes[site.layers[0]], example_batch, batch_sizes)
        for site in sites
        if site.name in undecided
    }
    keys = {
        site.name: (site.in_features, site.A.shape[1], site.out_features, site.bias is None, *shapes[site.name])
        for site in sites
        if site.name in undecided
    }
    # a model of a hundred different layers is measured in the time of twenty
    budget_s = min(_SITE_BUDGET_S, _BUDGET_S / max(1, len(set(keys.values()))))
    measured: dict[tuple[object, ...], dict[str, list[float]]] = {}
    planned = {}
    for site in sites:
        plan, reason, times = wanted[site.name], "as requested", dict[str, list[float]]()
        if site.name in undecided:
            key = keys[site.name]
            if key not in measured:
                measured[key] = measure_site(site, shapes[site.name], target, precision, budget_s)
            times = measured[key]
            plan, reason = better(times)
        elif plan == "auto":
            plan, reason = TWO_PRODUCTS, "dense is far larger"
        planned[site.name] = PlannedSite(site.layers, plan, reason, int(site.weights(plan) * entry_bytes), times)
    if max_weight_bytes is not None:
        _keep_limit(sites, planned, other_weight_bytes, max_weight_bytes, entry_bytes)
    return planned


def measure_site(
    site: Site,
    shapes: Sequence[tuple[int, ...]],
    target: Target,
    precision: str = "float32",
    budget_s: float = 1.2,
) -> dict[str, list[float]]:
    """Median times in microseconds of both plans, one for each shape of x; in about budget_s seconds."""
    times: dict[str, list[float]] = {plan: [] for plan in PLANS}
    random = np.random.default_rng(0)
    dtype = np.float16 if precision == "float16" else np.float32
    graphs = {}
    for plan in PLANS:
        # as `lower` writes it
        gemm = plan == DENSE and target.device == "cuda" and precision != "int8" and len(shapes[0]) == 2
        graph = _graph(site, plan, len(shapes[0]), dtype, random, gemm=gemm)
        graphs[plan] = (quantize_proto(graph) if precision == "int8" else graph).SerializeToString()
    for shape in shapes:
        # one session per shape: a CUDA graph is recorded for one shape
        feeds = {"x": random.standard_normal(shape).astype(dtype)}
        runs = {
            plan: runner(
                load(graph, target, cuda_graph=target.device == "cuda"),
                feeds,
                target,
                {"y": (*shape[:-1], site.out_features)},
            )
            for plan, graph in graphs.items()
        }
        for plan, median in median_us(runs, budget_s=budget_s / len(shapes), clock=clock_of(target)).items():
            times[plan].append(round(median, 2))
    return times


def _graph(
    site: Site, plan: str, rank: int, dtype: type[np.floating], random: np.random.Generator, *, gemm: bool
) -> onnx.ModelProto:
    elem = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    weights = [
        (random.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5).astype(dtype) for shape in site.shapes(plan)
    ]
    if gemm:
        weights = [weight.T for weight in weights]
    initializers = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    steps = [("MatMul", initializer.name) for initializer in initializers]
    if site.bias is not None:
        initializers.append(numpy_helper.from_array(site.bias.astype(dtype), "bias"))
        steps.append(("Add", "bias"))
    values = ["x", *(f"h{index}" for index in range(len(steps) - 1)), "y"]
    nodes = [
        helper.make_node(op, [values[index], constant], [values[index + 1]], name=f"n{index}")
        for index, (op, constant) in enumerate(steps)
    ]
    if gemm:
        nodes = [helper.make_node("Gemm", ["x", *(constant for _, constant in steps)], ["y"], name="n0", transB=1)]
    dims = [f"d{axis}" for axis in range(rank - 1)]
    graph = helper.make_graph(
        nodes,
        plan,
        [helper.make_tensor_value_info("x", elem, [*dims, site.in_features])],
        [helper.make_tensor_value_info("y", elem, [*dims, site.out_features])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def better(times: Mapping[str, list[float]]) -> tuple[str, str]:
    """The plan whose worst ratio to the faster one is smaller, and the reason; within noise, two products."""
    best = [min(pair) for pair in zip(*times.values(), strict=True)]
    worst = {plan: max(t / b for t, b in zip(times[plan], best, strict=True)) for plan in PLANS}
    if worst[TWO_PRODUCTS] <= worst[DENSE] * (1 + NOISE):
        return TWO_PRODUCTS, f"measured: dense takes up to {worst[DENSE]:.2f}x the time"
    return DENSE, f"measured: two products take up to {worst[TWO_PRODUCTS]:.2f}x the time"


def _hopeless(site: Site) -> bool:
    few = site.weights(TWO_PRODUCTS) < HOPELESS * site.weights(DENSE)
    return few or site.weights(DENSE) * np.dtype(np.float32).itemsize > _MAX_MEASURED_BYTES


def _shapes(example: tuple[int, ...], example_batch: int, batch_sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The shapes of x at the batch sizes, its other axes as in the example."""
    if example and example[0] == example_batch and len(example) > 1:
        return tuple((size, *example[1:]) for size in batch_sizes)
    rows = int(np.prod(example[:-1]))
    return tuple((max(1, rows * size // example_batch), example[-1]) for size in batch_sizes)


def _requested(sites: Sequence[Site], requested: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(requested, str):
        check_plan(requested)
        return {site.name: requested for site in sites}
    names = {site.name: [*site.layers, *site.tied_biases] for site in sites}
    known = {layer for layers in names.values() for layer in layers}
    for layer, plan in requested.items():
        check_plan(plan)
        if layer not in known:
            raise ValueError(f"plan names layer {layer!r}; the sketched layers are {sorted(known)}")
    # for merged or tied layers, which are one site, the first named layer decides
    return {
        site.name: next((requested[layer] for layer in names[site.name] if layer in requested), "auto")
        for site in sites
    }


def check_plan(plan: str) -> None:
    """Refuse an unknown plan."""
    if plan not in ("auto", *PLANS):
        raise ValueError(f"plan ({plan!r}) must be 'auto', 'two_products' or 'dense'")


def _keep_limit(
    sites: Sequence[Site], planned: dict[str, PlannedSite], other_bytes: int, limit: int, entry_bytes: float
) -> None:
    def total() -> int:
        return other_bytes + sum(site.weight_bytes for site in planned.values())

    def cost(site: Site) -> float:
        """Time lost for an entry saved, by a return to two products."""
        times = planned[site.name].median_us
        lost = sum(times[TWO_PRODUCTS]) - sum(times[DENSE]) if times else 0.0
        return lost / (site.weights(DENSE) - site.weights(TWO_PRODUCTS))

    dense = [
        site for site in sites if planned[site.name].plan == DENSE and site.weights(TWO_PRODUCTS) < site.weights(DENSE)
    ]
    for site in sorted(dense, key=cost):
        if total() <= limit:
            return
        before = planned[site.name]
        planned[site.name] = PlannedSite(
            before.layers,
            TWO_PRODUCTS,
            "dense is faster, but would exceed max_weight_bytes",
            int(site.weights(TWO_PRODUCTS) * entry_bytes),
            before.median_us,
        )
    if total() > limit:
        raise ValueError(f"max_weight_bytes ({limit:,}) must be at least {total():,}, the bytes of the weights")
