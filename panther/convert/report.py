"""What a conversion did, layer by layer and in all."""

from __future__ import annotations

import html
import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

# columns of a terminal that shows the whole table
_WIDE = 150


@dataclass(frozen=True)
class Cost:
    """What a layer costs, its bias included.

    Attributes:
        learnable: parameters that are trained.
        fixed: parameters of U; 0 for a dense layer.
        bytes: of both in memory.
        multiply_adds_per_row: of a forward pass, without the bias.
    """

    learnable: int
    fixed: int
    bytes: int
    multiply_adds_per_row: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.learnable + other.learnable,
            self.fixed + other.fixed,
            self.bytes + other.bytes,
            self.multiply_adds_per_row + other.multiply_adds_per_row,
        )

    @property
    def stored(self) -> int:
        """Learnable and fixed together."""
        return self.learnable + self.fixed


@dataclass(frozen=True)
class LayerReport:
    """One weight of the model.

    Attributes:
        name: dotted, of the layer.
        names: of every place that the weight stands in; more than one where layers are shared or tied.
        in_features, out_features: its sizes.
        converted: whether it is an SKLinear now.
        reason: why it was converted, or why not.
        rank: 2·num_terms·low_rank; None where it is dense.
        num_terms, low_rank: of the SKLinear; None where it is dense.
        weight_error: ‖W - Ŵ‖ / ‖W‖, Frobenius norms; 0 where it is dense.
        data_error: ‖Y - Ŷ‖ / ‖Y‖ of the layer's own outputs on the calibration inputs, about their mean where the layer
            has a bias; None without calibration.
        before, after: what it cost and costs.
    """

    name: str
    names: tuple[str, ...]
    in_features: int
    out_features: int
    converted: bool
    reason: str
    rank: int | None
    num_terms: int | None
    low_rank: int | None
    weight_error: float
    data_error: float | None
    before: Cost
    after: Cost


@dataclass(frozen=True)
class ConversionReport:
    """What `panther.sketch_` did; ``print(report)`` shows the table, as does a notebook.

    Attributes:
        layers: every linear layer in play, in the order of the model; those that filter_fn or skip excluded are not.
        before, after: totals over these layers, every tied weight once.
        model_parameters_before, model_parameters_after: stored parameters of the whole model, U included.
        model_bytes_before, model_bytes_after: of all its parameters and buffers.
        allocation: how the ranks were chosen: "allocated", or "uniform" where that proved better.
        output_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs on calibration inputs; None without calibration.
        output_cosine: the mean cosine between y and ŷ there, over rows.
        notes: what else is worth knowing.
    """

    layers: tuple[LayerReport, ...]
    before: Cost
    after: Cost
    model_parameters_before: int
    model_parameters_after: int
    model_bytes_before: int
    model_bytes_after: int
    allocation: str
    output_error: float | None
    output_cosine: float | None
    notes: tuple[str, ...] = ()

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of every layer that is sketched now."""
        return tuple(name for layer in self.layers if layer.converted for name in layer.names)

    @property
    def kept(self) -> dict[str, str]:
        """The layers that stayed dense, with the reason."""
        return {name: layer.reason for layer in self.layers if not layer.converted for name in layer.names}

    @property
    def ratio(self) -> float:
        """Stored parameters of the layers in play, after by before."""
        return self.after.stored / self.before.stored

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        values: dict[str, Any] = asdict(self)
        values["layers"] = [{**layer, "names": list(layer["names"])} for layer in values["layers"]]
        values["notes"] = list(self.notes)
        return {**values, "ratio": self.ratio, "replaced": list(self.replaced), "kept": self.kept}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table() if options.max_width >= _WIDE else self._narrow_table()
        yield (
            f"whole model: {self.model_parameters_before:,} → {self.model_parameters_after:,} stored parameters, "
            f"{_bytes(self.model_bytes_before)} → {_bytes(self.model_bytes_after)}; ranks {self.allocation}"
        )
        if self.output_error is not None and self.output_cosine is not None:
            yield (
                f"outputs on calibration inputs: relative error {self.output_error:.4f}, "
                f"mean cosine {self.output_cosine:.4f}"
            )
        yield from self.notes

    def _table(self) -> Table:
        table = Table(title="Conversion of the linear layers", title_justify="left")
        costs = ("stored", "before", "bytes", "before", "mult-adds/row", "before")
        for heading in ("layer", "in → out", "rank", "error: weights", "on data", *costs):
            table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=heading != "layer")
        table.add_column("reason", overflow="fold")
        for layer in self.layers:
            table.add_row(*_head(layer), *_errors(layer), *_cells(layer.before, layer.after), layer.reason)
        table.add_section()
        table.add_row("together", "", "", "", "", *_cells(self.before, self.after), f"{self.ratio:.1%} stored")
        return table

    def _narrow_table(self) -> Table:
        table = Table(title="Conversion of the linear layers", title_justify="left")
        for heading in ("layer", "in → out", "rank", "on data", "stored"):
            table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=heading != "layer")
        table.add_column("reason", overflow="fold")
        for layer in self.layers:
            table.add_row(*_head(layer), _errors(layer)[1], _share(layer.before, layer.after), layer.reason)
        table.add_section()
        table.add_row("together", "", "", "", _share(self.before, self.after), "")
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=200, color_system=None).print(self)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _head(layer: LayerReport) -> list[str]:
    return [
        layer.name + (f" (+{len(layer.names) - 1} tied)" if len(layer.names) > 1 else ""),
        f"{layer.in_features} → {layer.out_features}",
        str(layer.rank) if layer.rank is not None else "dense",
    ]


def _errors(layer: LayerReport) -> list[str]:
    if not layer.converted:
        return ["", ""]
    return [f"{layer.weight_error:.4f}", "" if layer.data_error is None else f"{layer.data_error:.4f}"]


def _share(before: Cost, after: Cost) -> str:
    return f"{after.stored / before.stored:.1%}"


def _cells(before: Cost, after: Cost) -> list[str]:
    return [
        f"{after.stored:,}",
        f"{before.stored:,}",
        _bytes(after.bytes),
        _bytes(before.bytes),
        f"{after.multiply_adds_per_row:,}",
        f"{before.multiply_adds_per_row:,}",
    ]


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
