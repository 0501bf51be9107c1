"""Metrics of a model on held-out batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from panther.runs import processes, sharding
from panther.train.state import Loss
from panther.train.targets import Scores, TargetLoss, Task, task_of

Batches = DataLoader[tuple[Tensor, ...]]


def evaluate(model: nn.Module, batches: Batches, *, task: Task | None = None) -> float:
    """The headline metric on batches, the higher the better; the processes of a run share the work.

    The accuracy for classes, that is the share of rows whose largest output is at the index y; R² for regression; F1
    over all labels for several labels a row. `metrics` has the others.

    Args:
        model: is in eval mode meanwhile; afterwards each of its modules is in the mode that it was in.
        batches: yields (x, y).
        task: what y is: "classification", "regression" or "multilabel"; found from the first batch when None.

    Raises:
        ValueError: there are no rows, task is unknown, or the targets don't fit the outputs or the task.
    """
    return next(iter(metrics(model, batches, task=task).values()))


def metrics(model: nn.Module, batches: Batches, *, task: Task | None = None) -> dict[str, float]:
    """All metrics on batches, the headline first: arguments and errors as for `evaluate`.

    For classes ``accuracy``; for regression ``r2`` (the mean over columns), ``rmse`` and ``mae`` in the unit of y; for
    several labels a row ``f1``, ``label_accuracy`` and ``subset_accuracy`` (rows of which every label is right).
    """
    device = next(model.parameters()).device
    whole_batches = not isinstance(batches.sampler, DistributedSampler)
    together = sharding.is_sharded(model)
    scores: Scores | None = None
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches:
                x_share, y_share = (processes.share_of(x), processes.share_of(y)) if whole_batches else (x, y)
                # all processes gather sharded parameters together
                if not len(x_share) and not together and (scores is not None or not len(x)):
                    continue
                output = model((x_share if len(x_share) else x[:1]).to(device))
                if scores is None:
                    whole = y if whole_batches else y_share
                    scores = Scores(task or task_of(widened(output, len(whole)), whole.to(device)))
                if len(x_share):
                    scores.add(output, y_share.to(device))
    finally:
        sharding.reshard_(model)
        for module, training in modes:
            module.training = training
    if scores is None:
        raise ValueError("batches holds no row")
    width = scores.width(output)
    return scores.metrics(processes.add_up(*(scores.sums or [0.0] * width), device=device))


def score(
    model: nn.Module, batches: Batches, metric: Callable[[nn.Module, Batches], float] | None, loss_fn: Loss
) -> float:
    """The caller's metric, or the headline metric of the task that the loss has found."""
    if metric is not None:
        return metric(model, batches)
    return evaluate(model, batches, task=loss_fn.task if isinstance(loss_fn, TargetLoss) else None)


def widened(output: Tensor, rows: int) -> Tensor:
    """A tensor of the shape that the outputs of so many rows have; other outputs unchanged."""
    if not isinstance(output, Tensor) or not output.dim():
        return output
    return output.new_empty(rows, *output.shape[1:])
