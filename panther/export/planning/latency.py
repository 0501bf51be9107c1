"""The whole file timed beside its dense twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from panther.export import ort
from panther.export.card import Latency
from panther.export.errors import ExportError, first_line
from panther.export.graph.convolutions import lower_convolutions, weights
from panther.export.graph.inputs import Axes
from panther.export.graph.lower import DENSE, find_sites, lower
from panther.export.graph.products import dense_entries, lower_dense
from panther.export.graph.trace import Traced
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, resized, runner
from panther.export.publish.counts import other_bytes

# size limit of one message in onnxruntime
_MAX_TWIN_BYTES = 1_800_000_000


def dense_twin(graph: Traced, dtype: type[np.floating], *, transpose_dense: bool = False) -> ir.Model | None:
    """The graph with one dense product or convolution for each sketched layer and each quantized layer.

    Args:
        graph: is not changed.
        dtype: of its constants.
        transpose_dense: as for `lower`.

    Returns:
        None where there is no such layer, or the twin is too large to be loaded from memory.
    """
    twin = Traced(graph.model.clone(), graph.layers, graph.tied, graph.quantized, graph.factors, graph.convolutions)
    sites = find_sites(twin, dtype=dtype, merge=False)
    size = sum(site.weights(DENSE) for site in sites) * np.dtype(dtype).itemsize + other_bytes(twin)
    size += 4 * sum(dense_entries(layer) for layer in twin.quantized.values())
    size += sum(weights(layer, dense=True) for layer in twin.convolutions.values()) * np.dtype(dtype).itemsize
    if not (sites or twin.quantized or twin.convolutions) or size > _MAX_TWIN_BYTES:
        return None
    lower_dense(twin)
    dense = dict.fromkeys(twin.convolutions, True)
    lower_convolutions(twin.model.graph, twin.convolutions, dense, dtype)
    plans = {site.name: DENSE for site in sites}
    lower(twin, sites, plans, fold=False, transpose_dense=transpose_dense)
    return twin.model


def measure(
    session: Any,
    twin: ir.Model,
    examples: Mapping[str, Tensor],
    axes: Axes,
    batch_sizes: Sequence[int],
    target: Target,
) -> Latency:
    """Time the file and its dense twin in turn, on the examples repeated to each batch size.

    Where the first axis of the first input does not vary, on the examples as they are.

    Raises:
        ExportError: the file does not run at one of the sizes.
    """
    twin_session = ort.load(ir.to_proto(twin).SerializeToString(), target)
    feeds = {name: tensor.numpy() for name, tensor in examples.items()}
    first = next(iter(examples))
    batch_axis = axes.get(first, {}).get(0)
    if batch_axis is None:
        batch_sizes = (examples[first].shape[0] if examples[first].dim() else 1,)
    times = []
    for size in batch_sizes:
        rows = feeds if batch_axis is None else resized(feeds, axes, batch_axis, size)
        try:
            runs = {"file": runner(session, rows, target), "twin": runner(twin_session, rows, target)}
            times.append(median_us(runs, clock=clock_of(target)))
        except Exception as error:
            raise ExportError(f"the file does not run at batch size {size}: {first_line(error)}") from error
    return Latency(
        target.device,
        target.num_threads,
        tuple(batch_sizes),
        tuple(round(time["file"], 2) for time in times),
        tuple(round(time["twin"], 2) for time in times),
    )
