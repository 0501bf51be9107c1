"""Clipping and optimizer steps on this process's shares of the parameters, with few calls for many of them."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from panther.runs import sharding

# update each tensor of their state in place, element by element
_BY_ELEMENT = (torch.optim.Adam, torch.optim.AdamW)


@torch.no_grad()
def clip_norm_(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Scale gradients down to a total norm over all parameters; of sharded ones, with one exchange of one number."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or not all(sharding.is_share_of_all(gradient) for gradient in gradients):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    shares = [sharding.share(gradient) for gradient in gradients]
    square = nn.utils.get_total_norm(shares).square()
    dist.all_reduce(square)
    torch._foreach_mul_(shares, (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0))


def step_(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take a step; Adam and AdamW on this process's shares of sharded parameters, without a DTensor for each operation.

    The optimizer's groups and state hold the sharded tensors before and after.
    """
    if scaler.is_enabled():
        # exchanges between the processes whether the gradients are finite
        scaler.step(optimizer)
        return
    with _on_shares(optimizer):
        optimizer.step()


@contextlib.contextmanager
def _on_shares(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    groups, state = optimizer.param_groups, optimizer.state
    whole = [group["params"] for group in groups]
    learning = [parameter for of_group in whole for parameter in of_group if parameter.grad is not None]
    # the first step creates the state
    ready = type(optimizer) in _BY_ELEMENT and all(state.get(parameter) for parameter in learning)
    if not ready or not any(sharding.is_share(parameter) for parameter in learning):
        yield
        return
    shares: dict[Tensor, Tensor] = {}
    of_shares: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter in learning:
        shares[parameter] = one = sharding.share(parameter)
        if one is not parameter and parameter.grad is not None:
            one.grad = sharding.share(parameter.grad)
        of_shares[one] = {
            key: sharding.share(value) if isinstance(value, Tensor) else value
            for key, value in state[parameter].items()
        }
    try:
        optimizer.state = of_shares
        for group, of_group in zip(groups, whole, strict=True):
            group["params"] = [shares[parameter] for parameter in of_group if parameter in shares]
        yield
    finally:
        optimizer.state = state
        for group, of_group in zip(groups, whole, strict=True):
            group["params"] = of_group


class ManyRatesAdam(torch.optim.Adam):
    """Adam with a group, and so a learning rate, for each parameter, in as few launches as with one group.

    The results are those of torch.optim.Adam, bit for bit on the CPU, and so is the state.

    Args:
        groups: each with "params" and "lr".
        betas, eps: of Adam, the same in all groups.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, foreach=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; a closure computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, Any, float]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device="cpu")
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                member = (parameter, parameter.grad, state, float(group["lr"]))
                kinds.setdefault((parameter.device, parameter.dtype), []).append(member)
        for members in kinds.values():
            self._step(members)
        return loss

    def _step(self, members: list[tuple[Tensor, Tensor, Any, float]]) -> None:
        beta1, beta2 = self.defaults["betas"]
        torch._foreach_add_([state["step"] for _, _, state, _ in members], 1)
        steps = [state["step"].item() for _, _, state, _ in members]
        gradients = [sharding.share(gradient) for _, gradient, _, _ in members]
        means = [sharding.share(state["exp_avg"]) for _, _, state, _ in members]
        squares = [sharding.share(state["exp_avg_sq"]) for _, _, state, _ in members]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(divisors, self.defaults["eps"])
        sizes = [-lr / (1 - beta1**step) for step, (_, _, _, lr) in zip(steps, members, strict=True)]
        torch._foreach_addcdiv_([sharding.share(parameter) for parameter, _, _, _ in members], means, divisors, sizes)
