"""Savings part of ``/stats``: parameters, multiply-adds and latency of the model card, with the reductions."""

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from app.runtime.card import Card, Latency, Layer, Parameters


class StatsPart(BaseModel):
    """Base of the objects in ``/stats``; an unknown value is null."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def reduction_percent(dense: int, ours: int) -> float | None:
    """Reduction against dense in percent; negative if ``ours`` is larger, None if there is nothing to reduce."""
    return None if dense == 0 else round(100 * (1 - ours / dense), 2)


class ParameterReduction(StatsPart):
    """Reduction against dense in percent, by each way of counting; negative for an increase."""

    learnable: float | None
    learnable_and_fixed: float | None


class ParameterStats(Parameters):
    """The three parameter counts of the card, their sum and the reductions."""

    model_config = ConfigDict(extra="forbid")

    learnable_and_fixed: int
    reduction_percent: ParameterReduction

    @classmethod
    def of(cls, counts: Parameters) -> Self:
        """Add the sum and the reductions to the counts of a card."""
        both = counts.learnable + counts.fixed
        reduction = ParameterReduction(
            learnable=reduction_percent(counts.dense, counts.learnable),
            learnable_and_fixed=reduction_percent(counts.dense, both),
        )
        return cls(**counts.model_dump(), learnable_and_fixed=both, reduction_percent=reduction)


class LayerStats(Layer):
    """One sketched layer."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(description="two_products: (x·A)·B; dense: x·W; merged: part of the layer in merged_into")
    parameters: ParameterStats

    @classmethod
    def of(cls, layer: Layer) -> Self:
        """Add sums and reductions to a layer of a card."""
        return cls(**{**dict(layer), "parameters": ParameterStats.of(layer.parameters)})


class TotalStats(StatsPart):
    """Sums over the sketched layers, and over the whole model."""

    sketched_layers: ParameterStats
    convolutions: ParameterStats | None
    embeddings: ParameterStats | None
    model: ParameterStats


class MultiplyAddStats(StatsPart):
    """Multiply-adds for one row, summed over the sketched layers."""

    dense: int
    planned: int
    reduction_percent: float | None

    @classmethod
    def of(cls, layers: list[Layer]) -> Self:
        """Sum the layers of a card."""
        dense = sum(layer.multiply_adds_per_row.dense for layer in layers)
        planned = sum(layer.multiply_adds_per_row.planned for layer in layers)
        return cls(dense=dense, planned=planned, reduction_percent=reduction_percent(dense, planned))


class LatencyStats(Latency):
    """The export's measurement against the dense twin; lists have one entry per batch size."""

    model_config = ConfigDict(extra="forbid")

    ratio_to_dense_twin: list[float] = Field(description="below 1 is faster than dense")

    @classmethod
    def of(cls, latency: Latency | None) -> Self | None:
        """Add the ratios; None without a measurement, or if a ratio exceeds the range of a float."""
        if latency is None:
            return None
        times = zip(latency.median_us, latency.dense_twin_median_us, strict=True)
        ratios = [ours / twin for ours, twin in times]
        if not all(map(math.isfinite, ratios)):
            return None
        return cls(**latency.model_dump(), ratio_to_dense_twin=[round(ratio, 3) for ratio in ratios])


class OutputStats(StatsPart):
    """Interpretation of an output, from the card."""

    name: str
    kind: str | None = Field(default=None, description="logits, probabilities, multilabel or regression")
    unit: str | None = Field(default=None, description="unit of a regression's numbers and of their errors in training")


_COPIED = ("schema_version", "created_at", "check", "storage", "compression_curve", "training", "versions")
_LAYERS = ("quantized_layers", "convolutions", "embeddings")
_WORKED_OUT = ("outputs", "layers", "totals", "multiply_adds_per_row", "latency")


def card_fields(card: Card | None) -> dict[str, Any]:
    """The fields of ``LoadedStats`` from the card; all None without a card."""
    if card is None:
        return dict.fromkeys(_COPIED + _LAYERS + _WORKED_OUT)
    totals = card.totals
    return {
        **{name: getattr(card, name) for name in _COPIED + _LAYERS},
        "outputs": [OutputStats(name=item.name, kind=item.kind, unit=item.unit) for item in card.outputs],
        "layers": [LayerStats.of(layer) for layer in card.layers],
        "totals": TotalStats(
            sketched_layers=ParameterStats.of(totals.sketched_layers),
            convolutions=None if totals.convolutions is None else ParameterStats.of(totals.convolutions),
            embeddings=None if totals.embeddings is None else ParameterStats.of(totals.embeddings),
            model=ParameterStats.of(totals.model),
        ),
        "multiply_adds_per_row": MultiplyAddStats.of(card.layers),
        "latency": LatencyStats.of(card.latency),
    }
