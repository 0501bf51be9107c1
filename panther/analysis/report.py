"""Report of an analysis: costs of each sketched layer beside its dense twin, as values and as tables."""

from __future__ import annotations

import html
import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from panther.counting import ParameterCount


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
