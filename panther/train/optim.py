"""Parameters in groups, for optimizers that step them differently."""

from __future__ import annotations

from typing import Any

from torch import nn

from panther.nn import SKConv1d, SKConv2d, SKLinear
from panther.nn.embedding import LowRankTable


def param_groups(model: nn.Module, *, sketch_lr: float, lr: float, **options: Any) -> list[dict[str, Any]]:
    """Split a model's parameters into S1s and S2s of its sketched layers, and all others, biases included.

    A and B of embeddings of low rank go with S1s and S2s.

    Args:
        model: its parameters that are frozen are left out; each of the others is there once.
        sketch_lr: the learning rate of S1s and S2s, A and B.
        lr: the learning rate of all others.
        options: what else both groups shall say, such as ``weight_decay=0.01``.

    Returns:
        What the optimizers of torch take; a group without parameters is left out.

    Raises:
        ValueError: a learning rate is negative, or nothing in the model learns.

    >>> import torch
    >>> model = nn.Sequential(SKLinear(64, 64, 1, 8), nn.Linear(64, 10))
    >>> groups = param_groups(model, sketch_lr=1e-3, lr=5e-4)
    >>> [(len(group["params"]), group["lr"]) for group in groups]
    [(2, 0.001), (3, 0.0005)]
    >>> optimizer = torch.optim.Adam(groups)
    """
    for name, rate in (("sketch_lr", sketch_lr), ("lr", lr)):
        if not rate >= 0:
            raise ValueError(f"{name} ({rate}) must not be negative")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise ValueError(f"{type(model).__name__} has no parameters that learn")
    layers = [module for module in model.modules() if isinstance(module, SKLinear | SKConv1d | SKConv2d)]
    sketched = {id(S) for layer in layers for S in (layer.S1s, layer.S2s)}
    sketched |= {id(S) for table in model.modules() if isinstance(table, LowRankTable) for S in (table.A, table.B)}
    groups = [
        {"params": [p for p in learning if id(p) in sketched], "lr": sketch_lr, **options},
        {"params": [p for p in learning if id(p) not in sketched], "lr": lr, **options},
    ]
    return [group for group in groups if group["params"]]
