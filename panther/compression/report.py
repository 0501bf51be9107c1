"""The report of a compression, layer by layer and in total."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from panther.compression.options import FLOAT, Option, Part
from panther.compression.plan import Chooser, Plan
from panther.convert.report import Unreached

# terminal width that shows the whole table
_WIDE = 180
_MOST_GROUPS = 8


@dataclass(frozen=True)
class CompressedLayer:
    """One weight of the model.

    Attributes:
        name: dotted.
        layer: "linear", "convolution" or "embedding".
        shape: of its weight.
        kind: its new kind: "float" for unchanged, or one of `panther.compression.KINDS`.
        rank: rank of its factors or correction; None without them.
        detail: further parameters of its kind, such as the block size.
        reason: why.
        predicted_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs from this layer alone.
        bytes_before, bytes_after: of the weight, its scales and biases.
        multiply_adds_before, multiply_adds_after: for a row, or for a position of a convolution's output.
    """

    name: str
    layer: str
    shape: tuple[int, int]
    kind: str
    rank: int | None
    detail: str
    reason: str
    predicted_error: float
    bytes_before: int
    bytes_after: int
    multiply_adds_before: int
    multiply_adds_after: int

    @property
    def became(self) -> str:
        """The kind with its rank and detail."""
        return " ".join(filter(None, (self.kind, "" if self.rank is None else str(self.rank), self.detail)))


@dataclass(frozen=True)
class Side:
    """Figures of one method on the calibration inputs.

    Attributes:
        name: of the method.
        bytes: of the weights that it stores.
        output_error, output_cosine: of its outputs from the original's.
    """

    name: str
    bytes: int
    output_error: float
    output_cosine: float


@dataclass(frozen=True)
class Speed:
    """Measured latency of the exported files in onnxruntime, both sides in turn.

    Attributes:
        before_us, after_us: medians of a run, in microseconds, of the original and the compressed model.
        batch_size: rows of the inputs in a run.
        threads: CPU threads.
    """

    before_us: float
    after_us: float
    batch_size: int
    threads: int

    @property
    def speedup(self) -> float:
        """How many times as fast the compressed model is."""
        return self.before_us / self.after_us


@dataclass(frozen=True)
class CompressionReport:
    """The report of `panther.compress`; ``print(report)`` shows the table.

    Attributes:
        budget: in words.
        layers: every eligible linear layer, convolution and embedding, in the order of the model.
        unreached: parameters in modules that are no such layer, the largest group first.
        bytes_before, bytes_after: of the whole model's parameters and buffers.
        output_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs on the calibration inputs.
        output_cosine: the mean cosine between y and ŷ there, over rows.
        measured_on: the inputs that both are measured on, in words.
        metric: the caller's metric of the original and of the compressed model; None for other budgets.
        speed: measured if the budget is a speedup; else None.
        rivals: other methods on the same data; empty unless requested.
        notes: further remarks.
    """

    budget: str
    layers: tuple[CompressedLayer, ...]
    unreached: tuple[Unreached, ...]
    bytes_before: int
    bytes_after: int
    output_error: float
    output_cosine: float
    measured_on: str
    metric: tuple[float, float] | None = None
    speed: Speed | None = None
    rivals: tuple[Side, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes of the compressed model by the kind of layer, largest first; "other" is outside the eligible layers."""
        found: dict[str, int] = {}
        for layer in self.layers:
            found[layer.kind] = found.get(layer.kind, 0) + layer.bytes_after
        found["other"] = max(self.bytes_after - sum(found.values()), 0)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def as_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON."""
        values = dataclasses.asdict(self)
        plain: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }
        plain["layers"] = [{**layer, "shape": list(layer["shape"])} for layer in plain["layers"]]
        plain["unreached"] = [{**group, "names": list(group["names"])} for group in plain["unreached"]]
        return {**plain, "bytes_by_kind": self.bytes_by_kind}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _layer_table(self.layers)
        kinds = ", ".join(f"{kind} {size:,}" for kind, size in self.bytes_by_kind.items())
        yield (
            f"budget: {self.budget}; whole model {self.bytes_before:,} → {self.bytes_after:,} bytes "
            f"({self.bytes_after / max(self.bytes_before, 1):.1%}): {kinds}"
        )
        yield (
            f"outputs: relative error ‖y - ŷ‖ / ‖y‖ {self.output_error:.4f}, mean cosine {self.output_cosine:.5f}; "
            f"measured on {self.measured_on}"
        )
        if self.metric is not None:
            yield f"metric: {self.metric[0]:.4g} → {self.metric[1]:.4g}"
        if self.speed is not None:
            yield (
                f"latency: {self.speed.before_us:,.0f} → {self.speed.after_us:,.0f} µs, {self.speed.speedup:.2f} times "
                f"as fast; batch {self.speed.batch_size}, threads: {self.speed.threads}"
            )
        if self.rivals:
            yield _side_table(self)
        for group in self.unreached[:_MOST_GROUPS]:
            more = f" and {len(group.names) - 3} more" if len(group.names) > 3 else ""
            yield f"not eligible: {group.share:.1%} {group.kind} ({', '.join(group.names[:3])}{more}): {group.reason}"
        yield from (f"note: {note}" for note in self.notes)

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDE, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def layer_reports(parts: Sequence[Part], plan: Plan, chooser: Chooser) -> tuple[CompressedLayer, ...]:
    """The decision for every part, with its reason."""
    found = []
    for part, index, worthwhile in zip(parts, plan.chosen, chooser.worthwhile, strict=True):
        option, before = part.options[index], part.options[0]
        found.append(
            CompressedLayer(
                name=part.name,
                layer=part.layer,
                shape=part.shape,
                kind=option.kind,
                rank=option.rank,
                detail=option.detail,
                reason=part.reason or _why(part, option, [part.options[i] for i in worthwhile], chooser),
                predicted_error=math.sqrt(chooser.error(part, option)),
                bytes_before=before.bytes,
                bytes_after=option.bytes,
                multiply_adds_before=before.multiply_adds,
                multiply_adds_after=option.multiply_adds,
            )
        )
    return tuple(found)


def _why(part: Part, chosen: Option, worthwhile: Sequence[Option], chooser: Chooser) -> str:
    """The next cheaper option and its effect, or the next more expensive one."""
    cost, unit, error = chooser.cost.of, chooser.cost.unit, chooser.error(part, chosen)
    cheaper = [option for option in worthwhile if cost(option) < cost(chosen)]
    if cheaper:
        other = max(cheaper, key=cost)
        more = math.sqrt(max(chooser.error(part, other) - error, 0.0))
        return f"{other.label} saves {cost(chosen) - cost(other):,.0f} {unit} more for an error of {more:.2%}"
    dearer = [option for option in worthwhile if cost(option) > cost(chosen)]
    if dearer:
        other = min(dearer, key=cost)
        return f"the cheapest; {other.label} takes {cost(other) - cost(chosen):,.0f} {unit} more"
    return "no other option is worth its cost"


def _layer_table(layers: Sequence[CompressedLayer]) -> Table:
    table = Table(title="Compression of linear layers, convolutions and embeddings", title_justify="left")
    for heading in ("layer", "weight", "became", "predicted error", "bytes", "mult-adds/row, position", "reason"):
        table.add_column(heading, justify="left" if heading in ("layer", "became", "reason") else "right")
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.became,
            "" if layer.kind == FLOAT else f"{layer.predicted_error:.2%}",
            f"{layer.bytes_before:,} → {layer.bytes_after:,}",
            f"{layer.multiply_adds_before:,} → {layer.multiply_adds_after:,}" if layer.multiply_adds_before else "",
            layer.reason,
        )
    return table


def _side_table(report: CompressionReport) -> Table:
    table = Table(title="Side by side, on the calibration inputs", title_justify="left")
    for heading in ("", "bytes of weights", "error", "cosine"):
        table.add_column(heading, justify="left" if not heading else "right")
    ours = Side("compress", report.bytes_after, report.output_error, report.output_cosine)
    for side in (Side("original", report.bytes_before, 0.0, 1.0), ours, *report.rivals):
        table.add_row(side.name, f"{side.bytes:,}", f"{side.output_error:.4f}", f"{side.output_cosine:.5f}")
    return table
