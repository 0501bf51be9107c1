"""What the card counts: parameters and multiply-adds of the sketched layers and of the model, bytes of constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from torch import nn

from panther.efficiency import ParameterCount
from panther.export import card as cards
from panther.export.constants import BITS_SUFFIX
from panther.export.lower import TWO_PRODUCTS, Site
from panther.export.trace import Traced, sketched_layers
from panther.nn import SKLinear

_TERMS = ("S1s", "S2s", "U1s", "U2s")


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants of a graph, as they are stored."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def other_bytes(graph: Traced) -> int:
    """Bytes of the constants of a traced graph that belong to no sketched layer's matrices."""
    sketched = {f"{name}.{term}" for name in graph.layers for term in _TERMS} | set(_TERMS)
    values = graph.model.graph.initializers.items()
    return sum(
        value.const_value.nbytes for name, value in values if name not in sketched and value.const_value is not None
    )


def resident_bytes(optimized: onnx.ModelProto) -> int:
    """Bytes of the constants of the graph that runs."""
    return sum(
        int(np.prod(initializer.dims, dtype=np.int64))
        * onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize
        for initializer in optimized.graph.initializer
    )


def u_storage(written: ir.Model) -> str:
    """How the fixed matrices lie in a float file: "bits" where any is stored so, else "float"."""
    return "bits" if any(name.endswith(BITS_SUFFIX) for name in written.graph.initializers) else "float"


def layer_entries(model: nn.Module, sites: Sequence[Site], plans: Mapping[str, str]) -> tuple[cards.Layer, ...]:
    """What the card says of each sketched layer."""
    return tuple(_entry(name, layer, sites, plans) for name, layer in sketched_layers(model).items())


def totals(model: nn.Module) -> cards.Totals:
    """The sketched layers together, and the whole model; weights that are tied are counted once."""
    layers = sketched_layers(model).values()
    sketched = sum((layer.parameter_count() for layer in layers), start=ParameterCount(0, 0, 0))
    of_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    other = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in of_layers)
    whole = ParameterCount(dense=sketched.dense + other, learnable=sketched.learnable + other, fixed=sketched.fixed)
    return cards.Totals(_parameters(sketched), _parameters(whole))


def _parameters(count: ParameterCount) -> cards.Parameters:
    return cards.Parameters(dense=count.dense, learnable=count.learnable, fixed=count.fixed)


def _entry(name: str, layer: SKLinear, sites: Sequence[Site], plans: Mapping[str, str]) -> cards.Layer:
    site = next((site for site in sites if name in site.layers), None)
    merged = site is not None and site.layers[0] != name
    # a layer that the graph does not use costs nothing to run
    planned = 0 if site is None or merged else site.weights(plans[site.name])
    return cards.Layer(
        name,
        layer.in_features,
        layer.out_features,
        layer.num_terms,
        layer.low_rank,
        bias=layer.bias is not None,
        sketch=layer.sketch,
        plan="merged" if merged else TWO_PRODUCTS if site is None else plans[site.name],
        parameters=_parameters(layer.parameter_count()),
        multiply_adds_per_row=cards.MultiplyAdds(dense=layer.in_features * layer.out_features, planned=planned),
        merged_into=site.layers[0] if site is not None and merged else None,
    )
