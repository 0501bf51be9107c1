"""Parameter counts: public path of `panther.counting`."""

from panther.counting import (
    STARTING_POINTS,
    ParameterCount,
    StartingPoint,
    check_parameter_efficiency,
    count_parameters,
    multiply_adds_per_row,
    suggest,
)

__all__ = [
    "STARTING_POINTS",
    "ParameterCount",
    "StartingPoint",
    "check_parameter_efficiency",
    "count_parameters",
    "multiply_adds_per_row",
    "suggest",
]
