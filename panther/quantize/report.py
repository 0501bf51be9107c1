"""The report of a quantization, layer by layer and in total."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

# terminal width that shows the whole table
_WIDE = 180


@dataclass(frozen=True)
class QuantizedLayer:
    """One weight of the model.

    Attributes:
        name: dotted, of the layer or embedding.
        kind: "linear", "convolution" or "embedding".
        shape: of its weight, (d_out, d_in).
        precision: "int8", "int4" or "float32".
        reason: why.
        alpha: of the smoothing of static int8, 0 for none; else None.
        predicted_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs from this layer alone, from the calibration moments; None
            for embeddings and where nothing is known.
        bytes_before, bytes_after: of the weight, its scales, its correction and bias.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    precision: str
    reason: str
    alpha: float | None
    predicted_error: float | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class QuantizationReport:
    """The report of `panther.quantize_`; ``print(report)`` shows the table.

    Attributes:
        layers: every eligible linear layer and embedding, in the order of the model.
        smoothing: how alpha was chosen: "per layer" by predicted effect, or "uniform" where that proved better; None
            for weights in blocks.
        output_error: ‖y - ŷ‖ / ‖y‖ of the model's outputs on the calibration inputs.
        output_cosine: the mean cosine between y and ŷ there, over rows.
        measured_on: the inputs that both are measured on, in words.
        notes: what else is worth knowing.
    """

    layers: tuple[QuantizedLayer, ...]
    smoothing: str | None
    output_error: float
    output_cosine: float
    measured_on: str
    notes: tuple[str, ...] = ()

    @property
    def bytes_before(self) -> int:
        """Bytes of the eligible layers, before."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of the eligible layers, after."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def quantized(self) -> tuple[QuantizedLayer, ...]:
        """The layers that hold 8-bit or 4-bit weights now."""
        return tuple(layer for layer in self.layers if layer.precision != "float32")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="Quantization of linear layers, convolutions and embeddings", title_justify="left")
        for column in ("layer", "weight", "precision", "alpha", "predicted error", "bytes", "reason"):
            table.add_column(column, justify="left" if column in ("layer", "precision", "reason") else "right")
        for layer in self.layers:
            table.add_row(
                layer.name,
                "x".join(map(str, layer.shape)),
                layer.precision,
                "" if layer.alpha is None else f"{layer.alpha:g}",
                "" if layer.predicted_error is None else f"{layer.predicted_error:.2%}",
                f"{layer.bytes_before:,} → {layer.bytes_after:,}",
                layer.reason,
            )
        yield table
        yield (
            f"{self.bytes_before:,} → {self.bytes_after:,} bytes; model outputs: error {self.output_error:.2%}, "
            f"cosine {self.output_cosine:.5f} ({self.measured_on})"
            + ("" if self.smoothing is None else f"; smoothing {self.smoothing}")
        )
        yield from (f"note: {note}" for note in self.notes)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDE)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())
