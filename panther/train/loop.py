"""Plain training loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from panther.nn import ConditionalSKLinear, SKLinear
from panther.nn.sketched_conv import SketchedConv
from panther.runs import checkpoint, optim, processes, sharding
from panther.runs.precision import Precision, autocast, check_precision, loss_scaler
from panther.train.evaluation import Batches, score, widened
from panther.train.state import EpochResult, Loss, Part, Saver
from panther.train.targets import TargetLoss

Schedule = Literal["cosine", "constant"] | Callable[[float], float]


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
    checkpoint_every: int | None = None,
    resume: bool = True,
    shard: bool = False,
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
            where it was saved last, bit for bit as if it had not been killed (on the CPU); and ``best.pt``, the model's
            state_dict after the epoch of the best score, or of the lowest loss without validation.
        checkpoint_every: save after so many steps too, and not only after each epoch.
        resume: go on from ``last.pt`` where there is one; False starts over and overwrites it.
        shard: share parameters, gradients and optimizer states out over the processes (FSDP2), where
            DistributedDataParallel would keep all of them in each. The model stays sharded, see
            `panther.train.full_state_dict`; its checkpoints are folders ``last-<number>``. A model that you sharded by
            ``fully_shard`` stays as it is.
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
    check_precision(precision)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every ({checkpoint_every}) must be at least 1")
    loss_fn = TargetLoss() if loss_fn is None else loss_fn
    device = next(model.parameters()).device
    optimizer = optimizer if optimizer is not None else torch.optim.Adam(model.parameters(), lr=lr)
    if shard:
        sharding.shard_(model, optimizer)
    run = _start(model, batches, optimizer, loss_scaler(precision, device), epochs, schedule, generators)
    run.sharded = shard or sharding.is_sharded(model)
    run.plan |= {"precision": precision, "clip_norm": clip_norm, "shard": run.sharded}
    saver = Saver(run, Path(checkpoints) if checkpoints is not None else None, checkpoint_every, loss_fn, device)
    results, part = saver.resume(resume=resume)
    on_epoch = on_epoch if on_epoch is not None else lambda _: None
    for result in results:
        on_epoch(result)
    epoch_of = _Epochs(run, _parallel(model), batches, loss_fn, clip_norm, precision, augment)
    with _bar(epochs, len(batches), done=len(results) + part.step / len(batches), enabled=progress) as advance:
        for epoch in range(len(results) + 1, epochs + 1):
            for _ in epoch_of.steps(epoch, part):
                advance()
                saver.after_step(results, part, len(batches))
            loss = part.mean_loss(device)
            if not math.isfinite(loss):
                rate = run.optimizer.param_groups[0]["initial_lr"]
                raise ValueError(f"the loss is {loss} in epoch {epoch}; a lower lr ({rate:g}) may help")
            processes.take_from_first(_changing(model))
            found = None if validation is None else score(model, validation, metric, loss_fn)
            results.append(EpochResult(epoch, loss, found, run.optimizer.param_groups[0]["lr"]))
            part = Part()
            saver.after_epoch(results)
            on_epoch(results[-1])
    return results


def _start(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
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
    # the loader's generator and its sampler's; once each, so that no state is set twice
    own = [batches.generator, getattr(batches.sampler, "generator", None), *generators]
    unique = list({id(generator): generator for generator in own if generator is not None}.values())
    plan = {
        "epochs": epochs,
        "steps_per_epoch": len(batches),
        "batch_size": batches.batch_size,
        "optimizer": type(optimizer).__name__,
        "lr": [float(group["lr"]) for group in optimizer.param_groups],
        "schedule": schedule if isinstance(schedule, str) else "of the caller",
    }
    return checkpoint.Run(
        model=model,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(1.0, step / steps))),
        scaler=scaler,
        generators=unique,
        plan=plan,
    )


def _parallel(model: nn.Module) -> nn.Module:
    if processes.world_size() == 1 or sharding.is_sharded(model):
        return model
    # a step runs one branch of a conditional layer, and the other gets no gradients
    one_of_two = any(isinstance(module, ConditionalSKLinear) for module in model.modules())
    # the fixed U is most models' largest buffer: broadcast once, not before every forward pass
    processes.take_from_first(model.buffers())
    send_buffers = any(True for _ in _changing(model))
    return DistributedDataParallel(
        model, find_unused_parameters=one_of_two, broadcast_buffers=send_buffers, gradient_as_bucket_view=True
    )


def _changing(model: nn.Module) -> Iterator[Tensor]:
    """Buffers that a forward pass may change: all but the fixed U of sketched layers."""
    sketched = [module for module in model.modules() if isinstance(module, SKLinear | SketchedConv)]
    fixed = {id(U) for layer in sketched for U in (layer.U1s, layer.U2s)}
    return (buffer for buffer in model.buffers() if id(buffer) not in fixed)


def _factor(schedule: Schedule) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    if schedule == "cosine":
        return lambda done: (1 + math.cos(math.pi * done)) / 2
    if schedule == "constant":
        return lambda _: 1.0
    raise ValueError(f"schedule ({schedule!r}) must be 'cosine', 'constant' or a function")


@dataclass(frozen=True)
class _Epochs:
    """Passes over the batches.

    Attributes:
        run: what a step changes.
        trained: its model, which shares the work where there are several processes.
        batches, loss_fn, clip_norm, precision, augment: see `fit`.
    """

    run: checkpoint.Run
    trained: nn.Module
    batches: Batches
    loss_fn: Loss
    clip_norm: float | None
    precision: Precision
    augment: Callable[[Tensor], Tensor] | None

    def steps(self, epoch: int, part: Part) -> Iterator[None]:
        """Take the steps of an epoch that are left, and count them in ``part``."""
        device = next(self.run.model.parameters()).device
        sampler = self.batches.sampler
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)
        if part.step == 0:
            # dropout draws separately in each process; the order of rows must be the same in all
            processes.use_generators_of_first(self.run.generators, device)
            part.start = self.run.generator_states()
        self.trained.train()
        for x, y in self._rest(part):
            loss, rows = self._step(x if self.augment is None else self.augment(x), y, device)
            part.add(loss, rows)
            yield

    def _rest(self, part: Part) -> Iterator[Any]:
        """The batches that are left, in the order of the epoch, with the generators as they are."""
        now = self.run.generator_states()
        if part.step:
            self.run.use_generator_states(part.start)
        batches = iter(self.batches)
        for _ in range(part.step):
            next(batches)
        if part.step:
            self.run.use_generator_states(now)
        yield from batches

    def _step(self, x_all: Tensor, y_all: Tensor, device: torch.device) -> tuple[Tensor, int]:
        """Learn from a batch; the mean loss of this process's rows, and their number.

        Nothing here waits for a GPU, except for the scale of the loss in float16.
        """
        run, x, y = self.run, x_all, y_all
        whole_batches = not isinstance(self.batches.sampler, DistributedSampler)
        # averaging over the processes then gives the mean of the whole batch
        weight = 1.0
        if whole_batches and processes.world_size() > 1:
            x, y = processes.share_of(x_all), processes.share_of(y_all)
            weight = len(x) * processes.world_size() / len(x_all)
        run.optimizer.zero_grad()
        with autocast(self.precision, device):
            output = self.trained(_moved(x, device))
            if isinstance(self.loss_fn, TargetLoss) and self.loss_fn.task is None and len(y_all):
                # decided by the whole batch, so that all processes agree
                self.loss_fn.decide(widened(output, len(y_all)), y_all if whole_batches else y)
            # a process without rows in the last batch must take part too
            loss = self._loss(output, y, device) if len(x) else output.sum() * 0
        run.scaler.scale(loss * weight if weight != 1.0 else loss).backward()
        if self.clip_norm is not None:
            run.scaler.unscale_(run.optimizer)
            optim.clip_norm_(list(self.trained.parameters()), self.clip_norm)
        scale = run.scaler.get_scale()
        optim.step_(run.optimizer, run.scaler)
        run.scaler.update()
        if run.scaler.get_scale() >= scale:
            # the scale fell because gradients were not finite, and the step was skipped
            run.schedule.step()
        return loss.detach(), len(x)

    def _loss(self, output: Tensor, y: Tensor, device: torch.device) -> Tensor:
        if type(self.loss_fn) is not TargetLoss:
            return self.loss_fn(output, _moved(y, device))
        # where the loader left them: values on the CPU are read without waiting for a GPU
        self.loss_fn.check(output, y)
        return self.loss_fn.checked(output, _moved(y, device))


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """On the device; without waiting for the copy where the loader pins its batches."""
    return x.to(device, non_blocking=device.type == "cuda" and x.is_pinned())


class _bar:  # noqa: N801  used as a function
    """A progress bar over epochs and steps, which yields what to call after each step."""

    def __init__(self, epochs: int, steps: int, *, done: float, enabled: bool) -> None:
        columns = (TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        shown = enabled and sys.stderr.isatty() and processes.rank() == 0
        self._progress = Progress(*columns, disable=not shown)
        self._task = self._progress.add_task("", total=epochs, completed=0)
        self._progress.advance(self._task, done)
        self._share = 1 / steps

    def __enter__(self) -> Callable[[], None]:
        self._progress.start()
        return lambda: self._progress.advance(self._task, self._share)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
