"""Plain training loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batches = DataLoader[tuple[Tensor, ...]]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to: its number, from 1, and the mean training loss over its rows."""

    epoch: int
    loss: float


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    lr: float = 1e-3,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    clip_norm: float | None = 1.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> list[EpochResult]:
    """Train a model with Adam, the learning rate falling to zero along a cosine.

    Args:
        model: is trained in place.
        batches: yields (x, y).
        epochs: passes over the batches.
        lr: the learning rate at the start.
        loss_fn: of the model's output and y, the mean over a batch.
        clip_norm: gradients are scaled down to this total norm; None leaves them.
        augment: changes the x of each batch before the model sees it.
        on_epoch: is called after each epoch.

    Returns:
        One result an epoch.

    Raises:
        ValueError: epochs is below 1, or the loss is not finite, so that going on is no use.
    """
    if epochs < 1:
        raise ValueError(f"epochs ({epochs}) must be at least 1")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(batches))
    results = []
    model.train()
    for epoch in range(1, epochs + 1):
        total, rows = 0.0, 0
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(x if augment is None else augment(x)), y)
            loss.backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            schedule.step()
            total, rows = total + loss.item() * len(x), rows + len(x)
        result = EpochResult(epoch, total / rows)
        if not torch.isfinite(torch.tensor(result.loss)):
            raise ValueError(f"the loss is {result.loss} in epoch {epoch}; a lower lr ({lr:g}) may help")
        results.append(result)
        if on_epoch is not None:
            on_epoch(result)
    return results


def evaluate(model: nn.Module, batches: Batches) -> float:
    """The share of rows, 0 to 1, whose largest output is at the index y."""
    correct, rows = 0, 0
    model.eval()
    with torch.no_grad():
        for x, y in batches:
            correct += int((model(x).argmax(dim=-1) == y).sum())
            rows += len(x)
    return correct / rows
