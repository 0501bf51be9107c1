"""Tidying of a traced graph: names of weights and axes, no tracer metadata, equal constants stored once."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from panther.export.errors import ExportError

# smaller constants are stored at each use
_SHARED_BYTES = 256


def tidy(model: ir.Model) -> None:
    """Give weights their names in the model, and remove the tracer's metadata: stack traces with paths."""
    graph = model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    for value in list(graph.initializers.values()):
        name = value.name or ""
        if name.startswith("model.") and name.removeprefix("model.") not in graph.initializers:
            value.name = name.removeprefix("model.")
    _store_equal_weights_once(graph)


def _store_equal_weights_once(graph: ir.Graph) -> None:
    """Keep one of the constants that are equal: the translation writes a weight again for each use of its layer."""
    kept: dict[tuple[object, ...], list[tuple[ir.Value, np.ndarray[Any, Any]]]] = {}
    for name, value in list(graph.initializers.items()):
        constant = value.const_value
        if constant is None or constant.nbytes < _SHARED_BYTES or value.is_graph_output():
            continue
        array = constant.numpy()
        key = (constant.dtype, tuple(constant.shape.numpy()), zlib.crc32(np.ascontiguousarray(array).data.cast("B")))
        known = kept.setdefault(key, [])
        same = next((other for other, numbers in known if np.array_equal(numbers, array)), None)
        if same is None:
            known.append((value, array))
        else:
            ir.convenience.replace_all_uses_with(value, same)
            del graph.initializers[name]


def name_axes(model: ir.Model, dynamic_axes: Mapping[str, Mapping[int, str]]) -> None:
    """Name the variable axes as the caller does in dynamic_axes.

    Raises:
        ExportError: the model fixes one of them.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic_axes.get(value.name or "", {}).items():
            size = value.shape[axis] if value.shape is not None else None
            # torch leaves an axis that it specialized as a symbol with a number as its name
            if not isinstance(size, ir.SymbolicDim) or size.value is None or size.value.isdecimal():
                raise ExportError(
                    f"axis {axis} ({name!r}) of input {value.name!r} was to vary; the model fixes it at {size}; "
                    "leave it out of dynamic_axes, or make forward independent of it"
                )
            names.setdefault(str(size.value), name)
    symbol = re.compile("|".join(rf"\b{re.escape(key)}\b" for key in names)) if names else None
    values = (*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs))
    for value in values:
        if value.shape is not None and symbol is not None:
            value.shape = ir.Shape(
                [
                    symbol.sub(lambda match: names[match[0]], size.value)
                    if isinstance(size, ir.SymbolicDim) and size.value is not None
                    else size
                    for size in value.shape
                ]
            )
