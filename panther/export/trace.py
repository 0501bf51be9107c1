"""From a module to an ONNX graph in which each sketched layer is still one node."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from panther.export.errors import ExportError, first_line
from panther.nn import SKLinear
from panther.nn.hooks import computes_weights, take_hooks

OPSET = 20
DOMAIN, OP = "panther", "SketchedLinear"


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        model: its graph, each use of a sketched layer one node `panther::SketchedLinear` over x, S1s, U1s, U2s, S2s
            and, where there is one, bias; its attribute ``layer`` is the layer's name.
        layers: the sketched layers by name.
    """

    model: ir.Model
    layers: dict[str, SKLinear]


class Placeholder(nn.Module):
    """Stands for a sketched layer while the model is traced."""

    def __init__(self, layer: SKLinear, name: str) -> None:
        super().__init__()
        self.S1s, self.U1s, self.U2s, self.S2s = (
            nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
            for tensor in (layer.S1s, layer.U1s, layer.U2s, layer.S2s)
        )
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        # code around the layer may ask for its sizes
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.num_terms, self.low_rank = layer.num_terms, layer.low_rank
        self.name = name
        if not computes_weights(layer):
            take_hooks(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Leave one node in the graph."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x of shape {tuple(x.shape)} must end in in_features ({self.in_features})")
        terms = (x, self.S1s, self.U1s, self.U2s, self.S2s)
        symbolic: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OP}",
            terms if self.bias is None else (*terms, self.bias),
            attrs={"layer": self.name},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )
        return symbolic


class Traceable(nn.Module):
    """A model called with plain tensors in a fixed order, as the graph will be.

    Args:
        model: what is called.
        names: of its arguments, in the order of the tensors; None calls it by position.
        half: compute in float16; float32 tensors are cast on the way in and out.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None, *, half: bool) -> None:
        super().__init__()
        self.model = model.half() if half else model
        self.names = names
        self.half_inside = half

    def forward(self, *tensors: Tensor) -> object:
        """Call the model."""
        if self.half_inside:
            tensors = tuple(tensor.half() if tensor.is_floating_point() else tensor for tensor in tensors)
        outputs: object = (
            self.model(*tensors) if self.names is None else self.model(**dict(zip(self.names, tensors, strict=True)))
        )
        return tree_map(_float, outputs) if self.half_inside else outputs


def sketched_layers(model: nn.Module) -> dict[str, SKLinear]:
    """The sketched layers of a model by their dotted name; a layer in several places is named once.

    A layer that is the whole model has the name of its class.
    """
    return {
        name or type(module).__name__: module for name, module in model.named_modules() if isinstance(module, SKLinear)
    }


def trace(
    model: nn.Module,
    example_inputs: Mapping[str, Tensor],
    *,
    by_name: bool,
    output_names: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
    half: bool = False,
) -> Traced:
    """Trace a module with torch.export and translate it.

    Args:
        model: any module that torch.onnx can export, on the CPU in float32; left as it is.
        example_inputs: the tensors to call forward with, by the names that the graph's inputs shall have.
        by_name: forward takes them by these names; by position when False.
        output_names: one name an output.
        dynamic_axes: for each input the axes of variable size and their names; the same name is the same size.
        half: compute in float16 inside; inputs and outputs stay float32.

    Raises:
        ExportError: torch could not export the module, or it fixes an axis that was to be dynamic.
    """
    layers = sketched_layers(model)
    copied = _copy(model, share=not half).eval()
    copied = _replace(copied, {name: Placeholder(layer, name) for name, layer in sketched_layers(copied).items()})
    names = list(example_inputs)
    shapes = {
        "tensors": tuple(dict.fromkeys(dynamic_axes.get(name, {}), torch.export.Dim.AUTO) for name in example_inputs)
    }
    try:
        with _quiet(), no_fast_path():
            exported = torch.export.export(
                Traceable(copied, names if by_name else None, half=half),
                tuple(at_least_two(example_inputs, dynamic_axes).values()),
                dynamic_shapes=shapes,
                strict=False,
            )
            program = torch.onnx.export(
                exported,
                input_names=names,
                output_names=list(output_names),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"torch.onnx could not export {type(model).__name__}: {_innermost(error)}") from error
    if program is None:
        raise ExportError(f"torch.onnx exported nothing for {type(model).__name__}")
    graph = program.model.graph
    outputs = [value.name for value in graph.outputs]
    if outputs != list(output_names):
        raise ExportError(f"{type(model).__name__} has {len(outputs)} outputs; {list(output_names)} were named")
    _tidy(program.model)
    _name_axes(program.model, dynamic_axes)
    return Traced(program.model, layers)


def at_least_two(inputs: Mapping[str, Tensor], dynamic_axes: Mapping[str, Mapping[int, str]]) -> dict[str, Tensor]:
    """The inputs with variable axes of size 1 doubled: torch.export takes a 1 for a size that never changes."""
    result = {}
    for name, tensor in inputs.items():
        for axis in dynamic_axes.get(name, {}):
            if tensor.shape[axis] == 1:
                tensor = torch.cat([tensor, tensor], dim=axis)  # noqa: PLW2901
        result[name] = tensor
    return result


def _name_axes(model: ir.Model, dynamic_axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give variable axes the names that were asked for.

    Raises:
        ExportError: the model fixes one of them.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic_axes.get(value.name or "", {}).items():
            size = value.shape[axis] if value.shape is not None else None
            # an axis that torch came to know is left as a symbol whose name is a number
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


def _copy(model: nn.Module, *, share: bool) -> nn.Module:
    """A copy whose parts can be replaced; it shares the memory of the weights where nothing is going to change them."""
    shared = [*model.parameters(), *model.buffers()] if share else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _replace(model: nn.Module, by_name: Mapping[str, nn.Module]) -> nn.Module:
    """Put other modules in the place of sketched layers; the same layer in two places stays one."""
    replaced = {id(layer): by_name[name] for name, layer in sketched_layers(model).items()}
    if id(model) in replaced:
        return replaced[id(model)]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return model


def _float(leaf: object) -> object:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _tidy(model: ir.Model) -> None:
    """Give weights the names they have in the model, and drop the tracer's notes: stack traces with paths."""
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


def _innermost(error: BaseException) -> str:
    """The first line of the cause that started it; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """nn.TransformerEncoderLayer's fast path reads weights past the layers' forward; the slow one calls them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its deprecation warnings, which no caller can act on, off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
