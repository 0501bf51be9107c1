"""`distill_`: train a converted model to match the original's outputs, on inputs without labels."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from panther.convert import quantized
from panther.convert.deviation import Deviation, Reference
from panther.convert.errors import ConversionError
from panther.convert.forward import Forward, batches_of, check_batches, check_differentiable, evaluating
from panther.convert.matching import Matching, hidden_names
from panther.convert.shares import check_same, rows_are_independent
from panther.convert.trained import Train, put_back, trained_parameters
from panther.runs import optim, processes, sharding
from panther.runs.checkpoint import Run
from panther.runs.precision import Precision, check_precision, loss_scaler

_LEAST_FOR_VALIDATION = 4
# measured on a sentence encoder; docs/conversion.md and docs/decisions/0103-training-in-bits.md
_HIDDEN_WEIGHT, _HIDDEN_WEIGHT_IN_BITS = 20.0, 1.0
# steps between two reads of losses from the device, which the host waits for
_STEPS_PER_READ = 10


@dataclass(frozen=True)
class DistillResult:
    """Result of a distillation, measured on the validation batches.

    Attributes:
        steps: number of steps; fewer than requested after early stopping.
        best_step: step with the best student, whose values were kept; 0 if training did not help.
        error_before, error: ‖y - ŷ‖ / ‖y‖ of the outputs, y being the teacher's.
        cosine_before, cosine: the mean cosine between y and ŷ, over rows.
        held_out: whether the validation batches were held out.
        seconds: duration.
    """

    steps: int
    best_step: int
    error_before: float
    error: float
    cosine_before: float
    cosine: float
    held_out: bool
    seconds: float


@torch.inference_mode(mode=False)
@torch.enable_grad()
def distill_(
    student: nn.Module,
    teacher: nn.Module,
    loader: Any,
    *,
    steps: int = 300,
    lr: float = 0.005,
    hidden_weight: float | None = None,
    train: Train = "all",
    validation: Any = None,
    patience: int = 20,
    forward: Forward | None = None,
    precision: Precision = "float32",
    checkpoints: str | Path | None = None,
    resume: bool = True,
    shard: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> DistillResult:
    """Train a student with sketched or quantized layers to match the teacher's outputs, in place.

    The loss is the squared error of the outputs, relative to the teacher's, and that of the hidden states: the outputs
    of the repeated blocks that hold sketched layers (members of a ModuleList or Sequential), or of the sketched layers
    where there are none. (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015; hidden
    states: Romero et al., "FitNets", 2015.) Both models run in eval mode, without dropout and batch
    statistics. The best state on the validation batches is kept; on an error, the student is unchanged. A few thousand
    inputs and steps give far better results than a few hundred; `sketch_and_distill` sketches and trains in stages.

    Quantized layers, as `panther.quantize_` and `panther.compress` make them, are trained in their bits
    (quantization-aware training): each forward pass rounds their weights, gradients pass through the rounding, and at
    the end the layers hold the new integers. Scales and zero points are kept, and so are the bytes.

    Under ``torchrun``, within `panther.train.process_group`, the processes train together: give all of them the same
    batches; each computes its rows of every batch, and the gradients are those of the whole batch. A batch that can't
    be split into independent rows is computed whole by each process.

    Args:
        student: a model converted by `panther.sketch_`, `panther.quantize_` or `panther.compress`.
        teacher: the original, on any device; it is not changed.
        loader: inputs without labels, as `panther.sketch_` takes them for calibration.
        steps: optimizer steps, one batch each.
        lr: the size of Adam's first steps relative to the root mean square of each matrix; falls along a cosine.
        hidden_weight: weight of the hidden states' mean error in the loss, beside the outputs'; 0 leaves them out. When
            None, 20, or 1 for a student with quantized layers.
        train: "all" trains all parameters except embedding tables, because a batch uses few of their rows; "sketched"
            trains only S and the biases of the sketched layers, and the quantized layers.
        validation: inputs to measure on; when None, an eighth of the batches is held out if there are 4 or more.
        patience: stop after this many measurements, of 20 in a full run, without a gain. Most gains come at the end,
            when the learning rate is low.
        forward: (model, batch) → outputs, if the models need a custom call.
        precision: autocast type of the student's forward pass; parameters, the loss, the teacher and the measurements
            keep their own. float16 uses loss scaling.
        checkpoints: a folder that all processes share. The state is saved there at each measurement, and the same call
            resumes from it after a kill, bit for bit on the CPU.
        resume: resume from the state in the folder; False starts over.
        shard: under ``torchrun``, train a copy of the student whose parameters, gradients and optimizer states are
            divided between the processes (FSDP2).
        generator: CPU generator of the order of batches; a fixed seed when None.
        progress: show a progress bar on the terminal.

    Raises:
        ValueError: an argument is out of range, or the state in the folder is damaged or of another run.
        ConversionError: the student has no sketched or quantized layer, the loader no batch, or the loss is not finite.
    """
    _check(steps, lr, hidden_weight, train, patience)
    check_precision(precision)
    check_differentiable(student)
    started = time.perf_counter()
    training, held_out = _split(batches_of(loader, "loader"), validation)
    check_batches((*training, *held_out), student, forward, "loader")
    check_same([*training, *held_out])
    sizes = {"precision": precision, "shard": shard, "batches": len(training), "held_out_batches": len(held_out)}
    with contextlib.ExitStack() as during:
        during.enter_context(quantized.training(student))
        parameters = trained_parameters(student, train)
        if not parameters:
            raise ConversionError(
                "student has no sketched or quantized layer to train; convert it with panther.sketch_ first"
            )
        processes.take_from_first([*student.parameters(), *student.buffers()])
        if hidden_weight is None:
            hidden_weight = _HIDDEN_WEIGHT_IN_BITS if quantized.is_training(student) else _HIDDEN_WEIGHT
        settings = {"steps": steps, "lr": lr, "hidden_weight": hidden_weight, "train": train, "patience": patience}
        names = hidden_names(student, teacher) if hidden_weight else []
        during.enter_context(put_back(parameters))
        during.enter_context(evaluating(teacher))
        during.enter_context(evaluating(student))
        bar = during.enter_context(_bar(steps, shown=progress))
        reference = Reference(teacher, held_out or training, forward)
        if not reference.has_outputs:
            raise ConversionError("the teacher returned no finite floating-point numbers to learn from")
        by_rows = rows_are_independent(teacher, training[0], forward)
        if processes.world_size() > 1 and not by_rows:
            warnings.warn("rows of the batches can't be divided; every process computes all of them", stacklevel=2)
        learner, learnt = _sharded(student, train) if shard else (student, parameters)
        matching = Matching(learner, teacher, training, names, hidden_weight, forward, precision, by_rows=by_rows)
        run = _run(learner, parameters, learnt, settings | sizes, generator)
        training_run = _Training(run, matching, learnt, reference, bar)
        state = training_run.train(None if checkpoints is None else Path(checkpoints), resume=resume)
        with torch.no_grad():
            for parameter, best in zip(parameters, run.kept.values(), strict=True):
                parameter.copy_(sharding.full(best))
    return DistillResult(
        steps=state.step,
        best_step=state.best_step,
        error_before=state.before.error,
        error=state.best.error,
        cosine_before=state.before.cosine,
        cosine=state.best.cosine,
        held_out=bool(held_out),
        seconds=state.seconds + time.perf_counter() - started,
    )


def _check(steps: int, lr: float, hidden_weight: float | None, train: str, patience: int) -> None:
    if steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1")
    if not lr > 0:
        raise ValueError(f"lr ({lr}) must be above 0")
    if hidden_weight is not None and not hidden_weight >= 0:
        raise ValueError(f"hidden_weight ({hidden_weight}) must be at least 0")
    if train not in ("all", "sketched"):
        raise ValueError(f"train ({train!r}) must be 'all' or 'sketched'")
    if patience < 1:
        raise ValueError(f"patience ({patience}) must be at least 1")


@dataclass
class _State:
    """Progress of a distillation.

    Attributes:
        before, best: the deviation at the start, and the smallest so far.
        step, best_step: steps that were taken, until now and until then.
        waited: measurements since then.
        order: batches that are left of this pass, the next one last.
        seconds: that runs before this one took.
    """

    before: Deviation
    best: Deviation
    step: int = 0
    best_step: int = 0
    waited: int = 0
    order: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Training:
    """The steps of a distillation.

    Attributes:
        run: what a step changes; its kept tensors are the best values of the parameters.
        matching: the loss.
        parameters: that learn.
        reference: what is measured.
        bar: takes the number of steps that were done, and the last loss that was read.
        unread: losses of the last steps, on their device.
    """

    run: Run
    matching: Matching
    parameters: Sequence[nn.Parameter]
    reference: Reference
    bar: Callable[[int, float], None]
    unread: list[Tensor] = field(default_factory=list)

    def train(self, folder: Path | None, *, resume: bool) -> _State:
        """Train to the end, or until there is no gain, from the state in the folder where there is one."""
        steps, patience = self.run.plan["steps"], self.run.plan["patience"]
        every = max(1, steps // 20)
        started = time.perf_counter()
        state = self._start(folder, resume=resume)
        loss = math.nan
        self.bar(state.step, loss)
        while state.step < steps and state.waited < patience:
            state.step += 1
            self.unread.append(self._step(state))
            measured = state.step % every == 0 or state.step == steps
            if measured or len(self.unread) == _STEPS_PER_READ:
                loss = self._read_losses(state.step)
            self.bar(state.step, loss)
            if measured:
                found = self._measure()
                state.waited += 1
                if found.error < state.best.error:
                    state.best, state.best_step, state.waited = found, state.step, 0
                    with torch.no_grad():
                        for kept, parameter in zip(self.run.kept.values(), self.parameters, strict=True):
                            kept.copy_(parameter)
                if folder is not None:
                    seconds = state.seconds + time.perf_counter() - started
                    values = {"before": tuple(state.before), "best": tuple(state.best), "seconds": seconds}
                    self.run.save(folder, {**vars(state), **values, "norm": self.reference.norm})
        return state

    def _start(self, folder: Path | None, *, resume: bool) -> _State:
        if folder is not None and not resume:
            self.run.clear(folder)
        values = self.run.restore(folder) if folder is not None and resume else None
        if values is None:
            before = self._measure()
            return _State(before, before)
        norm = values.pop("norm")
        if not math.isclose(norm, self.reference.norm, rel_tol=1e-2):
            raise ValueError(
                f"{folder} is of a run with another teacher or other inputs: the norm of the outputs is {norm:.4g} "
                f"there, and {self.reference.norm:.4g} in this run. Use another folder, or delete it"
            )
        return _State(Deviation(*values.pop("before")), Deviation(*values.pop("best")), **values)

    def _step(self, state: _State) -> Tensor:
        run = self.run
        if not state.order:
            count, generator = len(self.matching.batches), run.generators[0]
            order = torch.randperm(count, generator=generator, device=generator.device).tolist()
            state.order = processes.of_first(order)
        for parameter in self.parameters:
            parameter.requires_grad_(True)  # noqa: FBT003
        run.optimizer.zero_grad()
        loss = self.matching.loss(state.order.pop())
        if run.sharded:
            # gradients are averaged over the processes, not summed
            run.scaler.scale(loss * processes.world_size()).backward()  # type: ignore[no-untyped-call]
            total = loss.detach().clone()
            processes.add_up_(total)
        else:
            run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = processes.add_up_gradients(self.parameters, loss)
        run.scaler.unscale_(run.optimizer)
        optim.clip_norm_(self.parameters, 1.0)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.schedule.step()
        return total

    def _read_losses(self, step: int) -> float:
        """The loss of this step; refuse those of the steps since the last read that are not finite."""
        losses: list[float] = torch.stack(self.unread).tolist()
        self.unread.clear()
        for number, loss in enumerate(losses, step + 1 - len(losses)):
            if not math.isfinite(loss):
                raise ConversionError(
                    f"the loss became {loss} at step {number}; try a smaller lr than {self.run.plan['lr']}"
                )
        return losses[-1]

    def _measure(self) -> Deviation:
        # all processes gather sharded parameters together, for the same batch
        found = self.reference.deviation(self.run.model, shared=not self.run.sharded)
        sharding.reshard_(self.run.model)
        return Deviation(*processes.of_first(tuple(found)))


def _run(
    learner: nn.Module,
    parameters: Sequence[nn.Parameter],
    learnt: Sequence[nn.Parameter],
    plan: dict[str, Any],
    generator: torch.Generator | None,
) -> Run:
    """Adam with a rate for each parameter of the student; those of the learner may be shards."""
    steps = plan["steps"]
    groups = [
        {"params": [share], "lr": plan["lr"] * max(_rms(parameter), 1e-4)}
        for parameter, share in zip(parameters, learnt, strict=True)
    ]
    optimizer = optim.ManyRatesAdam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    return Run(
        model=learner,
        optimizer=optimizer,
        schedule=schedule,
        scaler=loss_scaler(plan["precision"], parameters[0].device),
        generators=[generator if generator is not None else torch.Generator().manual_seed(0)],
        plan=plan,
        sharded=plan["shard"],
        kept={str(number): parameter.detach().clone() for number, parameter in enumerate(learnt)},
    )


def _sharded(student: nn.Module, train: Train) -> tuple[nn.Module, list[nn.Parameter]]:
    """A sharded copy, and its trained parameters."""
    learner = copy.deepcopy(student)
    for parameter in trained_parameters(learner, train):
        parameter.requires_grad_(True)  # noqa: FBT003
    sharding.shard_(learner)
    return learner, trained_parameters(learner, train)


def _rms(parameter: Tensor) -> float:
    return parameter.detach().float().square().mean().sqrt().item()


def _split(batches: list[Any], validation: Any) -> tuple[list[Any], list[Any]]:
    if validation is not None:
        return batches, batches_of(validation, "validation")
    if len(batches) < _LEAST_FOR_VALIDATION:
        return batches, []
    # spread over the loader, which may be sorted
    apart = max(2, min(8, len(batches) // 2))
    held_out = set(range(apart // 2, len(batches), apart))
    return [b for i, b in enumerate(batches) if i not in held_out], [batches[i] for i in sorted(held_out)]


@contextlib.contextmanager
def _bar(steps: int, *, shown: bool) -> Iterator[Callable[[int, float], None]]:
    columns = (TextColumn("distilling"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.5f}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown or processes.rank() > 0) as bar:
        task = bar.add_task("", total=steps, loss=math.nan)
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)
