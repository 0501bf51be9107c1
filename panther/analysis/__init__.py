"""Costs and statistics of the sketched layers of a model, and the approximation error of a module."""

from panther.analysis.approximation import ApproximationQuality, approximation_quality
from panther.analysis.latency import median_latency_us
from panther.analysis.layers import analyze
from panther.analysis.report import Analysis, Costs, LayerAnalysis

__all__ = [
    "Analysis",
    "ApproximationQuality",
    "Costs",
    "LayerAnalysis",
    "analyze",
    "approximation_quality",
    "median_latency_us",
]
