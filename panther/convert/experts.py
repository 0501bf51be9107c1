"""Experts packed into tensors with three axes: during conversion each matrix is a layer.

See docs/decisions/0079-experts-as-layers.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from panther.convert.layers import Unit
from panther.convert.moments import Moments
from panther.nn.experts import EVERY_LIST, LISTS, GatedExperts, OpenedExperts, RoutedExperts, StackedExperts

# pooled rows of all experts that are added to each expert's moments, per direction of its input
_POOLED_ROWS = 0.1
# largest relative difference between both ways on the compared rows, by bytes of an entry
_TOLERANCES = {2: 3e-2, 4: 1e-4, 8: 1e-8}
_ROWS = 4
_GATED = ("w1", "v1", "w2")


def opened_experts(module: nn.Module) -> OpenedExperts | None:
    """The experts with a layer for each matrix; None for experts of an unknown kind.

    Supported are the experts of transformers (`use_experts_implementation`, Llama 4 and DBRX) and modules with the same
    structure: weights ``gate_up_proj`` or ``up_proj`` and ``down_proj`` with three axes, and optional biases. If the
    weights have values, random rows check that both compute the same.
    """
    gated = gated_weights(module)
    if gated:
        made = GatedExperts(module)
        return made if gated[0].is_meta or _computes_the_same(module, made, gated[0]) else None
    kind, weights = _kind(module), _weights(module)
    if kind is None or weights is None:
        return None
    first, down = weights
    fitting = [
        transposed
        for transposed, axes in ((False, (2, 1)), (True, (1, 2)))
        if first.shape[axes[0]] == down.shape[axes[1]]
    ]
    stated = getattr(module, "is_transposed", None)
    for transposed in fitting if stated is None else [stated]:
        found = kind(module, transposed=transposed)
        if first.is_meta or _computes_the_same(module, found, first):
            return found
    return None


def expert_groups(model: nn.Module, units: Iterable[Unit]) -> list[list[Unit]]:
    """Groups of units: the same matrix in all experts of one module.

    Args:
        model: the model with opened experts.
        units: any of its layers.
    """
    of_module = {id(place.module): unit for unit in units for place in unit.places}
    found = []
    for experts in model.modules():
        if not isinstance(experts, OpenedExperts):
            continue
        for name in EVERY_LIST:
            group = [of_module[id(layer)] for layer in experts.layers(name) if id(layer) in of_module]
            if len(group) > 1:
                found.append(list({id(unit): unit for unit in group}.values()))
    return found


def mark_pooled(model: nn.Module, units: Iterable[Unit]) -> None:
    """Mark the units of experts, whose moments `pool_moments` changes."""
    for group in expert_groups(model, units):
        for unit in group:
            unit.pooled = True


def pool_moments(model: nn.Module, units: Iterable[Unit], moments: Mapping[int, Moments]) -> None:
    """Shrink the moments of each expert's layers towards those of all experts of its module, more for few rows.

    The rows of an expert are extended by `_POOLED_ROWS` mean rows of all experts for each direction of its input. The
    total weight in the model's outputs remains that of the seen rows, or of one row if there were none.

    Args:
        model: the model with opened experts.
        units: the units that calibration watched.
        moments: calibration sums by the id of a unit; they are changed in place.
    """
    for group in expert_groups(model, units):
        _pool([moments[id(unit)] for unit in group])


def _pool(group: Sequence[Moments]) -> None:
    rows = sum(each.rows for each in group)
    if rows == 0:
        return
    second, total = sum(each.second for each in group) / rows, sum(each.total for each in group) / rows
    # one after the other: they may be loaded from a file
    known = (own for each in group if (own := each.sensitivity) is not None)
    sensitivity = sum(known) / rows
    more = max(1, round(_POOLED_ROWS * len(group[0].total)))
    for each in group:
        seen, own = max(each.rows, 1), each.sensitivity
        each.second = each.second + more * second
        each.total = each.total + more * total
        if isinstance(sensitivity, Tensor):
            prior = more * sensitivity
            each.sensitivity = (prior if own is None else own + prior) * (seen / (each.rows + more))
        each.rows += more
        each.calls = max(each.calls, 1)


def gated_weights(module: nn.Module) -> list[Tensor]:
    """``w1``, ``v1`` and ``w2`` of DBRX's packed experts in a module ``mlp``; empty for other modules."""
    packed, count = module._modules.get("mlp"), getattr(module, "num_experts", None)
    if packed is None or module._parameters or len(module._modules) > 1 or "forward" in module.__dict__:
        return []
    weights = [packed._parameters.get(name) for name in _GATED]
    if set(packed._parameters) != set(_GATED) or not isinstance(count, int) or not hasattr(packed, "activation_fn"):
        return []
    found: list[Tensor] = [weight for weight in weights if weight is not None and weight.dim() == 2]
    plain = all(weight.is_floating_point() and weight.dtype.itemsize in _TOLERANCES for weight in found)
    alike = len(found) == len(_GATED) and len({(weight.shape, weight.dtype) for weight in found}) == 1
    return found if plain and alike and count > 0 and len(found[0]) % count == 0 else []


def _kind(module: nn.Module) -> type[RoutedExperts | StackedExperts] | None:
    """Choose the class by the arguments of its forward: rows, experts and weights, or only rows."""
    if isinstance(module, OpenedExperts) or "forward" in module.__dict__ or parametrize.is_parametrized(module):
        return None
    known = set(LISTS) | {f"{name}_bias" for name in LISTS}
    if module._buffers or not module._parameters or not module._parameters.keys() <= known:
        return None
    if getattr(module, "_is_expert_parallel", False):
        return None
    # the class's own forward, unbound, without its decorators
    taken = len(inspect.signature(inspect.unwrap(type(module).forward)).parameters)
    kinds: dict[int, type[RoutedExperts | StackedExperts]] = {2: StackedExperts, 4: RoutedExperts}
    return kinds.get(taken)


def _weights(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The weights of the first layers and of the last ones, each (E, …, …)."""
    given = [module._parameters.get(name) for name in LISTS]
    found = [weight for weight in given if weight is not None]
    if len(found) != 2 or given[2] is None or any(weight.dim() != 3 for weight in found):
        return None
    first, down = found
    plain = first.is_floating_point() and first.dtype.itemsize in _TOLERANCES and first.dtype == down.dtype
    return (first, down) if plain and len(first) == len(down) > 0 else None


@torch.no_grad()
def _computes_the_same(module: nn.Module, found: OpenedExperts, weight: Tensor) -> bool:
    """Whether both compute the same for random rows."""
    random = torch.Generator().manual_seed(0)
    experts, width = len(found.down), found.down[0].out_features
    count = _ROWS if isinstance(found, RoutedExperts) else _ROWS * experts
    x = torch.randn(count, width, generator=random)  # type: ignore[call-overload]
    given = [x.to(weight)]
    if isinstance(found, RoutedExperts):
        order = torch.rand(count, experts, generator=random).argsort(1)[:, : min(2, experts)]
        shares = torch.rand(order.shape, generator=random)
        given += [order.to(weight.device), shares.to(weight)]
    try:
        # call forward directly: hooks must not see this comparison
        expected, y = type(module).forward(module, *given), type(found).forward(found, *given)
    except Exception:  # noqa: BLE001  a forward of another kind may raise anything
        return False
    if not isinstance(expected, Tensor) or expected.shape != y.shape:
        return False
    expected, y = expected.double(), y.double()
    if not bool(expected.isfinite().all()):
        # the layers report problems of their weights
        return torch.equal(expected.isfinite(), y.isfinite())
    return bool((y - expected).norm() <= _TOLERANCES[weight.dtype.itemsize] * expected.norm())
