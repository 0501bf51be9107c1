"""From a module to an ONNX graph in which each sketched layer is two products with constants."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from panther.export.errors import ExportError
from panther.nn import SKLinear

OPSET = 20


class TwoProducts(nn.Module):
    """What an SKLinear becomes in the graph: (x @ A) @ B + bias, with 1/(2L) folded into B."""

    def __init__(self, layer: SKLinear) -> None:
        super().__init__()
        A, B = layer.factors()
        self.A = nn.Parameter(A.detach(), requires_grad=False)
        self.B = nn.Parameter(B.detach() / (2 * layer.num_terms), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (..., d_in) to (..., d_out)."""
        y = (x @ self.A) @ self.B
        return y if self.bias is None else y + self.bias


def sketched_layers(model: nn.Module) -> dict[str, SKLinear]:
    """The sketched layers of a model by their dotted name; a layer in several places is named once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SKLinear)}


def with_constant_factors(model: nn.Module) -> nn.Module:
    """A copy of the model, in eval mode, with each SKLinear replaced; the same layer in two places stays one."""
    model = copy.deepcopy(model).eval()
    replaced = {id(layer): TwoProducts(layer) for layer in sketched_layers(model).values()}
    if id(model) in replaced:
        return replaced[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])
    return model


def to_onnx(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Sequence[Mapping[int, str]],
) -> onnx.ModelProto:
    """Trace a module with torch.export and translate it.

    Args:
        model: any module that torch.onnx can export.
        example_inputs: one tensor an argument of forward.
        input_names: one name an input.
        output_names: one name an output.
        dynamic_axes: for each input the axes of variable size and their names; the same name is the same size.

    Raises:
        ExportError: torch could not export the module, or it fixes an axis that was to be dynamic.
    """
    dims = {name: torch.export.Dim(name) for axes in dynamic_axes for name in axes.values()}
    dynamic_shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in dynamic_axes)
    try:
        with _quiet():
            program = torch.onnx.export(
                with_constant_factors(model),
                tuple(example_inputs),
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx could not export {type(model).__name__}: {_innermost(error)}") from error
    if program is None:
        raise ExportError(f"torch.onnx exported nothing for {type(model).__name__}")
    proto: onnx.ModelProto = program.model_proto
    _strip_traces(proto)
    return proto


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Drop what the tracer notes on each node: stack traces with file names of the machine, of no use to a server."""
    graph = proto.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]


def _innermost(error: BaseException) -> str:
    """The first line of the cause that started it; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its deprecation warnings, which no caller can act on, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
