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
        inputs, outputs: in the order of the graph.
        optional: inputs that have a value in the file, which a request may replace.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional: tuple[TensorSpec, ...] = ()


def graph_tensors(session: Any, path: Path) -> GraphTensors:
    """The tensors of a session.

    Args:
        session: of onnxruntime.
        path: of the model, which tells tensors without a shape from scalars; onnxruntime does not.

    Raises:
        ValueError: one is no tensor, or of a type that the protocol has no name for.
    """
    inputs = tuple(tensor_spec(node) for node in session.get_inputs())
    outputs = tuple(tensor_spec(node) for node in session.get_outputs())
    optional = []
    for node in session.get_overridable_initializers():
        with contextlib.suppress(ValueError):  # what can't be served need not be given
            optional.append(tensor_spec(node))
    if all(spec.shape for spec in (*inputs, *outputs)):
        return GraphTensors(inputs, outputs, tuple(optional))
    with contextlib.suppress(OSError):
        names = unranked(path)
        inputs = tuple(replace(spec, any_rank=spec.name in names and not spec.shape) for spec in inputs)
        outputs = tuple(replace(spec, any_rank=spec.name in names and not spec.shape) for spec in outputs)
    return GraphTensors(inputs, outputs, tuple(optional))
