"""Row counts at which the experts of a mixture are timed: the mean over the experts of a layer."""

from __future__ import annotations

from torch import nn

from panther.nn import SKLinear
from panther.nn.experts import EVERY_LIST, OpenedExperts

Shape = tuple[int, ...]


def evenly_routed(model: nn.Module, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Input shapes of layers, with the mean number of rows for each expert.

    The router may send no row of the example inputs to an expert; in use every expert receives rows.

    Args:
        model: the model that was called.
        shapes: the input shape of each sketched layer by its name; (rows, d_in) for an expert.
    """
    found = dict(shapes)
    for name, experts in model.named_modules():
        if not isinstance(experts, OpenedExperts):
            continue
        for list_name in EVERY_LIST:
            prefix = f"{name}.{list_name}" if name else list_name
            sketched = {
                f"{prefix}.{index}": layer.in_features
                for index, layer in enumerate(experts.layers(list_name))
                if isinstance(layer, SKLinear)
            }
            rows = sum(shapes[each][0] for each in sketched if each in shapes)
            found |= {each: (max(1, round(rows / len(sketched))), width) for each, width in sketched.items()}
    return found
