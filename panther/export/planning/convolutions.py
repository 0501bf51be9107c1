"""Whether each sketched convolution is computed by its factors or by one convolution, decided by measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from panther.export.card import PlannedSite
from panther.export.graph.convolutions import CONV_OP, ExportedConv, lower_convolutions, output_sizes, weights
from panther.export.graph.lower import DENSE, TWO_PRODUCTS
from panther.export.graph.placeholders import DOMAIN
from panther.export.graph.trace import OPSET
from panther.export.ort import Target, load
from panther.export.planning.measure import clock_of, median_us, runner
from panther.export.planning.plan import PLANS, better, check_plan
from panther.nn.padding import own_padding, padding_sides
from panther.nn.sketched_conv import SketchedConv

_BUDGET_S, _LAYER_BUDGET_S = 30.0, 1.5


def choose_convolutions(
    layers: Mapping[str, ExportedConv],
    requested: str | Mapping[str, str],
    *,
    input_shapes: Mapping[str, tuple[int, ...]],
    batch_sizes: Sequence[int],
    target: Target,
    dtype: type[np.floating],
    smallest: bool,
) -> dict[str, PlannedSite]:
    """Decide a plan for each sketched convolution, as `panther.export.planning.plan.choose` does for linear layers.

    Args:
        layers: by name; those in few bits have no choice, and get no decision.
        requested: "auto", or a plan for all, or a plan for some layers by name ("auto" for the rest).
        input_shapes: of each layer's x when the model runs on the example inputs.
        batch_sizes: to measure at.
        target: to measure on.
        dtype: of the graph.
        smallest: take what stores less, whatever is faster: a limit on memory has to be kept.

    Returns:
        A decision for each sketched convolution.

    Raises:
        ValueError: an unknown plan is requested.
    """
    sketched = {name: layer for name, layer in layers.items() if isinstance(layer, SketchedConv)}
    wanted = {name: requested if isinstance(requested, str) else requested.get(name, "auto") for name in sketched}
    measured: dict[tuple[object, ...], dict[str, list[float]]] = {}
    keys = {name: (repr(layer), input_shapes.get(name)) for name, layer in sketched.items()}
    budget_s = min(_LAYER_BUDGET_S, _BUDGET_S / max(1, len(set(keys.values()))))
    planned = {}
    for name, layer in sketched.items():
        check_plan(wanted[name])
        shape = input_shapes.get(name)
        plan, reason, times = wanted[name], "as requested", dict[str, list[float]]()
        if plan == "auto" and smallest:
            plan = min(PLANS, key=lambda plan: weights(layer, dense=plan == DENSE))
            reason = "stores less, and max_weight_bytes is given"
        elif plan == "auto" and shape is None:
            plan, reason = TWO_PRODUCTS, "never called on the example inputs"
        elif plan == "auto" and shape is not None:
            if keys[name] not in measured:
                shapes = _shapes(layer, shape, batch_sizes)
                measured[keys[name]] = measure_convolution(layer, shapes, target, dtype, budget_s)
            times = measured[keys[name]]
            plan, reason = better(times)
        stored = weights(layer, dense=plan == DENSE) * np.dtype(dtype).itemsize
        planned[name] = PlannedSite([name], plan, reason, stored, times)
    return planned


def measure_convolution(
    layer: SketchedConv,
    shapes: Sequence[tuple[int, ...]],
    target: Target,
    dtype: type[np.floating],
    budget_s: float,
) -> dict[str, list[float]]:
    """Median times in microseconds of both plans, one for each shape of x; in about budget_s seconds."""
    times: dict[str, list[float]] = {plan: [] for plan in PLANS}
    random = np.random.default_rng(0)
    graphs = {plan: _graph(layer, dtype, dense=plan == DENSE) for plan in PLANS}
    for shape in shapes:
        feeds = {"x": random.standard_normal(shape).astype(dtype)}
        runs = {}
        for plan, graph in graphs.items():
            # one session per shape: a CUDA graph is recorded for one shape
            session = load(graph, target, cuda_graph=target.device == "cuda")
            runs[plan] = runner(
                session, feeds, target, {"y": (shape[0], layer.out_channels, *output_sizes(layer, shape[2:]))}
            )
        for plan, median in median_us(runs, budget_s=budget_s / len(shapes), clock=clock_of(target)).items():
            times[plan].append(round(median, 2))
    return times


def _shapes(layer: SketchedConv, example: tuple[int, ...], batch_sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The shapes of x at the batch sizes, with the padding that is no part of the convolution."""
    channels, *sizes = example[-layer.axes - 1 :]
    if own_padding(layer) is None:
        sizes = [size + sum(sides) for size, sides in zip(sizes, padding_sides(layer), strict=True)]
    return [(size, channels, *sizes) for size in batch_sizes]


def _graph(layer: SketchedConv, dtype: type[np.floating], *, dense: bool) -> bytes:
    kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    free = [ir.SymbolicDim(f"d{axis}") for axis in range(layer.axes + 1)]
    x = ir.Value(name="x", type=kind, shape=ir.Shape([free[0], layer.in_channels, *free[1:]]))
    node = ir.node(CONV_OP, [x], {"layer": "layer"}, domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.type = "y", kind
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": OPSET, DOMAIN: 1}, name="layer")
    lower_convolutions(graph, {"layer": layer}, {"layer": dense}, dtype)
    graph.outputs[0].name = "y"
    proto: bytes = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return proto
