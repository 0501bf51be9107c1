"""Weights quantized by another library: exported as the floats that they represent, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from panther.export.errors import ExportError, first_line

_QUANTIZED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
# largest relative difference between floats and the same weights in 8 or 4 bits, by the model's own type
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
_HALF_ROUNDING = 3e-2
_WAY_OUT = "export the model before it is quantized; precision='int8' stores the weights of the file in eight bits"


def quantized_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that are not plain float tensors.

    Raises:
        ExportError: a layer computes in quantized arithmetic.
    """
    names = []
    for prefix, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_QUANTIZED_MODULES):
            raise ExportError(
                f"layer {prefix or 'the model'!r} ({kind.__module__}.{kind.__name__}) computes in quantized "
                f"arithmetic, which a graph of floats does not: {_WAY_OUT}"
            )
        held = module._parameters.items()
        names += [
            f"{prefix}.{name}" if prefix else name
            for name, parameter in held
            if parameter is not None and not _is_plain(parameter)
        ]
    return names


def dequantized(model: nn.Module, names: list[str]) -> nn.Module:
    """A copy of a model with these parameters dequantized to floats.

    Raises:
        ExportError: one can't be read as floats.
    """
    result = copy.deepcopy(model)
    floats: dict[int, nn.Parameter] = {}
    for path in names:
        prefix, _, name = path.rpartition(".")
        parameters = result.get_submodule(prefix)._parameters
        quantized = parameters[name]
        if quantized is not None:
            if id(quantized) not in floats:
                floats[id(quantized)] = _floats(path, quantized)
            parameters[name] = floats[id(quantized)]
    return result


def check_same(quantized: nn.Module, floats: nn.Module, inputs: Mapping[str, Tensor], *, by_name: bool) -> None:
    """Compare a model with quantized weights with its copy in floats, both as they are.

    Raises:
        ExportError: their outputs differ, for example because activations are quantized too.
    """
    dtype = next((parameter.dtype for parameter in floats.parameters() if parameter.is_floating_point()), torch.float32)
    feeds = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    pairs = zip(*(_outputs(model, feeds, by_name=by_name) for model in (quantized, floats)), strict=True)
    for ours, theirs in pairs:
        largest = float(ours.abs().max()) or 1.0
        difference = float((ours - theirs).abs().max()) / largest
        if not difference <= _ROUNDING.get(dtype, _HALF_ROUNDING):
            raise ExportError(
                f"with its quantized weights as floats the model's outputs differ by {difference:.2g} of the largest: "
                f"it quantizes activations too, which the file would not; {_WAY_OUT}"
            )


def _outputs(model: nn.Module, feeds: Mapping[str, Tensor], *, by_name: bool) -> list[Tensor]:
    with torch.no_grad():
        outputs = model(**feeds) if by_name else model(*feeds.values())
    return [leaf.double() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.numel()]


def _is_plain(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return True
    return type(parameter.data) in (Tensor, nn.Parameter) and not parameter.is_quantized


def _floats(name: str, parameter: nn.Parameter) -> nn.Parameter:
    kind = type(parameter.data).__name__
    try:
        with torch.no_grad():
            dense = parameter.dequantize()
    except Exception as error:
        raise ExportError(
            f"parameter {name!r} is a {kind}, which can't be read as floats ({first_line(error)}): {_WAY_OUT}"
        ) from error
    if type(dense) is not Tensor or not dense.is_floating_point():
        raise ExportError(f"parameter {name!r} is a {kind}, which gives no floats when it is dequantized: {_WAY_OUT}")
    return nn.Parameter(dense, requires_grad=False)
