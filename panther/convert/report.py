"""The report of a conversion, layer by layer and in total."""

from __future__ import annotations

import html
import io
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

# relative errors in Frobenius norms: of the weight, and of the layer's outputs on the calibration inputs
_ERRORS = ("‖W - Ŵ‖/‖W‖", "‖Y - Ŷ‖/‖Y‖")
_TITLE = "Conversion of the layers; rank: of the sketched weight, 2·num_terms·low_rank"
_CAPTION = (
    "errors in Frobenius norms, ‖W - Ŵ‖/‖W‖ of the weight and ‖Y - Ŷ‖/‖Y‖ of the layer's outputs on the calibration "
    "inputs; parameters and bytes with U and the biases; multiply-adds counted by formula, of a convolution for one "
    "position of its output"
)
# terminal width that shows the whole table
_WIDE = 150
_MOST_GROUPS = 8


@dataclass(frozen=True)
class Cost:
    """Cost of a layer, its bias included.

    Attributes:
        learnable: parameters that are trained.
        fixed: parameters of U; 0 for a dense layer.
        bytes: of both in memory.
        multiply_adds_per_row: of a forward pass, without the bias; of a convolution for one position of its output, of
            an embedding for a row that is looked up, or a bag.
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
class ConvolutionReport:
    """Further fields for a layer that is a convolution.

    Attributes:
        kernel_size, stride, groups: its own.
        terms: of the `SKConv2d`: "output", where a 1x1 convolution follows the one with the kernel, "input", where it
            comes first, or "both", of a 1x1 convolution; None if it is dense.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    terms: str | None = None


@dataclass(frozen=True)
class LayerReport:
    """One weight of the model.

    Attributes:
        name: dotted, of the layer.
        names: of every layer that holds the weight; several if layers are shared or tied.
        in_features, out_features: its sizes; for a convolution the channels, for an embedding rows and width.
        converted: whether it is sketched now.
        reason: why it was converted, or why not.
        rank: rank of the sketched weight, 2·num_terms·low_rank, or of the table; None if it is dense.
        num_terms, low_rank: sizes of the sketched layer; None if it is dense, and for an embedding.
        weight_error: ‖W - Ŵ‖ / ‖W‖, Frobenius norms; 0 where it is dense.
        data_error: ‖Y - Ŷ‖ / ‖Y‖ of the layer's own outputs on the calibration inputs, about their mean where the layer
            has a bias; None without calibration.
        before, after: its costs.
        convolution: further fields of a convolution; None for other layers.
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
    convolution: ConvolutionReport | None = None


@dataclass(frozen=True)
class Unreached:
    """Parameters outside the eligible layers, in modules of one kind.

    Attributes:
        kind: the class of the modules.
        names: dotted, of the modules.
        parameters: that they hold; 0 for a quantized module, whose weight is no parameter.
        share: of the model's parameters before the conversion.
        reason: why the conversion does not reach them.
    """

    kind: str
    names: tuple[str, ...]
    parameters: int
    share: float
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """The report of `panther.sketch_`; ``print(report)`` shows the table, as does a notebook.

    Attributes:
        layers: every eligible linear layer, convolution and embedding, in the order of the model; those that filter_fn
            or skip excluded are not.
        unreached: parameters outside these layers, the largest group first.
        before, after: totals over these layers, every tied weight once.
        model_parameters_before, model_parameters_after: stored parameters of the whole model, U included.
        model_bytes_before, model_bytes_after: of all its parameters and buffers.
        allocation: how the ranks were chosen: "allocated" by the predicted errors of layers, "allocated by gates", by
            the measured effect of their components (docs/decisions/0099-gates.md), or "uniform".
        output_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs on the calibration inputs, the model run as for inference: in
            eval mode, without gradients, with torch's fast paths. Rows that an attention_mask hides are left out; of
            several outputs it is the root mean square. None without calibration.
        output_cosine: the mean cosine between y and ŷ there, over rows.
        measured_on: the inputs that both are measured on, in words; empty without calibration.
        notes: further remarks.
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
    unreached: tuple[Unreached, ...] = ()
    measured_on: str = ""

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of every layer that is sketched now."""
        return tuple(name for layer in self.layers if layer.converted for name in layer.names)

    @property
    def kept(self) -> dict[str, str]:
        """The unchanged layers, including quantized ones, with the reason."""
        dense = {name: layer.reason for layer in self.layers if not layer.converted for name in layer.names}
        quantized = [group for group in self.unreached if group.reason.startswith("quantized")]
        return dense | {name: group.reason for group in quantized for name in group.names}

    @property
    def ratio(self) -> float:
        """Stored parameters of the eligible layers after the conversion, divided by those before."""
        return self.after.stored / self.before.stored

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        values: dict[str, Any] = asdict(self)
        values["layers"] = [{**layer, "names": list(layer["names"])} for layer in values["layers"]]
        values["notes"] = list(self.notes)
        values["unreached"] = [{**group, "names": list(group["names"])} for group in values["unreached"]]
        return {**values, "ratio": self.ratio, "replaced": list(self.replaced), "kept": self.kept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConversionReport:
        """The report from the result of `as_dict`."""
        own = {field.name: values[field.name] for field in fields(cls)}
        own |= {
            "layers": tuple(_layer(layer) for layer in values["layers"]),
            "before": Cost(**values["before"]),
            "after": Cost(**values["after"]),
            "notes": tuple(values["notes"]),
            "unreached": tuple(Unreached(**{**group, "names": tuple(group["names"])}) for group in values["unreached"]),
        }
        return cls(**own)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table() if options.max_width >= _WIDE else self._narrow_table()
        yield (
            f"whole model: {self.model_parameters_before:,} → {self.model_parameters_after:,} stored parameters, "
            f"{_bytes(self.model_bytes_before)} → {_bytes(self.model_bytes_after)}; ranks {self.allocation}"
        )
        if self.output_error is not None and self.output_cosine is not None:
            yield (
                f"outputs: relative error ‖y - ŷ‖ / ‖y‖ {self.output_error:.4f}, mean cosine {self.output_cosine:.4f}; "
                f"measured on {self.measured_on}"
            )
        if self.unreached:
            share = sum(group.share for group in self.unreached)
            yield f"not eligible: {share:.1%} of the model's parameters"
            for group in self.unreached[:_MOST_GROUPS]:
                more = f" and {len(group.names) - 3} more" if len(group.names) > 3 else ""
                yield (f"  {group.share:.1%} {group.kind} ({', '.join(group.names[:3])}{more}): {group.reason}")
            if len(self.unreached) > _MOST_GROUPS:
                yield f"  and {len(self.unreached) - _MOST_GROUPS} kinds more"
        yield from self.notes

    def _table(self) -> Table:
        table = Table(title=_TITLE, title_justify="left", caption=_CAPTION, caption_justify="left")
        costs = ("parameters", "before", "bytes", "before", "mult-adds/row", "before")
        for heading in ("layer", "in → out", "rank", *_ERRORS, *costs):
            table.add_column(heading, justify="left" if heading == "layer" else "right", no_wrap=heading != "layer")
        table.add_column("reason", overflow="fold")
        for layer in self.layers:
            table.add_row(*_head(layer), *_errors(layer), *_cells(layer.before, layer.after), layer.reason)
        table.add_section()
        table.add_row("together", "", "", "", "", *_cells(self.before, self.after), f"{self.ratio:.1%} stored")
        return table

    def _narrow_table(self) -> Table:
        table = Table(title=_TITLE, title_justify="left", caption=_CAPTION, caption_justify="left")
        for heading in ("layer", "in → out", "rank", _ERRORS[1], "stored"):
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


def _layer(values: dict[str, Any]) -> LayerReport:
    convolution = values["convolution"]
    if convolution is not None:
        sizes = {key: tuple(convolution[key]) for key in ("kernel_size", "stride")}
        convolution = ConvolutionReport(**{**convolution, **sizes})
    costs = {key: Cost(**values[key]) for key in ("before", "after")}
    return LayerReport(**{**values, **costs, "names": tuple(values["names"]), "convolution": convolution})


def _head(layer: LayerReport) -> list[str]:
    return [
        layer.name + (f" (+{len(layer.names) - 1} tied)" if len(layer.names) > 1 else ""),
        f"{layer.in_features} → {layer.out_features}" + _kernel(layer.convolution),
        str(layer.rank) if layer.rank is not None else "dense",
    ]


def _kernel(convolution: ConvolutionReport | None) -> str:
    return "" if convolution is None else f", {'x'.join(map(str, convolution.kernel_size))}"


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
