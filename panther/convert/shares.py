"""Rows of a batch for each process of a distributed training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from panther.convert.errors import ConversionError
from panther.convert.forward import Forward, call, described, outputs_of, tensors_of
from panther.runs import processes

_TOLERANCE = 1e-2


def rows_of(batch: Any) -> int | None:
    """Rows of a batch, the first axis of all its tensors; None if these differ."""
    if _holds_packed(batch):
        return None
    sizes = {len(tensor) for tensor in tensors_of(batch) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def share_of(batch: Any) -> Any:
    """The rows of a batch for this process."""
    if isinstance(batch, Tensor):
        return processes.share_of(batch) if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: share_of(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(share_of(value) for value in batch))
    if isinstance(batch, tuple | list):
        shares = [share_of(value) for value in batch]
        return shares if isinstance(batch, list) else tuple(shares)
    return batch


def can_share(batch: Any) -> bool:
    """Whether there are several processes, and a batch has rows for each."""
    rows = rows_of(batch) if processes.world_size() > 1 else None
    return rows is not None and rows >= processes.world_size()


@torch.no_grad()
def rows_are_independent(model: nn.Module, batch: Any, forward: Forward | None) -> bool:
    """Whether a model computes the rows of a batch as well in shares; the same answer in all processes.

    It does not where the first axis is no axis of rows, as of sequences with ``batch_first=False``, or where a tensor
    beside the rows happens to have as many entries.
    """
    if not can_share(batch):
        return False
    share = share_of(batch)
    together, alone = outputs_of(call(model, batch, forward)), outputs_of(call(model, share, forward))
    rows = rows_of(batch)
    same = len(together) == len(alone) and all(
        len(whole) == rows and _close(processes.share_of(whole), part)
        for (whole, _), (part, _) in zip(together, alone, strict=True)
    )
    return all(processes.of_all(same))


def check_same(batches: Sequence[Any]) -> None:
    """Refuse other batches than the first process has.

    Raises:
        ConversionError: in all processes, where one has other batches.
    """
    if processes.world_size() == 1:
        return
    sums = [float(tensor.double().sum()) for batch in (batches[0], batches[-1]) for tensor in tensors_of(batch)]
    found = processes.of_all((len(batches), described(batches[0]), sums))
    if any(each != found[0] for each in found):
        raise ConversionError(
            "the processes have different batches; give all the same batches in the same order; each takes its rows"
        )


def _close(y: Tensor, y_hat: Tensor) -> bool:
    if y.shape != y_hat.shape:
        return False
    finite = y.isfinite()
    y, y_hat = y.float().where(finite, 0.0), y_hat.float().where(finite, 0.0)
    return bool((y - y_hat).norm() <= _TOLERANCE * y.norm())


def _holds_packed(batch: Any) -> bool:
    if isinstance(batch, PackedSequence):
        return True
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return any(_holds_packed(part) for part in parts)
