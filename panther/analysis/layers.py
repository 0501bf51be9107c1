"""Costs and statistics of the sketched layers of a model, each beside its dense twin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from panther.analysis.latency import median_latency_us
from panther.analysis.report import Analysis, Costs, LayerAnalysis
from panther.counting import ParameterCount, multiply_adds_per_row
from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.head import LowRankHead
from panther.nn.sketched_conv import SketchedConv

Layer = SKLinear | SketchedConv | LowRankTable


def analyze(model_or_layer: nn.Module, *, batch_size: int | None = 1) -> Analysis:
    """Report costs and statistics of the sketched layers of a module, beside their dense twins.

    Args:
        model_or_layer: any module, or an `SKLinear`; it is not changed.
        batch_size: rows of the forward passes that measure latency, about 20 ms per layer and twin, in the dtype and on
            the device of the layer; None measures nothing.

    Raises:
        ValueError: batch_size is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1, or None")
    kinds = (SKLinear, SketchedConv, LowRankTable)
    sketched = {name: module for name, module in model_or_layer.named_modules() if isinstance(module, kinds)}
    layers = tuple(_analyze_layer(name, module, batch_size) for name, module in sketched.items())
    every = sum(parameter.numel() for parameter in model_or_layer.parameters())
    total = _sum(_own(sketched.values(), layers))
    return Analysis(layers, total, every - total.parameters.learnable, batch_size)


def _terms(layer: Layer) -> tuple[Tensor | None, ...]:
    """S1s, S2s, U1s, U2s and bias."""
    if isinstance(layer, LowRankTable):
        return layer.A, layer.B, None, None, layer.bias if isinstance(layer, LowRankHead) else None
    return layer.S1s, layer.S2s, layer.U1s, layer.U2s, layer.bias


def _analyze_layer(name: str, layer: Layer, batch_size: int | None) -> LayerAnalysis:
    S1s, S2s, U1s, U2s, bias = _terms(layer)
    (S1s_mean, S1s_std), (S2s_mean, S2s_std) = _mean_std(S1s), _mean_std(S2s)
    count = layer.parameter_count()
    size = next(layer.parameters()).element_size()
    fixed_on_disk = sum(
        U.numel() * size if U.is_meta or sign_magnitude(U) is None else (U.numel() + 7) // 8
        for U in (U1s, U2s)
        if U is not None
    )
    ours, dense = _latencies(layer, batch_size) if isinstance(layer, SKLinear) else (None, None)
    ours_per_row, dense_per_row = _multiply_adds(layer)
    return LayerAnalysis(
        name,
        *_features(layer),
        *((1, layer.rank) if isinstance(layer, LowRankTable) else (layer.num_terms, layer.low_rank)),
        sketch="none" if isinstance(layer, LowRankTable) else layer.sketch,
        S1s_parameters=_entries(S1s),
        S2s_parameters=_entries(S2s),
        U1s_parameters=_entries(U1s),
        U2s_parameters=_entries(U2s),
        bias_parameters=_entries(bias),
        S1s_mean=S1s_mean,
        S1s_std=S1s_std,
        S2s_mean=S2s_mean,
        S2s_std=S2s_std,
        costs=Costs(
            parameters=count,
            bytes_in_memory=size * count.stored,
            dense_bytes_in_memory=size * count.dense,
            bytes_on_disk=size * count.learnable + fixed_on_disk,
            multiply_adds_per_row=ours_per_row,
            dense_multiply_adds_per_row=dense_per_row,
            latency_us=ours,
            dense_latency_us=dense,
        ),
        kernel_size=layer.kernel_size if isinstance(layer, SketchedConv) else None,
    )


def _features(layer: Layer) -> tuple[int, int]:
    if isinstance(layer, LowRankHead):
        return layer.in_features, layer.out_features
    if isinstance(layer, LowRankTable):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, SketchedConv):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _multiply_adds(layer: Layer) -> tuple[int, int]:
    if isinstance(layer, LowRankHead):
        return layer.multiply_adds_per_row()
    if isinstance(layer, LowRankTable):
        return layer.rank * layer.embedding_dim, 0
    if isinstance(layer, SketchedConv):
        return layer.multiply_adds_per_position()
    d_in, d_out = layer.in_features, layer.out_features
    return multiply_adds_per_row(d_in, d_out, layer.num_terms, layer.low_rank), d_in * d_out


def _entries(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _mean_std(S: Tensor | None) -> tuple[float | None, float | None]:
    if S is None or S.is_meta:
        return None, None
    values = S.detach().float()
    return values.mean().item(), values.std().item() if values.numel() > 1 else 0.0


def _latencies(layer: SKLinear, batch_size: int | None) -> tuple[float | None, float | None]:
    if batch_size is None or layer.S1s.is_meta:
        return None, None
    S = layer.S1s
    twin = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=S.dtype, device="meta"
    ).to_empty(device=S.device)
    x = torch.ones(batch_size, layer.in_features, dtype=S.dtype, device=S.device)
    with torch.no_grad():
        for parameter in twin.parameters():
            # denormal numbers in uninitialized memory would slow the products
            parameter.fill_(1e-3)
        return median_latency_us(lambda: layer(x), S.device), median_latency_us(lambda: twin(x), S.device)


def _own(sketched: Iterable[Layer], layers: Iterable[LayerAnalysis]) -> Iterator[Costs]:
    """Costs of each layer. Parameters shared with an earlier layer are left out, multiply-adds are not."""
    seen: set[int] = set()
    for module, layer in zip(sketched, layers, strict=True):
        costs, size = layer.costs, next(module.parameters()).element_size()
        *every, module_bias = _terms(module)
        terms = {id(term) for term in every if term is not None}
        tied = terms <= seen
        bias = layer.bias_parameters if module_bias is not None and id(module_bias) not in seen else 0
        shared = layer.bias_parameters - bias
        seen |= {*terms, id(module_bias)}
        count = costs.parameters
        own = ParameterCount(count.dense - shared, count.learnable - shared, count.fixed)
        if tied:
            own = ParameterCount(bias, bias, 0)
        yield replace(
            costs,
            parameters=own,
            bytes_in_memory=size * own.stored,
            dense_bytes_in_memory=size * own.dense,
            bytes_on_disk=size * bias if tied else costs.bytes_on_disk - size * shared,
        )


def _sum(costs: Iterable[Costs]) -> Costs:
    every = list(costs)

    def latency(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known and len(known) == len(values) else None

    return Costs(
        parameters=sum((entry.parameters for entry in every), start=ParameterCount(0, 0, 0)),
        bytes_in_memory=sum(entry.bytes_in_memory for entry in every),
        dense_bytes_in_memory=sum(entry.dense_bytes_in_memory for entry in every),
        bytes_on_disk=sum(entry.bytes_on_disk for entry in every),
        multiply_adds_per_row=sum(entry.multiply_adds_per_row for entry in every),
        dense_multiply_adds_per_row=sum(entry.dense_multiply_adds_per_row for entry in every),
        latency_us=latency([entry.latency_us for entry in every]),
        dense_latency_us=latency([entry.dense_latency_us for entry in every]),
    )
