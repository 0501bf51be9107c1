"""Export bags of embeddings as a lookup and a sum, instead of torch's loop.

torch exports a bag as a Loop node, which runs one bag at a time and prevents the proof that rows are independent.
"""

from __future__ import annotations

import functools
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from panther.nn import LowRankEmbeddingBag
from panther.nn.bags import reduce_bags

Bag = nn.EmbeddingBag | LowRankEmbeddingBag


def make_bags_traceable(model: nn.Module) -> None:
    """Make the bags of a model look up rows and add them up while they are traced, in place.

    Bags that take the maximum, have a custom forward, or renormalize their table on lookup (max_norm) stay unchanged.
    """
    for module in model.modules():
        if _is_plain(module):
            object.__setattr__(module, "forward", functools.partial(_forward, module))


def is_like_offsets(tensor: Tensor) -> bool:
    """Whether a tensor can be offsets of bags: non-decreasing integers that start at 0."""
    integers = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if tensor.dim() != 1 or len(tensor) < 2 or not integers:
        return False
    return bool(tensor[0] == 0) and bool((tensor[1:] >= tensor[:-1]).all())


def refuse_wrong_offsets(model: nn.Module) -> None:
    """Make the bags of a model raise ValueError for offsets beyond the indices."""
    for module in model.modules():
        if isinstance(module, Bag):
            module.register_forward_pre_hook(_check_offsets, with_kwargs=True)


def _check_offsets(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
    if isinstance(offsets, Tensor) and offsets.numel():
        rising = bool((offsets[1:] >= offsets[:-1]).all()) and bool(offsets[0] == 0)
        if not rising or bool(offsets[-1] > len(x)):
            raise ValueError(f"offsets ({offsets.tolist()[:8]}) must rise from 0 to at most {len(x)}, the indices")
        if module.include_last_offset and len(offsets) == 1:
            raise ValueError("offsets with the last one included must have at least two entries")


def _is_plain(module: nn.Module) -> TypeGuard[Bag]:
    if not isinstance(module, Bag) or module.mode not in ("sum", "mean") or "forward" in module.__dict__:
        return False
    kind = LowRankEmbeddingBag if isinstance(module, LowRankEmbeddingBag) else nn.EmbeddingBag
    if type(module).forward is not kind.forward or parametrize.is_parametrized(module):
        return False
    return getattr(module, "max_norm", None) is None


def _forward(
    module: Bag,
    input: Tensor,  # noqa: A002  as torch names it
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    table = module.A if isinstance(module, LowRankEmbeddingBag) else module.weight
    bags = reduce_bags(
        nn.functional.embedding(input, table),
        input,
        offsets,
        per_sample_weights,
        mode=module.mode,
        include_last_offset=module.include_last_offset,
        padding_idx=module.padding_idx,
    )
    return bags @ module.B if isinstance(module, LowRankEmbeddingBag) else bags
