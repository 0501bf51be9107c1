"""Fully sharded training (FSDP2): each process holds a share of every parameter, gradient and optimizer state.

See docs/decisions/0086-sharded-and-resumable-runs.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panther.nn import ConditionalSKLinear
from panther.runs import processes

# parameters that stay gathered until the backward pass: gathering them again takes the host longer than the GPU
_KEPT_BYTES = 2**29


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are divided between processes."""
    return bool(_sharded_modules(model)) or any(is_share(parameter) for parameter in model.parameters())


def reshard_(model: nn.Module) -> None:
    """Let go of parameters that were gathered for a forward pass that no backward pass followed."""
    for module in _sharded_modules(model):
        module.reshard()


def _sharded_modules(model: nn.Module) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def shard_(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Share a model's parameters out over the processes, in place; with one process nothing changes.

    The first process's values count. Members of a Sequential or ModuleList are gathered one at a time while they
    compute; what lies outside of these, or is shared between them, is gathered for the whole forward pass. All
    parameters of a model of up to 512 MiB stay gathered from the forward to the backward pass, which then exchanges
    nothing but gradients.

    Args:
        model: on the CPU or on the device of this process. Buffers, such as the fixed U of sketched layers, stay whole
            in each process.
        optimizer: of the model's parameters, that has taken no step yet; goes on with the shares.

    Raises:
        ValueError: a parameter has no axis, the model chooses a branch by the number of rows, or the optimizer has
            taken steps or has parameters that are not the model's.
    """
    if processes.world_size() == 1 or is_sharded(model):
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    _check(model, optimizer, names)
    processes.take_from_first([*model.parameters(), *model.buffers()])
    # imported here: the imports take seconds
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(_axis(parameter.shape, processes.world_size()))

    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.world_size(),))
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, shard_placement_fn=placement, reshard_after_forward=size > _KEPT_BYTES)
    # what lies outside of blocks is needed first in the backward pass
    fully_shard(model, mesh=mesh, shard_placement_fn=placement)
    if optimizer is not None:
        shares = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [shares[names[id(parameter)]] for parameter in group["params"]]


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is divided between processes, each of which has to call this."""
    whole: Tensor = tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]
    return whole


@torch.no_grad()
def share(tensor: Tensor) -> Tensor:
    """This process's share of a tensor that is divided, in the same memory; any other tensor itself."""
    own: Tensor = tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]
    return own


def is_share_of_all(tensor: Tensor) -> bool:
    """Whether a tensor is divided between all processes, of which none holds an entry of another."""
    if not is_share(tensor):
        return False
    mesh, (placement, *others) = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return not others and placement.is_shard() and mesh.size() == processes.world_size()


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is divided between processes."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The whole state_dict of a model that may be sharded, on the CPU in the first process, empty in the others.

    All processes have to call it together. Without sharding it is the model's own state_dict, in all processes.
    """
    if not is_sharded(model):
        return model.state_dict()
    found: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        whole = full(value) if isinstance(value, Tensor) else value
        if processes.rank() == 0:
            found[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return found


def _check(model: nn.Module, optimizer: torch.optim.Optimizer | None, names: dict[int, str]) -> None:
    scalar = next((name for name, parameter in model.named_parameters() if parameter.dim() == 0), None)
    if scalar is not None:
        raise ValueError(f"parameter {scalar} has no axis and can't be sharded; make it of shape (1,)")
    branching = next((n for n, module in model.named_modules() if isinstance(module, ConditionalSKLinear)), None)
    if branching is not None:
        raise ValueError(
            f"{branching or 'the model'} chooses a branch by the number of rows, which may differ between processes, "
            "and can't be sharded; replace it by its as_sketched() or as_standard()"
        )
    if optimizer is None:
        return
    if optimizer.state:
        raise ValueError("the optimizer has already taken steps; create a new one for a model to be sharded")
    if any(id(parameter) not in names for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "the optimizer has a parameter of another model; give one with the parameters of this model alone"
        )


def _axis(shape: Sequence[int], count: int) -> int:
    """The first axis that so many processes can share evenly, such as d_in of S1s (L, d_in, k); else the first."""
    return next((axis for axis, size in enumerate(shape) if size % count == 0), 0)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The largest members of Sequentials and ModuleLists, of which no parameter lies elsewhere too."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: dict[int, nn.Module] = {}
    inside: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or id(module) in inside:
            continue
        for member in module:
            own = {id(parameter) for parameter in member.parameters()}
            within: dict[int, int] = {}
            for part in member.modules():
                for parameter in part.parameters(recurse=False):
                    within[id(parameter)] = within.get(id(parameter), 0) + 1
            alone = all(uses[key] == within[key] for key in own)
            if own and alone and not isinstance(member, nn.ModuleList | nn.ModuleDict | nn.Sequential):
                found[id(member)] = member
                inside |= {id(part) for part in member.modules()}
    return list(found.values())
