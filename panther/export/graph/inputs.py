"""Calling convention of a model: names of inputs and outputs, axes, shapes."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import MappingKey, tree_flatten_with_path, tree_leaves

from panther.export.card import Input, Output
from panther.export.errors import ExportError, first_line
from panther.export.graph.convolutions import conv_layers
from panther.export.graph.experts import evenly_routed
from panther.export.graph.recurrent import refuse_what_onnx_lacks
from panther.export.graph.sketched import sketched_layers, tied_layers
from panther.export.graph.trace import no_fast_path

Axes = Mapping[str, Mapping[int, str]]
# largest relative difference from summing the same products in another order
FAST_PATH_ROUNDING = 1e-3


@dataclass(frozen=True)
class Observed:
    """Observations of a model on its example inputs.

    Attributes:
        x_shapes: the input shape of each sketched layer in its first call, by name; of experts as in `evenly_routed`.
        output_names: names of the returned tensors: keys of a dictionary, else ``output``, or ``output_0`` and so on.
        notes: values other than tensors that it returned, and outputs that differ on torch's fast path, in words.
    """

    x_shapes: dict[str, tuple[int, ...]]
    output_names: list[str]
    notes: tuple[str, ...] = ()


def named_inputs(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    inputs: Sequence[Input] | None,
) -> tuple[dict[str, Tensor], tuple[Input, ...], bool]:
    """The example inputs by the names of the graph, on the CPU, and whether forward takes them by these names."""
    by_name = isinstance(example_inputs, Mapping)
    if isinstance(example_inputs, Mapping):
        tensors, names = list(example_inputs.values()), list(example_inputs)
    else:
        tensors = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        names = positional_names(model, len(tensors)) if inputs is None else [entry.name for entry in inputs]
    if not tensors:
        raise ValueError("example_inputs must hold at least one tensor")
    if inputs is None:
        inputs = tuple(Input(name) for name in names)
    if len(inputs) != len(tensors) or len(names) != len(tensors):
        raise ValueError(
            f"example_inputs holds {len(tensors)} tensors; named are the inputs {[entry.name for entry in inputs]}; "
            f"{type(model).__name__}.forward takes {list(inspect.signature(model.forward).parameters)}"
        )
    if by_name and [entry.name for entry in inputs] != names:
        raise ValueError(f"inputs names {[entry.name for entry in inputs]} and example_inputs {names}")
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example input {name!r} must be a tensor, not {type(tensor).__name__}")
        if not tensor.numel():
            raise ValueError(f"example input {name!r} of shape {tuple(tensor.shape)} holds no values to check on")
    for entry, tensor in zip(inputs, tensors, strict=True):
        entry.check_width(tensor.shape)
    check_unique("inputs", names)
    cast = (tensor.detach().cpu() for tensor in tensors)
    examples = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in zip(names, cast, strict=True)
    }
    return examples, tuple(inputs), by_name


def positional_names(model: nn.Module, count: int) -> list[str]:
    """Names for inputs by position: those of forward's arguments, numbered for ``*arguments``."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{name}_{index}" for index in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(name)
    return names[:count]


def check_unique(argument: str, names: Sequence[str]) -> None:
    """Raise ValueError when a name is empty or used twice."""
    twice = [name for name, count in Counter(names).items() if count > 1 or not name]
    if twice:
        raise ValueError(f"{argument} must have distinct names; {list(names)} repeats {twice}")


def check_axes(axes: Axes, examples: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the variable axes exist and have valid names, and the same name means the same size."""
    sizes: dict[str, tuple[str, int]] = {}
    for name, by_axis in axes.items():
        if name not in examples:
            raise ValueError(f"dynamic_axes names input {name!r}; the inputs are {list(examples)}")
        shape = examples[name].shape
        for axis, axis_name in by_axis.items():
            if not isinstance(axis, int) or not 0 <= axis < len(shape):
                raise ValueError(f"dynamic_axes: input {name!r} has {len(shape)} axes; there is no axis {axis}")
            if not isinstance(axis_name, str) or not axis_name.isidentifier():
                raise ValueError(f"dynamic_axes: name {axis_name!r} of axis {axis} of {name!r} must be an identifier")
            other, size = sizes.setdefault(axis_name, (name, shape[axis]))
            if size != shape[axis]:
                raise ValueError(
                    f"dynamic_axes: axis {axis_name!r} is {size} in input {other!r} and {shape[axis]} in {name!r}; "
                    "axes of the same name must have the same size"
                )


def observe(model: nn.Module, examples: Mapping[str, Tensor], *, by_name: bool) -> Observed:
    """Run the model on the examples, and record its inputs and outputs.

    Raises:
        ExportError: the model rejects the examples, or returns no tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def hook_for(name: str) -> Any:
        def record(_layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            x = arguments[0] if arguments else keywords["x"]
            shapes.setdefault(name, tuple(x.shape))

        return record

    def check_recurrent(name: str) -> Any:
        def check(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            refuse_what_onnx_lacks(name, module, (*arguments, *keywords.values()))

        return check

    tied = tied_layers(model)
    hooks = [
        layer.register_forward_pre_hook(hook_for(tied[name]), with_kwargs=True)
        for name, layer in sketched_layers(model).items()
    ]
    hooks += [
        layer.register_forward_pre_hook(hook_for(name), with_kwargs=True) for name, layer in conv_layers(model).items()
    ]
    hooks += [
        module.register_forward_pre_hook(check_recurrent(name or type(model).__name__), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    ]
    try:
        with torch.no_grad(), no_fast_path():
            outputs = model(**examples) if by_name else model(*examples.values())
        with torch.no_grad():
            fast = model(**examples) if by_name else model(*examples.values())
    except ExportError:
        raise
    except Exception as error:
        given = {name: tuple(tensor.shape) for name, tensor in examples.items()}
        raise ExportError(
            f"{type(model).__name__} does not take the example inputs {given}: {first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    names = list(_output_names(outputs))
    if not names:
        raise ExportError(f"{type(model).__name__} returns {type(outputs).__name__}; a tensor is needed")
    return Observed(evenly_routed(model, shapes), names, (*_left_out(outputs), *_fast_path_differs(outputs, fast)))


def named_outputs(
    model: nn.Module, outputs: Sequence[Output] | None, found: Sequence[str], inputs: Collection[str] = ()
) -> tuple[Output, ...]:
    """The outputs as the caller names them, or by the names that were found.

    Args:
        model: the model that returns them.
        outputs: the caller's descriptions; None uses the found names, changed if an input has the same name.
        found: names in the order in which the model returns the tensors.
        inputs: names of the inputs.

    Raises:
        ValueError: there are more or fewer, a name is used twice, or an input has it.
    """
    if outputs is None:
        taken = set(inputs)
        names = []
        for name in found:
            while name in taken:
                name += "_output"  # noqa: PLW2901
            taken.add(name)
            names.append(name)
        return tuple(map(Output, names))
    if len(outputs) != len(found):
        raise ValueError(
            f"outputs names {[entry.name for entry in outputs]}; {type(model).__name__} returns {len(found)} tensors"
        )
    check_unique("outputs", [entry.name for entry in outputs])
    for entry in outputs:
        if entry.name in inputs:
            raise ValueError(
                f"output {entry.name!r} has the name of an input, and names in a graph are unique: "
                "choose another name in outputs or inputs"
            )
    return tuple(outputs)


def _fast_path_differs(slow: Any, fast: Any) -> Iterator[str]:
    """Outputs in which nn.TransformerEncoder's fast path of eval mode differs."""
    for (path, ours), theirs in zip(tree_flatten_with_path(slow)[0], tree_leaves(fast), strict=True):
        if isinstance(ours, Tensor) and ours.is_floating_point() and ours.shape == theirs.shape and ours.numel():
            difference = float((ours - theirs).detach().abs().nan_to_num().max())
            largest = float(ours.detach().abs().nan_to_num().max())
            if difference > FAST_PATH_ROUNDING * largest:
                yield (
                    f"output{''.join(map(str, path))}: the fast path of nn.TransformerEncoder, which writes zeros at "
                    f"padded places, differs by {difference / largest:.2g} of the largest value; the file "
                    "computes those places as torch does without it"
                )


def _left_out(outputs: Any) -> Iterator[str]:
    for path, leaf in tree_flatten_with_path(outputs)[0]:
        if leaf is not None and not isinstance(leaf, Tensor):
            where = "".join(map(str, path)) or "the return value of forward"
            yield f"{where} ({type(leaf).__name__}) is not a tensor; the file has no output for it"


def _output_names(outputs: Any) -> Iterator[str]:
    leaves = [(path, leaf) for path, leaf in tree_flatten_with_path(outputs)[0] if isinstance(leaf, Tensor)]
    keys = [path[0].key if len(path) == 1 and isinstance(path[0], MappingKey) else None for path, _ in leaves]
    if len(leaves) == 1 and keys == [None]:
        yield "output"
        return
    for index, key in enumerate(keys):
        yield str(key) if isinstance(key, str) else f"output_{index}"
