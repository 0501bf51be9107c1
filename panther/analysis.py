"""Costs and statistics of the sketched layers of a model, and the approximation error of a module."""

from __future__ import annotations

import html
import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from panther.counting import ParameterCount, multiply_adds_per_row
from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.head import LowRankHead
from panther.nn.sketched_conv import SketchedConv

Layer = SKLinear | SketchedConv | LowRankTable


@dataclass(frozen=True)
class Costs:
    """Costs of a layer or model, and of its dense twin.

    Attributes:
        parameters: dense, learnable and fixed.
        bytes_in_memory, dense_bytes_in_memory: of the parameters and buffers.
        bytes_on_disk: of a compact checkpoint, in which signs take one bit; a dense twin's is its size in memory.
        multiply_adds_per_row, dense_multiply_adds_per_row: of a forward pass.
        latency_us, dense_latency_us: measured median of a forward pass; None if not measured.
    """

    parameters: ParameterCount
    bytes_in_memory: int
    dense_bytes_in_memory: int
    bytes_on_disk: int
    multiply_adds_per_row: int
    dense_multiply_adds_per_row: int
    latency_us: float | None = None
    dense_latency_us: float | None = None


@dataclass(frozen=True)
class LayerAnalysis:
    """One sketched layer; its many fields are the columns of the report.

    For an embedding of low rank, S1s is A and S2s is B, with one term of its rank and no U.

    Attributes:
        name: its dotted name in the model; empty for the module itself.
        in_features, out_features, num_terms, low_rank: its sizes; for a convolution the channels.
        sketch: the distribution of U; "none" for an embedding.
        S1s_parameters, S2s_parameters, U1s_parameters, U2s_parameters, bias_parameters: entries.
        S1s_mean, S1s_std, S2s_mean, S2s_std: of the values of S; None on the device ``meta``.
        costs: beside its dense twin; for a convolution per position of its output, without latency.
        kernel_size: of a convolution; None for other layers.
    """

    name: str
    in_features: int
    out_features: int
    num_terms: int
    low_rank: int
    sketch: str
    S1s_parameters: int
    S2s_parameters: int
    U1s_parameters: int
    U2s_parameters: int
    bias_parameters: int
    S1s_mean: float | None
    S1s_std: float | None
    S2s_mean: float | None
    S2s_std: float | None
    costs: Costs
    kernel_size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Analysis:
    """The sketched layers of a model, one by one and together.

    ``print(analysis)`` shows the table, as does a notebook; `as_dict` gives plain values.

    Attributes:
        layers: in the order of ``named_modules``, each layer once.
        total: over the layers; shared parameters count once, and latencies are added up.
        other_parameters: of the model outside its sketched layers.
        batch_size: rows of the latency measurement; None if not measured.
    """

    layers: tuple[LayerAnalysis, ...]
    total: Costs
    other_parameters: int
    batch_size: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        values: dict[str, Any] = asdict(self)
        values["layers"] = list(values["layers"])
        return values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.layers:
            yield "no sketched layers"
            return
        yield self._costs_table()
        yield self._terms_table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=170, color_system=None).print(self)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _costs_table(self) -> Table:
        table = Table(title="Sketched layers beside their dense twins", title_justify="left")
        stored = ("layer", "learnable", "fixed", "stored", "dense", "on disk", "in memory", "dense")
        headings = [*stored, "mult-adds/row", "dense"]
        if self.batch_size is not None:
            headings += [f"µs, batch {self.batch_size}", "dense"]
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer in self.layers:
            table.add_row(layer.name or "(module)", *_cells(layer.costs))
        if len(self.layers) > 1:
            table.add_section()
            table.add_row("together", *_cells(self.total))
        return table

    def _terms_table(self) -> Table:
        table = Table(title="Their terms", title_justify="left")
        tensors = ("S1s", "S2s", "U1s", "U2s", "bias", "S1s", "S2s")
        for heading in ("layer", "in → out", "terms", "rank", "sketch", *tensors):
            table.add_column(heading, justify="left" if heading in ("layer", "sketch") else "right")
        for layer in self.layers:
            table.add_row(
                layer.name or "(module)",
                f"{layer.in_features} → {layer.out_features}"
                + ("" if layer.kernel_size is None else f", {'x'.join(map(str, layer.kernel_size))}"),
                str(layer.num_terms),
                str(layer.low_rank),
                layer.sketch,
                f"{layer.S1s_parameters:,}",
                f"{layer.S2s_parameters:,}",
                f"{layer.U1s_parameters:,}",
                f"{layer.U2s_parameters:,}",
                f"{layer.bias_parameters:,}",
                _spread(layer.S1s_mean, layer.S1s_std),
                _spread(layer.S2s_mean, layer.S2s_std),
            )
        return table


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


@dataclass(frozen=True)
class ApproximationQuality:
    """Deviation of one module's outputs from another's; ``float()`` gives the mean relative error.

    Attributes:
        relative_error: the mean over the batches of ‖y - ŷ‖ / ‖y‖, Frobenius norms; 0 is equality, and zeros have 1.
        max_relative_error: the largest over the batches.
        mean_cosine: the mean over rows of the cosine between y and ŷ.
        rows: number of compared rows.
    """

    relative_error: float
    max_relative_error: float
    mean_cosine: float
    rows: int

    def __float__(self) -> float:
        return self.relative_error


def approximation_quality(
    reference: nn.Module | Callable[[Tensor], Tensor],
    approximation: nn.Module | Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Tensor],
) -> ApproximationQuality:
    """Compare the outputs of two modules for the same inputs, without gradients, in their current mode.

    Args:
        reference, approximation: modules with outputs of the same shape.
        inputs: one batch (a tensor), or several.

    Raises:
        ValueError: there are no inputs, the outputs differ in shape, or all outputs of the reference are zero.
    """
    errors, cosines, rows = [], 0.0, 0
    with torch.no_grad():
        for x in (inputs,) if isinstance(inputs, Tensor) else inputs:
            y, y_hat = reference(x).double(), approximation(x).double()
            if y.shape != y_hat.shape:
                raise ValueError(
                    f"the reference's output has shape {tuple(y.shape)}, the approximation's {tuple(y_hat.shape)}"
                )
            norm = y.norm().item()
            if norm == 0:
                raise ValueError("the reference's output holds zeros alone; no error is relative to it")
            errors.append((y - y_hat).norm().item() / norm)
            cosine = nn.functional.cosine_similarity(y, y_hat, dim=-1)
            cosines, rows = cosines + cosine.sum().item(), rows + cosine.numel()
    if not errors:
        raise ValueError("inputs holds no batch")
    return ApproximationQuality(statistics.fmean(errors), max(errors), cosines / rows, rows)


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


def median_latency_us(
    call: Callable[[], object], device: torch.device | None = None, *, seconds: float = 0.02
) -> float:
    """Measure the median time of a call, over some seconds and at least five calls, after two warm-up calls.

    Args:
        call: what to time.
        device: synchronized after each call (CUDA).
        seconds: how long to measure.
    """

    def once() -> float:
        start = time.perf_counter()
        call()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e6

    once()
    once()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)


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


def _cells(costs: Costs) -> list[str]:
    count = costs.parameters
    cells = [
        f"{count.learnable:,} ({-count.learnable_reduction_percent:+.1f}%)",
        f"{count.fixed:,}",
        f"{count.stored:,} ({-count.stored_reduction_percent:+.1f}%)",
        f"{count.dense:,}",
        _bytes(costs.bytes_on_disk),
        _bytes(costs.bytes_in_memory),
        _bytes(costs.dense_bytes_in_memory),
        f"{costs.multiply_adds_per_row:,}",
        f"{costs.dense_multiply_adds_per_row:,}",
    ]
    if costs.latency_us is not None and costs.dense_latency_us is not None:
        cells += [f"{costs.latency_us:,.0f}", f"{costs.dense_latency_us:,.0f}"]
    return cells


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _spread(mean: float | None, std: float | None) -> str:
    return "" if mean is None or std is None else f"{mean:+.4f} ± {std:.4f}"
