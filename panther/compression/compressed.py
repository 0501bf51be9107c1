"""The result of `compress`: the model, the report, the curve, and the export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from panther.compression.curve import Curve
from panther.compression.inputs import Inputs
from panther.compression.report import CompressionReport
from panther.convert.errors import ConversionError
from panther.export import CompressionCurve, CurvePoint, ExportReport, export_onnx
from panther.export.card import MAX_POINTS


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
        model: a new model in eval mode, with the outputs of the exported file.
        report: kind and reason of every layer, with totals; ``print(report)``.
        curve: bytes and errors of the plans that were tried; ``print(curve)``, ``curve.save("curve.svg")``.
    """

    model: nn.Module
    report: CompressionReport
    curve: Curve
    _inputs: Inputs | ConversionError = field(repr=False)

    def export(
        self,
        path_or_repository: str | Path,
        *,
        name: str,
        example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> ExportReport:
        """Export the model to one ONNX file, as `panther.export.export_onnx` does; the card has the curve.

        Args:
            path_or_repository: a path ending in ``.onnx``, or the folder of a model repository.
            name: the model's name.
            example_inputs: rows to check on; some of the calibration inputs when None. Axes then vary in the file that
                vary between the calibration batches.
            options: of `export_onnx`, such as ``dynamic_axes`` and ``num_threads``.

        Raises:
            ConversionError: the calibration inputs are no arguments of the model; give example_inputs.
            ExportError: as of `export_onnx`.
        """
        if example_inputs is None:
            if isinstance(self._inputs, ConversionError):
                raise self._inputs
            example_inputs = self._inputs.examples()
            options = {"dynamic_axes": self._inputs.dynamic_axes, **options}
        options = {"compression_curve": self._card_curve(), **options}
        return export_onnx(self.model, example_inputs, path_or_repository, name=name, **options)

    def _card_curve(self) -> CompressionCurve | None:
        """The curve for the card; None if the error of the chosen model is infinite, because JSON has no infinity."""
        curve = self.curve.thinned(MAX_POINTS)
        if not math.isfinite(curve.points[curve.chosen].error):
            return None
        points = tuple(
            CurvePoint(
                bytes=point.bytes,
                error=point.error,
                measured=point.output_error is not None,
                chosen=index == curve.chosen,
                metric=_finite(point.metric),
            )
            for index, point in enumerate(curve.points)
        )
        original = None if self.report.metric is None else _finite(self.report.metric[0])
        return CompressionCurve(self.report.budget, self.report.bytes_before, points, original)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
