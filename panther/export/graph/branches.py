"""Layers that choose a branch by their input: a graph holds one branch, which the caller chooses."""

from __future__ import annotations

from torch import nn

from panther.nn import ConditionalSKLinear

BRANCHES = ("sketched", "standard")


def choose_branches(model: nn.Module, conditional: str | None) -> nn.Module:
    """Replace every conditional layer by the chosen branch.

    Args:
        model: changed in place.
        conditional: "sketched" or "standard"; None where there is nothing to choose.

    Returns:
        The model, or the branch where the whole model is one conditional layer.

    Raises:
        ValueError: there is a conditional layer and no choice, or the choice is unknown.
    """
    found = [
        name or type(model).__name__ for name, part in model.named_modules() if isinstance(part, ConditionalSKLinear)
    ]
    if conditional is not None and conditional not in BRANCHES:
        raise ValueError(f"conditional ({conditional!r}) must be one of {list(BRANCHES)}")
    if not found:
        return model
    if conditional is None:
        raise ValueError(
            f"layer {found[0]!r} chooses its branch by the number of rows, and a graph holds one: "
            "say conditional='sketched' or conditional='standard'"
        )

    def branch(layer: ConditionalSKLinear) -> nn.Module:
        return layer.as_sketched() if conditional == "sketched" else layer.as_standard()

    if isinstance(model, ConditionalSKLinear):
        return branch(model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, ConditionalSKLinear):
                parent._modules[name] = branch(child)
    return model
