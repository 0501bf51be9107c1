"""Card entries of layers, and counts for the card: parameters, multiply-adds, and bytes of constants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from torch import nn

from panther.counting import ParameterCount, count_parameters
from panther.export import card as cards
from panther.export.graph.constants import BITS_SUFFIX
from panther.export.graph.lower import DENSE, TWO_PRODUCTS, Site
from panther.export.graph.nodes import all_nodes
from panther.export.graph.placeholders import layers_of
from panther.export.graph.sketched import sketched_layers, tied_layers
from panther.export.graph.trace import Traced
from panther.export.publish.embeddings import embedding_count
from panther.nn import SKLinear
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import (
    BlockEmbedding,
    BlockLinear,
    CorrectedLinear,
    FactoredLinear,
    Int4Kernel,
    Int8Embedding,
    Int8Kernel,
    Int8Linear,
    StoredConv,
)
from panther.nn.sketched_conv import SketchedConv

_TERMS = ("S1s", "S2s", "U1s", "U2s")


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants of a graph, as they are stored."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def other_bytes(graph: Traced) -> int:
    """Bytes of the constants of a traced graph that belong to no sketched layer's products."""
    sketched = {f"{name}.{term}" for name in graph.layers for term in _TERMS} | set(_TERMS)
    values = graph.model.graph.initializers.items()
    stored = sum(
        value.const_value.nbytes for name, value in values if name not in sketched and value.const_value is not None
    )
    return stored + sum(_dense_bytes(graph, name) for name in graph.read_densely())


def _dense_bytes(graph: Traced, name: str) -> int:
    layer = graph.layers[name]
    return layer.in_features * layer.out_features * layer.S1s.element_size()


def resident_bytes(optimized: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the constants of the graph that runs, by their type, the most first; "int4" where bytes hold two."""
    halves = {
        name
        for node in all_nodes(optimized.graph)
        if any(attribute.name == "bits" and attribute.i == 4 for attribute in node.attribute)
        for name in node.input
    }
    found: Counter[str] = Counter()
    for initializer in optimized.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
        name = "int4" if initializer.name in halves and dtype == np.uint8 else dtype.name
        found[name] += int(np.prod(initializer.dims, dtype=np.int64)) * dtype.itemsize
    return dict(found.most_common())


def quantized_entries(model: nn.Module) -> tuple[cards.QuantizedLayer, ...]:
    """Card entries of quantized layers and embeddings."""
    found = []
    for path, module in model.named_modules():
        name, blocks, smoothed = path or type(module).__name__, None, False
        if isinstance(module, Int8Linear):
            scheme, smoothed = "int8-static", module.smoothing is not None
        elif isinstance(module, BlockLinear):
            scheme, blocks = f"int{module.bits}-blocks", module.block_size
        elif isinstance(module, Int8Embedding | BlockEmbedding):
            sizes, scheme = (module.num_embeddings, module.embedding_dim), "int8-rows"
            if isinstance(module, BlockEmbedding):
                scheme, blocks = "int4-blocks", module.block_size
            found.append(cards.QuantizedLayer(name, "embedding", *sizes, scheme, smoothed, module.stored_bytes, blocks))
            continue
        elif isinstance(module, StoredConv):
            found += _stored_convolution(name, module)
            continue
        else:
            continue
        size = module.stored_bytes - (0 if module.bias is None else module.bias.nbytes)
        sizes = (module.in_features, module.out_features)
        found.append(cards.QuantizedLayer(name, "linear", *sizes, scheme, smoothed, size, blocks))
    return tuple(found)


def _stored_convolution(name: str, layer: StoredConv) -> list[cards.QuantizedLayer]:
    """An entry for each of its weights."""
    found = []
    for part, (kernel, _) in zip(("first", "second"), layer.kernels, strict=False):
        rows, *columns = kernel.shape
        block_size = kernel.block_size if isinstance(kernel, Int4Kernel) else None
        whole = name if layer.second is None else f"{name}.{part}"
        sizes = (math.prod(columns), rows)
        found.append(
            cards.QuantizedLayer(
                whole,
                "convolution",
                *sizes,
                "int8-stored" if block_size is None else "int4-stored",
                smoothed=False,
                weight_bytes=kernel.stored_bytes,
                block_size=block_size,
            )
        )
    return found


def u_storage(written: ir.Model) -> str:
    """Storage of the fixed matrices in a float file: "bits" if any is stored so, else "float"."""
    return "bits" if any(name.endswith(BITS_SUFFIX) for name in written.graph.initializers) else "float"


def layer_entries(
    model: nn.Module, sites: Sequence[Site], plans: Mapping[str, str], read_densely: Collection[str] = ()
) -> tuple[cards.Layer, ...]:
    """Card entries of sketched layers; tied ones are one layer with several uses.

    Args:
        model: that holds them.
        sites: the linear maps of its graph.
        plans: a plan for each site's name.
        read_densely: names of layers whose weight the model reads as a tensor.
    """
    return tuple(
        _entry(names, layers, sites, plans, read=bool(set(names) & set(read_densely)))
        for names, layers in _groups(model)
    )


def convolution_entries(model: nn.Module, plans: Mapping[str, cards.PlannedSite]) -> tuple[cards.Convolution, ...]:
    """Card entries of sketched convolutions."""
    found = []
    for name, layer in layers_of(model, SketchedConv).items():
        decision = plans[name]
        ours, dense = layer.multiply_adds_per_position()
        found.append(
            cards.Convolution(
                name,
                cards.ConvolutionShape(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.groups
                ),
                layer.num_terms,
                layer.low_rank,
                layer.terms,
                bias=layer.bias is not None,
                sketch=layer.sketch,
                plan=decision.plan,
                reason=decision.reason,
                weight_bytes=decision.weight_bytes,
                parameters=_parameters(layer.parameter_count()),
                multiply_adds_per_position=cards.MultiplyAdds(dense, dense if decision.plan == DENSE else ours),
                median_us=decision.median_us,
            )
        )
    return tuple(found)


def totals(model: nn.Module) -> cards.Totals:
    """Totals of the sketched layers and of the whole model, quantized weights too; shared weights count once.

    Corrections and factors in few bits count as learnt; the dense twin has one matrix for each of these layers.
    """
    groups = [layers for _, layers in _groups(model)]
    sketched = sum((_count(layers) for layers in groups), start=ParameterCount(0, 0, 0))
    of_layers = {id(p): p for layers in groups for layer in layers for p in layer.parameters()}
    convolutions = layers_of(model, SketchedConv)
    of_convolutions = {id(p): p for layer in convolutions.values() for p in layer.parameters()}
    of_sketched = of_layers.keys() | of_convolutions.keys()
    other = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in of_sketched)
    other += _quantized_weights(model)
    # layers that share only a bias are separate layers, each with its bias
    twice = sketched.learnable - sum(parameter.numel() for parameter in of_layers.values())
    whole = ParameterCount(
        dense=sketched.dense + other + _dense_more(model) - twice,
        learnable=sketched.learnable + other - twice,
        fixed=sketched.fixed,
    )
    convolved = sum((layer.parameter_count() for layer in convolutions.values()), start=ParameterCount(0, 0, 0))
    own = convolved.learnable - sum(parameter.numel() for parameter in of_convolutions.values())
    whole += ParameterCount(convolved.dense - own, convolved.learnable - own, convolved.fixed)
    tables = embedding_count(model)
    if tables is not None:
        # their factors are counted with the other parameters
        whole += ParameterCount(tables.dense - tables.learnable, 0, 0)
    return cards.Totals(
        _parameters(sketched),
        _parameters(whole),
        _parameters(convolved) if convolutions else None,
        None if tables is None else _parameters(tables),
    )


def _dense_more(model: nn.Module) -> int:
    """What dense weights have more entries than low-rank factors in few bits; corrections have no dense twin.

    Layers of one weight count once.
    """
    convolutions = {
        id(each.first): each.dense_entries - each.stored_entries
        for each in model.modules()
        if isinstance(each, StoredConv)
    }
    corrections = {id(each.correction) for each in model.modules() if isinstance(each, CorrectedLinear)}
    factored: dict[int, FactoredLinear | Int8LowRank] = {}
    for module in model.modules():
        if isinstance(module, FactoredLinear):
            factored[id(module.down.weight_packed)] = module
        elif isinstance(module, Int8LowRank):
            factored[id(module.first.weight_int8)] = module
    products = sum(
        (0 if id(each) in corrections else each.in_features * each.out_features) - _quantized_weights(each)
        for each in factored.values()
    )
    return products + sum(convolutions.values())


def _quantized_weights(model: nn.Module) -> int:
    """Entries of quantized weights."""
    found: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, Int8Linear | Int8Embedding | Int8Kernel):
            found[id(module.weight_int8)] = module.weight_int8.numel()
        elif isinstance(module, Int4Kernel):
            found[id(module.weight_packed)] = math.prod(module.shape)
        elif isinstance(module, BlockLinear):
            found[id(module.weight_packed)] = module.in_features * module.out_features
        elif isinstance(module, BlockEmbedding):
            found[id(module.weight_packed)] = module.num_embeddings * module.embedding_dim
    return sum(found.values())


def _groups(model: nn.Module) -> list[tuple[list[str], list[SKLinear]]]:
    """The sketched layers, those that are tied together, in the order of the model."""
    layers = sketched_layers(model)
    names: dict[str, list[str]] = {}
    for name, first in tied_layers(model).items():
        names.setdefault(first, []).append(name)
    return [(group, [layers[name] for name in group]) for group in names.values()]


def _biases(layers: Sequence[SKLinear]) -> int:
    return len({id(layer.bias) for layer in layers if layer.bias is not None})


def _count(layers: Sequence[SKLinear]) -> ParameterCount:
    """The matrices once, and each bias."""
    first = layers[0]
    count = count_parameters(first.in_features, first.out_features, first.num_terms, first.low_rank, bias=False)
    biases = _biases(layers) * first.out_features
    return ParameterCount(dense=count.dense + biases, learnable=count.learnable + biases, fixed=count.fixed)


def _parameters(count: ParameterCount) -> cards.Parameters:
    return cards.Parameters(dense=count.dense, learnable=count.learnable, fixed=count.fixed)


def _entry(
    names: Sequence[str], layers: Sequence[SKLinear], sites: Sequence[Site], plans: Mapping[str, str], *, read: bool
) -> cards.Layer:
    name, layer, biases = names[0], layers[0], _biases(layers)
    site = next((site for site in sites if name in site.layers), None)
    merged = site is not None and site.layers[0] != name
    # a layer that the graph does not use costs nothing to run
    planned = 0 if site is None or merged else site.weights(plans[site.name])
    note = None
    if read:
        size = layer.in_features * layer.out_features
        note = f"the model reads its weight as a tensor: {size:,} dense entries are in memory besides"
    return cards.Layer(
        name,
        layer.in_features,
        layer.out_features,
        layer.num_terms,
        layer.low_rank,
        bias=biases > 0,
        sketch=layer.sketch,
        plan="merged" if merged else TWO_PRODUCTS if site is None else plans[site.name],
        parameters=_parameters(_count(layers)),
        multiply_adds_per_row=cards.MultiplyAdds(dense=layer.in_features * layer.out_features, planned=planned),
        merged_into=site.layers[0] if site is not None and merged else None,
        uses=tuple(names) if len(names) > 1 else None,
        biases=biases if biases > 1 else None,
        note=note,
    )
