"""Tracing: an ONNX graph in which each call of a sketched layer is still one node.

See docs/decisions/0048-shapes-by-dim-auto.md.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from panther.export.errors import ExportError, first_line
from panther.export.graph import adapt
from panther.export.graph.bags import make_bags_traceable
from panther.export.graph.convolutions import ConvPlaceholder, ExportedConv, conv_layers
from panther.export.graph.names import name_inputs_and_outputs
from panther.export.graph.placeholders import (
    QuantizedLayer,
    placeholder,
    quantized_factors,
    quantized_layers,
)
from panther.export.graph.recurrent import make_traceable
from panther.export.graph.sketched import WEIGHT_OP, Placeholder, is_op, layer_of, sketched_layers, tied_layers
from panther.export.graph.tidy import name_axes, tidy
from panther.nn import SKLinear

OPSET = 20


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        model: its graph, each call of a sketched layer one node `panther::SketchedLinear` over x, S1s, U1s, U2s, S2s
            and, where there is one, bias; each reading of its weight a node `panther::DenseWeight` over the four
            matrices; each call of a quantized layer a node `panther::QuantizedLayer` over x, of a convolution one
            `panther::SketchedConv`. Their attribute ``layer`` is the layer's name.
        layers: the sketched layers by name.
        tied: as `tied_layers` returns them.
        quantized: the quantized layers by name.
        factors: names of first factors in few bits by the names of the second, as `quantized_factors` returns them.
        convolutions: the sketched convolutions, and those in few bits, by name.
    """

    model: ir.Model
    layers: dict[str, SKLinear]
    tied: dict[str, str]
    quantized: dict[str, QuantizedLayer] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    convolutions: dict[str, ExportedConv] = field(default_factory=dict)

    def read_densely(self) -> set[str]:
        """The layers whose weight the graph uses as a tensor."""
        nodes = self.model.graph.all_nodes()
        return {layer_of(node) for node in nodes if is_op(node, WEIGHT_OP) and _is_used(node.outputs[0])}


class Traceable(nn.Module):
    """A model called with plain tensors in a fixed order, as the graph will be.

    Args:
        model: the model.
        names: names of its arguments, in the order of the tensors; None calls it by position.
        half: compute in float16; float32 tensors are cast on the way in and out.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None, *, half: bool) -> None:
        super().__init__()
        self.model = model.half() if half else model
        self.names = names
        self.half_inside = half

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the model, and return the tensors of its result in order."""
        if self.half_inside:
            tensors = tuple(tensor.half() if tensor.is_floating_point() else tensor for tensor in tensors)
        outputs: object = (
            self.model(*tensors) if self.names is None else self.model(**dict(zip(self.names, tensors, strict=True)))
        )
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        return tuple(_float(leaf) for leaf in leaves) if self.half_inside else tuple(leaves)


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
        model: any module that torch.onnx can export, on the CPU in float32; unchanged.
        example_inputs: the tensors to call forward with, by the names that the graph's inputs shall have.
        by_name: forward takes them by these names; by position when False.
        output_names: one name for each output.
        dynamic_axes: for each input the axes of variable size and their names; the same name is the same size.
        half: compute in float16 inside; inputs and outputs stay float32.

    Raises:
        ExportError: torch could not export the module, or it fixes an axis that was to be dynamic.
    """
    layers = sketched_layers(model)
    shapes = tuple(dict.fromkeys(dynamic_axes.get(name, {}), torch.export.Dim.AUTO) for name in example_inputs)
    tensors = tuple(at_least_two(example_inputs, dynamic_axes).values())
    names = list(example_inputs)
    traced = _first_export(model, tensors, shapes, names=names if by_name else None, half=half)
    if len(traced.graph.outputs) != len(output_names):
        raise ExportError(
            f"{type(model).__name__} has {len(traced.graph.outputs)} outputs; {list(output_names)} were named"
        )
    tidy(traced)
    name_inputs_and_outputs(traced.graph, names, output_names)
    name_axes(traced, dynamic_axes)
    found = quantized_layers(model)
    return Traced(traced, layers, tied_layers(model), found, quantized_factors(model), conv_layers(model))


def _first_export(
    model: nn.Module,
    tensors: tuple[Tensor, ...],
    shapes: tuple[dict[int, object], ...],
    *,
    names: Sequence[str] | None,
    half: bool,
) -> ir.Model:
    """The graph of the first variant of the model, as `adapt.attempts` lists them, that torch can export.

    Raises:
        ExportError: torch can export none; the message is the error of the first.
    """
    errors: list[Exception] = []
    for attempt in adapt.attempts(model):
        copied = _copy(model, share=not half).eval()
        attempt.prepare(copied)
        copied = _replace(copied)
        make_traceable(copied)
        make_bags_traceable(copied)
        try:
            return _export(Traceable(copied, names, half=half), tensors, shapes)
        except Exception as error:  # noqa: BLE001  torch raises many kinds; the next way may do
            errors.append(error)
    message = f"torch.onnx could not export {type(model).__name__}: {_innermost(errors[0])}"
    raise ExportError(message) from errors[0]


def _export(model: nn.Module, tensors: tuple[Tensor, ...], shapes: tuple[dict[int, object], ...]) -> ir.Model:
    with _quiet(), no_fast_path():
        exported = torch.export.export(model, tensors, dynamic_shapes={"tensors": shapes}, strict=False)
        program = torch.onnx.export(exported, opset_version=OPSET, dynamo=True, verbose=False)
    if program is None:
        raise ExportError("it returned no program")
    return program.model


def at_least_two(inputs: Mapping[str, Tensor], dynamic_axes: Mapping[str, Mapping[int, str]]) -> dict[str, Tensor]:
    """The inputs with variable axes of size 1 doubled: torch.export treats size 1 as constant."""
    result = {}
    for name, tensor in inputs.items():
        for axis in dynamic_axes.get(name, {}):
            if tensor.shape[axis] == 1:
                tensor = torch.cat([tensor, tensor], dim=axis)  # noqa: PLW2901
        result[name] = tensor
    return result


def _copy(model: nn.Module, *, share: bool) -> nn.Module:
    """A copy whose parts can be replaced; it shares the memory of the weights if `share`."""
    shared = [*model.parameters(), *model.buffers()] if share else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _replace(model: nn.Module) -> nn.Module:
    """Replace sketched and quantized layers by placeholders; a layer in two places gets one placeholder."""
    replaced: dict[int, nn.Module] = {}
    replaced |= {id(layer): Placeholder(layer, name) for name, layer in sketched_layers(model).items()}
    replaced |= {id(layer): placeholder(layer, name) for name, layer in quantized_layers(model).items()}
    replaced |= {id(layer): ConvPlaceholder(layer, name) for name, layer in conv_layers(model).items()}
    if id(model) in replaced:
        return replaced[id(model)]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in replaced:
                parent._modules[name] = replaced[id(child)]
    return model


def _float(leaf: Tensor) -> Tensor:
    return leaf.float() if leaf.is_floating_point() else leaf


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _innermost(error: BaseException) -> str:
    """The first line of the root cause of an error, without the advice that torch adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Disable the fast path of nn.TransformerEncoderLayer, which reads weights instead of calling the layers."""
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
