"""Conversion: replace a trained model's dense layers by sketched approximations, and distill the result."""

from panther.convert.api import sketch_
from panther.convert.distill import DistillResult, distill_
from panther.convert.errors import ConversionError
from panther.convert.gradual import Distilled, Stage, sketch_and_distill
from panther.convert.report import ConversionReport, Cost, LayerReport
from panther.convert.restore import restore_

__all__ = [
    "ConversionError",
    "ConversionReport",
    "Cost",
    "DistillResult",
    "Distilled",
    "LayerReport",
    "Stage",
    "distill_",
    "restore_",
    "sketch_",
    "sketch_and_distill",
]
