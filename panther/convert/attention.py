"""Projections of nn.MultiheadAttention as layers during conversion, where the module allows it.

See docs/decisions/0047-conversion-budgets.md.
"""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.utils import parametrize


def is_plain_attention(module: nn.Module) -> bool:
    """Whether it is exactly nn.MultiheadAttention: no subclass, not parametrized."""
    plain = type(module) is nn.MultiheadAttention and "forward" not in module.__dict__
    return plain and not parametrize.is_parametrized(module)


def within_transformers(model: nn.Module) -> set[int]:
    """Ids of the modules within a transformers model, which builds and initializes its attentions itself."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return set()
    pretrained = [module for module in model.modules() if isinstance(module, library.PreTrainedModel)]
    return {id(inner) for outer in pretrained for inner in outer.modules()}
