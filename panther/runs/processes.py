"""Training by several processes, as ``torchrun`` starts them.

See docs/decisions/0041-ranks-share-each-batch.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the other processes that ``torchrun`` started; do nothing without it.

    What lies on the CPU is exchanged by gloo, what lies on CUDA by NCCL, each process on the GPU of its local rank.

    Yields:
        This process's rank; 0 where there is only one.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield rank()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield rank()
    finally:
        dist.destroy_process_group()


def started_by_torchrun() -> bool:
    """Whether the variables that torchrun sets speak of more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def check_device(device: str) -> None:
    """Refuse a device that this process has not.

    Raises:
        ValueError: it is neither "cpu" nor "cuda", or there is no GPU for the process.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device ({device!r}) must be 'cpu' or 'cuda'")
    if device == "cuda":
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise ValueError(
                f"device ('cuda') is not available: process {local} of this machine, which has {count} GPUs"
            )


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for the others."""
    if world_size() > 1:
        dist.barrier()


def share_of(x: Tensor) -> Tensor:
    """The rows of a batch that fall to this process; together the processes have each row once."""
    return x if world_size() == 1 else x.tensor_split(world_size())[rank()]


def add_up(*values: float, device: torch.device) -> list[float]:
    """The sums of numbers over the processes."""
    if world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    result: list[float] = sums.tolist()
    return result


def add_up_(total: Tensor) -> None:
    """Replace a tensor by its sum over the processes, without waiting for its device."""
    if world_size() > 1:
        dist.all_reduce(total)


def of_first(value: T) -> T:
    """The first process's value, in all of them."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, 0)
    return held[0]


def of_all(value: T) -> list[T]:
    """Every process's value, by rank."""
    if world_size() == 1:
        return [value]
    held: list[T | None] = [None] * world_size()
    dist.all_gather_object(held, value)
    return held  # type: ignore[return-value]


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process; a tensor that is there twice is sent once."""
    if world_size() == 1:
        return
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        # collectives don't take a parameter that is a view with gaps
        values = tensor.detach().contiguous()
        dist.broadcast(values, 0)
        tensor.copy_(values)


@torch.no_grad()
def add_up_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Replace the gradients by their sums over the processes; a parameter that no process needed keeps none.

    Returns:
        The sum of the processes' losses, on its device, which the host doesn't wait for if gloo exchanges what lies on
        the CPU.
    """
    if world_size() == 1:
        return loss.detach()
    total = loss.detach().clone()
    add_up_(total)
    by_gloo = "cpu:gloo" in dist.get_backend_config()
    used = [float(parameter.grad is not None) for parameter in parameters]
    counts = torch.tensor(used, device="cpu" if by_gloo else loss.device)
    dist.all_reduce(counts)
    needed = [p for p, count in zip(parameters, counts.tolist(), strict=True) if count]
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in needed:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for of_kind in kinds.values():
        gradients = [p.grad for p in of_kind if p.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        for gradient, values in zip(gradients, torch.split(together, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(values.view_as(gradient))
    return total


def use_generators_of_first(generators: Sequence[torch.Generator], device: torch.device) -> None:
    """Put every process's generators, torch's own included, into the state of the first one's."""
    if world_size() == 1:
        return
    for generator in (torch.default_generator, *generators):
        state = generator.get_state().to(device)
        dist.broadcast(state, 0)
        generator.set_state(state.cpu())
