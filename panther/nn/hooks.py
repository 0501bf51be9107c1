"""Move the forward and backward hooks of a module to its replacement."""

from __future__ import annotations

from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def take_hooks(new: nn.Module, old: nn.Module) -> None:
    """Move the hooks of another module to a module; their handles stay valid."""
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))


def computes_weights(module: nn.Module) -> bool:
    """Whether a hook of torch computes its weights from other parameters, as pruning and the older weight_norm do."""
    return any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values())
