"""Masks among the inputs: fully masked positions have no meaning, and torch and ONNX may differ there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from panther.export.graph.constants import Array

# value of additive masks: softmax maps such a score to zero
_LARGE_NEGATIVE = -1e4
# most masks whose values are tried in all combinations
_MOST_MASKS = 4


def is_mask(tensor: Tensor) -> bool:
    """Whether a tensor can be a mask: booleans, zeros and ones, or zeros and one large negative number."""
    return tensor.dtype == torch.bool or _values(tensor) is not None


def _values(tensor: Tensor) -> tuple[float, float] | None:
    """The two values of a mask; None where it is none."""
    if tensor.dtype == torch.bool:
        return 0, 1
    if not tensor.numel() or tensor.is_complex():
        return None
    if bool(((tensor == 0) | (tensor == 1)).all()):
        return 0, 1
    if not tensor.is_floating_point():
        return None
    lowest = tensor.min()
    additive = bool(lowest <= _LARGE_NEGATIVE) and bool(((tensor == 0) | (tensor == lowest)).all())
    return (0, float(lowest)) if additive else None


def cut(tensor: Tensor, axis: int, *, lets_through: str) -> Tensor:
    """An axis of a mask at size 1: of its entries the largest or the smallest, which may be those that hide.

    Args:
        tensor: the mask.
        axis: to be cut.
        lets_through: "largest" or "smallest": the entries to keep.
    """
    numbers = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
    reduce = torch.amax if lets_through == "largest" else torch.amin
    return reduce(numbers, axis, keepdim=True).to(tensor.dtype)


def hidden_rows(inputs: Mapping[str, Tensor], agrees: Callable[[Mapping[str, Tensor]], bool]) -> list[Array]:
    """The rows that each mask hides altogether, found by trying which of its two values hides.

    A mask that lets everything through leaves nothing undefined: with it, file and model agree. A value at which they
    don't agree any more, while the other inputs are as before, hides.

    Args:
        inputs: on which file and model differ.
        agrees: whether they agree on other inputs of the same shapes.

    Returns:
        For each mask that hides something, a boolean for each entry of its first axis; of one entry where it has one
        axis. Empty where the masks are not what the two differ by.
    """
    values = {name: pair for name, tensor in inputs.items() if (pair := _values(tensor)) is not None}
    names = list(values)[:_MOST_MASKS]

    def uniform(chosen: Mapping[str, float]) -> dict[str, Tensor]:
        return {**inputs, **{name: torch.full_like(inputs[name], value) for name, value in chosen.items()}}

    combinations = (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*map(values.get, names)))  # type: ignore[arg-type]
    visible = next((chosen for chosen in combinations if names and agrees(uniform(chosen))), None)
    if visible is None:
        return []
    found: list[Array] = []
    for name in names:
        hiding = next(value for value in values[name] if value != visible[name])
        if not agrees(uniform({**visible, name: hiding})):
            hidden = np.atleast_1d((inputs[name] == hiding).numpy())
            rows = len(hidden) if hidden.ndim > 1 else 1
            found.append(np.asarray(hidden.reshape(rows, -1, hidden.shape[-1]).all(axis=-1).any(axis=-1)))
    return [rows for rows in found if rows.any()]


def entries_of(rows: list[Array], shape: tuple[int, ...]) -> Array:
    """The entries of an output that hidden rows may reach: those of its rows where there are as many, else all."""
    reached = np.zeros(shape, dtype=bool)
    for hidden in rows:
        if len(hidden) > 1 and shape and len(hidden) == shape[0]:
            reached[hidden] = True
        else:
            reached[...] = True
    return reached
