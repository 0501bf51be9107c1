"""Inputs, outputs and optional inputs of an open session."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.runtime.rewriting import unranked
from app.runtime.tensors import TensorSpec, tensor_spec


@dataclass(frozen=True)
class GraphTensors:
    """The tensors of a graph.

    Attributes:
        inputs, outputs: In the order of the graph.
        optional: Inputs that have a default in the file, which a request may replace.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional: tuple[TensorSpec, ...] = ()


def graph_tensors(session: Any, path: Path) -> GraphTensors:
    """The tensors of a session.

    Args:
        session: Session of onnxruntime.
        path: Path of the model. Unlike onnxruntime, it distinguishes a tensor without a shape from a scalar.

    Raises:
        ValueError: A value is not a tensor, or the protocol has no name for its type.
    """
    inputs = tuple(tensor_spec(node) for node in session.get_inputs())
    outputs = tuple(tensor_spec(node) for node in session.get_outputs())
    optional = []
    for node in session.get_overridable_initializers():
        with contextlib.suppress(ValueError):  # requests may omit an optional input that cannot be served
            optional.append(tensor_spec(node))
    if all(spec.shape for spec in (*inputs, *outputs)):
        return GraphTensors(inputs, outputs, tuple(optional))
    with contextlib.suppress(OSError):
        names = unranked(path)
        inputs = tuple(replace(spec, any_rank=spec.name in names and not spec.shape) for spec in inputs)
        outputs = tuple(replace(spec, any_rank=spec.name in names and not spec.shape) for spec in outputs)
    return GraphTensors(inputs, outputs, tuple(optional))
