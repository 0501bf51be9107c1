"""Plain training loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from panther.nn import ConditionalSKLinear
from panther.train import checkpoint, distributed
from panther.train.targets import Scores, TargetLoss, Task, task_of

Batches = DataLoader[tuple[Tensor, ...]]
Loss = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["cosine", "constant"] | Callable[[float], float]


@dataclass(frozen=True)
class EpochResult:
    """Results of an epoch.

    Attributes:
        epoch: its number, from 1.
        loss: the mean training loss over its rows.
        score: of the validation rows after it; None where there are none.
        lr: the learning rate of the first group at its end.
    """

    epoch: int
    loss: float
    score: float | None = None
    lr: float | None = None


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Schedule = "cosine",
    loss_fn: Loss | None = None,
    clip_norm: float | None = 1.0,
    precision: Precision = "float32",
    validation: Batches | None = None,
    metric: Callable[[nn.Module, Batches], float] | None = None,
    checkpoints: str | Path | None = None,
    resume: bool = True,
    generators: Sequence[torch.Generator] = (),
    augment: Callable[[Tensor], Tensor] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    progress: bool = False,
) -> list[EpochResult]:
    """Train a model.

    Under ``torchrun``, within `panther.train.process_group`, the processes train together: each takes its share of
    every batch (or its own batches, where the loader has a DistributedSampler), and the gradients are those of the
    whole batch. All processes get the same results.

    Args:
        model: is trained in place, on the device where it lies.
        batches: yields (x, y).
        epochs: passes over the batches.
        lr: the learning rate at the start, of Adam; not used where optimizer is given.
        optimizer: steps the model's parameters, for example made with `panther.train.param_groups`; Adam when None.
        schedule: how the learning rates go: "cosine" (to zero), "constant", or a function from the share of the run
            that is done, 0 to 1, to a factor.
        loss_fn: of the model's output and y, the mean over a batch. When None it follows the targets of the first batch
            (`panther.train.task_of`): cross-entropy for classes, squared error for regression, cross-entropy of each
            label where all are 0 or 1.
        clip_norm: gradients are scaled down to this total norm; None leaves them.
        precision: of the forward pass, by autocast; the parameters keep their own. float16 scales the loss.
        validation: what metric is taken of after each epoch.
        metric: of the model and the validation batches, the higher the better; the headline metric of the targets
            (`evaluate`) when None.
        checkpoints: a folder, one that all processes see, for ``last.pt``, with which a run that was killed goes on
            where its last finished epoch ended, bit for bit as if it had not been killed (on the CPU); and ``best.pt``,
            the model's state_dict after the epoch of the best score, or of the lowest loss without validation.
        resume: go on from ``last.pt`` where there is one; False starts over and overwrites it.
        generators: random generators that batches or augment draw on, besides torch's own and the loader's: their
            states belong to a checkpoint too.
        augment: changes the x of each batch before the model sees it.
        on_epoch: is called after each epoch, also with those that a resumed run had done before.
        progress: show a bar on the terminal; not in a file or a pipe, and by the first process alone.

    Returns:
        One result an epoch.

    Raises:
        ValueError: an argument is wrong, the targets fit no default loss, a checkpoint is damaged or of another run, or
            the loss is not finite, so that going on is no use.
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision ({precision!r}) must be 'float32', 'bfloat16' or 'float16'")
    loss_fn = TargetLoss() if loss_fn is None else loss_fn
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    optimizer = optimizer if optimizer is not None else torch.optim.Adam(model.parameters(), lr=lr)
    run = _start(model, batches, optimizer, scaler, epochs=epochs, schedule=schedule, generators=generators)
    folder = Path(checkpoints) if checkpoints is not None else None
    results = [EpochResult(**entry) for entry in run.restore(folder)] if folder is not None and resume else []
    distributed.use_generators_of_first(run.generators, device)
    trained = _parallel(model)
    for result in results:
        if on_epoch is not None:
            on_epoch(result)
    with _bar(epochs, len(batches), done=len(results), enabled=progress) as advance:
        for epoch in range(len(results) + 1, epochs + 1):
            sampler = batches.sampler
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(epoch)
            loss = _epoch(
                run, trained, batches, loss_fn, clip_norm=clip_norm, precision=precision, augment=augment, step=advance
            )
            if not math.isfinite(loss):
                rate = run.optimizer.param_groups[0]["initial_lr"]
                raise ValueError(f"the loss is {loss} in epoch {epoch}; a lower lr ({rate:g}) may help")
            score = None if validation is None else _score(model, validation, metric, loss_fn)
            results.append(EpochResult(epoch, loss, score, run.optimizer.param_groups[0]["lr"]))
            if folder is not None:
                _save(run, folder, results)
            if on_epoch is not None:
                on_epoch(results[-1])
    return results


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
    scores: Scores | None = None
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches:
                x_share, y_share = (distributed.share_of(x), distributed.share_of(y)) if whole_batches else (x, y)
                if not len(x_share) and (scores is not None or not len(x)):
                    continue
                output = model((x_share if len(x_share) else x[:1]).to(device))
                if scores is None:
                    whole = y if whole_batches else y_share
                    scores = Scores(task or task_of(_widened(output, len(whole)), whole.to(device)))
                if len(x_share):
                    scores.add(output, y_share.to(device))
    finally:
        for module, training in modes:
            module.training = training
    if scores is None:
        raise ValueError("batches holds no row")
    width = scores.width(output)
    return scores.metrics(distributed.add_up(*(scores.sums or [0.0] * width), device=device))


def _score(
    model: nn.Module, batches: Batches, metric: Callable[[nn.Module, Batches], float] | None, loss_fn: Loss
) -> float:
    if metric is not None:
        return metric(model, batches)
    return evaluate(model, batches, task=loss_fn.task if isinstance(loss_fn, TargetLoss) else None)


def _widened(output: Tensor, rows: int) -> Tensor:
    """A tensor of the shape that the outputs of so many rows have; what is no tensor as it is."""
    if not isinstance(output, Tensor) or not output.dim():
        return output
    return output.new_empty(rows, *output.shape[1:])


def _start(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    epochs: int,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
) -> checkpoint.Run:
    if epochs < 1:
        raise ValueError(f"epochs ({epochs}) must be at least 1")
    if len(batches) == 0:
        raise ValueError("batches holds no batch")
    steps = epochs * len(batches)
    factor = _factor(schedule)
    # the loader's own generator and its sampler's; once each, so that a state is not set twice
    own = [batches.generator, getattr(batches.sampler, "generator", None), *generators]
    unique = list({id(generator): generator for generator in own if generator is not None}.values())
    return checkpoint.Run(
        model=model,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(1.0, step / steps))),
        scaler=scaler,
        generators=unique,
        plan={"epochs": epochs, "steps_per_epoch": len(batches)},
    )


def _parallel(model: nn.Module) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    # a step goes through one branch of a conditional layer, and leaves the other without gradients
    one_of_two = any(isinstance(module, ConditionalSKLinear) for module in model.modules())
    return DistributedDataParallel(model, find_unused_parameters=one_of_two)


def _save(run: checkpoint.Run, folder: Path, results: list[EpochResult]) -> None:
    if distributed.rank() == 0:
        if results[-1] is _best(results):
            checkpoint.write(folder / checkpoint.BEST, run.model.state_dict())
        run.save(folder, [asdict(result) for result in results])
    distributed.barrier()


def _factor(schedule: Schedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule == "cosine":
        return lambda done: (1 + math.cos(math.pi * done)) / 2
    if schedule == "constant":
        return lambda _: 1.0
    raise ValueError(f"schedule ({schedule!r}) must be 'cosine', 'constant' or a function")


def _epoch(
    run: checkpoint.Run,
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    clip_norm: float | None,
    precision: Precision,
    augment: Callable[[Tensor], Tensor] | None,
    step: Callable[[], None],
) -> float:
    """One pass over the batches; the mean loss over all rows of all processes."""
    device = next(run.model.parameters()).device
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    whole_batches = not isinstance(batches.sampler, DistributedSampler)
    total, rows = 0.0, 0
    model.train()
    for x_all, y_all in batches:
        x = x_all if augment is None else augment(x_all)
        # of the whole batch the mean of what DistributedDataParallel averages over the processes
        weight = 1.0
        y = y_all
        if whole_batches and distributed.world_size() > 1:
            x, y = distributed.share_of(x), distributed.share_of(y)
            weight = len(x) * distributed.world_size() / len(x_all)
        run.optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype, enabled=precision != "float32"):
            output = model(x.to(device))
            if isinstance(loss_fn, TargetLoss) and loss_fn.task is None and len(y_all):
                # by the whole batch, so that all processes agree
                loss_fn.decide(_widened(output, len(y_all)), y_all if whole_batches else y)
            # a process without rows in the last batch takes part all the same
            loss = loss_fn(output, y.to(device)) if len(x) else output.sum() * 0
        run.scaler.scale(loss * weight if weight != 1.0 else loss).backward()
        if clip_norm is not None:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scale = run.scaler.get_scale()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.scaler.get_scale() >= scale:
            # the scale falls where the gradients were not finite, and the step was left out
            run.schedule.step()
        total, rows = total + loss.item() * len(x), rows + len(x)
        step()
    total_of_all, rows_of_all = distributed.add_up(total, rows, device=device)
    return total_of_all / rows_of_all


def _best(results: list[EpochResult]) -> EpochResult:
    """The first of the best: by score where there is one, else by loss."""
    return max(results, key=lambda result: -result.loss if result.score is None else result.score)


class _bar:  # noqa: N801  used as a function
    """A progress bar over epochs and steps, which yields what to call after each step."""

    def __init__(self, epochs: int, steps: int, *, done: int, enabled: bool) -> None:
        columns = (TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        shown = enabled and sys.stderr.isatty() and distributed.rank() == 0
        self._progress = Progress(*columns, disable=not shown)
        self._task = self._progress.add_task("", total=epochs, completed=done)
        self._share = 1 / steps

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return lambda: self._progress.advance(self._task, self._share)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
