"""Training by several processes, as ``torchrun`` starts them.

See docs/decisions/0041-ranks-share-each-batch.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


@contextlib.contextmanager
def process_group() -> Iterator[int]:
    """Join the other processes that ``torchrun`` started, with gloo on CPU and NCCL on CUDA; do nothing without it.

    Yields:
        This process's rank; 0 where there is only one.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield rank()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield rank()
    finally:
        dist.destroy_process_group()


def started_by_torchrun() -> bool:
    """Whether the variables that torchrun sets speak of more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


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


def use_generators_of_first(generators: Sequence[torch.Generator], device: torch.device) -> None:
    """Put every process's generators, torch's own included, into the state of the first one's."""
    if world_size() == 1:
        return
    for generator in (torch.default_generator, *generators):
        state = generator.get_state().to(device)
        dist.broadcast(state, 0)
        generator.set_state(state.cpu())
