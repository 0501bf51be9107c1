"""`distill_`: train a converted model to match the original's outputs, on inputs without labels."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from panther.convert.deviation import Reference
from panther.convert.errors import ConversionError
from panther.convert.fast_path import observing
from panther.convert.forward import (
    Forward,
    batches_of,
    call,
    check_batches,
    check_differentiable,
    evaluating,
    outputs_of,
)
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.sketched_conv import SketchedConv

# of what the teacher put out, kept so that it need not run again
_MOST_BYTES = 2**30
_LEAST_FOR_VALIDATION = 4


@dataclass(frozen=True)
class DistillResult:
    """Result of a distillation, measured on the validation batches.

    Attributes:
        steps: that were taken; fewer than asked for where it stopped early.
        best_step: after which the student was best; its values are those that were kept. 0: it gained nothing.
        error_before, error: ‖y - ŷ‖ / ‖y‖ of the outputs, y being the teacher's.
        cosine_before, cosine: the mean cosine between y and ŷ, over rows.
        held_out: whether the validation batches were kept out of the training.
        seconds: it took.
    """

    steps: int
    best_step: int
    error_before: float
    error: float
    cosine_before: float
    cosine: float
    held_out: bool
    seconds: float


Train = Literal["all", "sketched"]


class _Targets(NamedTuple):
    outputs: list[tuple[Tensor, Tensor | None]]
    hidden: dict[str, Tensor]


@torch.inference_mode(mode=False)
@torch.enable_grad()
def distill_(
    student: nn.Module,
    teacher: nn.Module,
    loader: Any,
    *,
    steps: int = 300,
    lr: float = 0.005,
    hidden_weight: float = 20.0,
    train: Train = "all",
    validation: Any = None,
    patience: int = 5,
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> DistillResult:
    """Train a student with sketched layers to match the teacher's outputs, in place.

    The loss is the squared error of the outputs, relative to the teacher's, and that of the hidden states: the outputs
    of the repeated blocks that hold sketched layers (members of a ModuleList or Sequential), or of the sketched layers
    where there are none. (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015; hidden
    states: Romero et al., "FitNets", 2015.) Both models run in eval mode, so that dropout and batch statistics play no
    part. The best state on the validation batches is kept; on an error, the student is as it was. A few thousand inputs
    and steps do far better than a few hundred; `sketch_and_distill` sketches and trains in stages.

    Args:
        student: a model converted by `panther.sketch_`.
        teacher: the original, on any device; is not changed.
        loader: inputs without labels, as `panther.sketch_` takes them for calibration.
        steps: optimiser steps, one batch each.
        lr: the size of Adam's first steps relative to the root mean square of each matrix; falls along a cosine.
        hidden_weight: of the mean error of the hidden states, beside the mean error of the outputs; 0 leaves them out.
        train: "all" trains S and the biases of the sketched layers, normalizations, the layers that stayed dense and
            all other parameters but the tables of embeddings, of which a batch meets few rows; "sketched" the first
            alone.
        validation: inputs to measure on; an eighth of the batches is kept out for it when None, of 4 or more.
        patience: stop after this many measurements, 20 in a full run, without a gain.
        forward: (model, batch) → outputs, where the models are to be called in another way.
        generator: of the order of batches, on the CPU; a fixed seed when None.
        progress: show a progress bar on the terminal.

    Raises:
        ValueError: an argument is out of range.
        ConversionError: the student has no sketched layer, the loader no batch, or the loss is not finite.
    """
    _check(steps, lr, hidden_weight, train, patience)
    parameters = _trained(student, train)
    if not parameters:
        raise ConversionError("student has no sketched layer to train; convert it with panther.sketch_ first")
    check_differentiable(student)
    started = time.perf_counter()
    training, held_out = _split(batches_of(loader, "loader"), validation)
    check_batches((*training, *held_out), student, forward, "loader")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    names = _hidden_names(student, teacher) if hidden_weight else []
    initial = [parameter.detach().clone() for parameter in parameters]
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        with evaluating(teacher), evaluating(student), _bar(steps, shown=progress) as advance:
            reference = Reference(teacher, held_out or training, forward)
            if not reference.has_outputs:
                raise ConversionError("the teacher put out no finite floating-point numbers to learn from")
            run = _Run(student, teacher, training, names, hidden_weight, forward)
            result = _train(run, parameters, reference, steps, lr, patience, generator, advance)
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(parameters, initial, strict=True):
                parameter.copy_(value)
        raise
    finally:
        for parameter, flag in zip(parameters, trained, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
    return DistillResult(*result, held_out=bool(held_out), seconds=time.perf_counter() - started)


def _check(steps: int, lr: float, hidden_weight: float, train: str, patience: int) -> None:
    if steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1")
    if not lr > 0:
        raise ValueError(f"lr ({lr}) must be above 0")
    if not hidden_weight >= 0:
        raise ValueError(f"hidden_weight ({hidden_weight}) must be at least 0")
    if train not in ("all", "sketched"):
        raise ValueError(f"train ({train!r}) must be 'all' or 'sketched'")
    if patience < 1:
        raise ValueError(f"patience ({patience}) must be at least 1")


class _Run:
    """A loss for each batch, with what the teacher said of it kept where memory allows."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Any],
        names: Sequence[str],
        hidden_weight: float,
        forward: Forward | None,
    ) -> None:
        self.student, self._teacher, self.batches = student, teacher, batches
        self._names, self._hidden_weight, self._forward = names, hidden_weight, forward
        self._kept: dict[int, _Targets] = {}
        self._kept_bytes = 0

    def loss(self, index: int) -> Tensor:
        """The student's loss on one batch, differentiable."""
        batch = self.batches[index]
        targets = self._targets(index)
        hidden: dict[str, Tensor] = {}
        with observing(self.student), _recording(self.student, self._names, hidden):
            outputs = outputs_of(call(self.student, batch, self._forward), batch)
        losses = [_relative(y, y_hat, mask) for (y, mask), (y_hat, _) in zip(targets.outputs, outputs, strict=True)]
        loss = torch.stack(losses).mean()
        mask = _mask_of(batch)
        found = [_relative(targets.hidden[name], hidden[name], mask) for name in targets.hidden if name in hidden]
        return loss + self._hidden_weight * torch.stack(found).mean() if found else loss

    def _targets(self, index: int) -> _Targets:
        if index in self._kept:
            return self._kept[index]
        batch = self.batches[index]
        hidden: dict[str, Tensor] = {}
        device = next(self.student.parameters()).device
        with torch.no_grad(), observing(self._teacher), _recording(self._teacher, self._names, hidden):
            outputs = outputs_of(call(self._teacher, batch, self._forward), batch)
        targets = _Targets(
            [(y.to(device), None if mask is None else mask.to(device)) for y, mask in outputs],
            {name: value.to(device) for name, value in hidden.items()},
        )
        size = sum(t.numel() * t.element_size() for t in (*(y for y, _ in targets.outputs), *targets.hidden.values()))
        if self._kept_bytes + size <= _MOST_BYTES:
            self._kept[index] = targets
            self._kept_bytes += size
        return targets


def _train(
    run: _Run,
    parameters: Sequence[nn.Parameter],
    reference: Reference,
    steps: int,
    lr: float,
    patience: int,
    generator: torch.Generator,
    advance: Callable[[float], None],
) -> tuple[int, int, float, float, float, float]:
    """Returns steps, best_step, error_before, error, cosine_before and cosine."""
    before = reference.deviation(run.student)
    best, best_step, waited = before, 0, 0
    best_values = [parameter.detach().clone() for parameter in parameters]
    groups = [{"params": [parameter], "lr": lr * max(_rms(parameter), 1e-4)} for parameter in parameters]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    every = max(1, steps // 20)
    order: list[int] = []
    step = 0
    for step in range(1, steps + 1):
        if not order:
            order = torch.randperm(len(run.batches), generator=generator, device=generator.device).tolist()
        for parameter in parameters:
            parameter.requires_grad_(True)  # noqa: FBT003
        loss = run.loss(order.pop())
        if not bool(torch.isfinite(loss)):
            raise ConversionError(f"the loss became {loss.item()} at step {step}; try a smaller lr than {lr}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        advance(loss.item())
        if step % every == 0 or step == steps:
            found = reference.deviation(run.student)
            waited += 1
            if found.error < best.error:
                best, best_step, waited = found, step, 0
                best_values = [parameter.detach().clone() for parameter in parameters]
            if waited >= patience:
                break
    with torch.no_grad():
        for parameter, value in zip(parameters, best_values, strict=True):
            parameter.copy_(value)
    return step, best_step, before.error, best.error, before.cosine, best.cosine


def _rms(parameter: Tensor) -> float:
    return parameter.detach().float().square().mean().sqrt().item()


def _trained(student: nn.Module, train: Train) -> list[nn.Parameter]:
    """What is trained, tied parameters once; nothing where no layer is sketched."""
    found: dict[int, nn.Parameter] = {}
    for module in student.modules():
        if isinstance(module, SKLinear | SketchedConv):
            for parameter in (module.S1s, module.S2s, module.bias):
                if parameter is not None:
                    found.setdefault(id(parameter), parameter)
        elif isinstance(module, LowRankTable):
            found |= {id(factor): factor for factor in (module.A, module.B)}
    if not found or train == "sketched":
        return list(found.values())
    tables = {id(m.weight) for m in student.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for parameter in student.parameters():
        if parameter.is_floating_point() and id(parameter) not in tables:
            found.setdefault(id(parameter), parameter)
    return list(found.values())


def _split(batches: list[Any], validation: Any) -> tuple[list[Any], list[Any]]:
    if validation is not None:
        return batches, batches_of(validation, "validation")
    if len(batches) < _LEAST_FOR_VALIDATION:
        return batches, []
    # spread over the loader, which may be sorted
    apart = max(2, min(8, len(batches) // 2))
    held_out = set(range(apart // 2, len(batches), apart))
    return [b for i, b in enumerate(batches) if i not in held_out], [batches[i] for i in sorted(held_out)]


def _hidden_names(student: nn.Module, teacher: nn.Module) -> list[str]:
    sketched = [
        name for name, module in student.named_modules() if isinstance(module, SKLinear | SketchedConv | LowRankTable)
    ]
    of_teacher = dict(teacher.named_modules())
    blocks = [
        f"{name}.{child}" if name else child
        for name, module in student.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module._modules
    ]
    holding = [
        block for block in blocks if any(name.startswith(f"{block}.") for name in sketched) and block in of_teacher
    ]
    return holding or [name for name in sketched if name in of_teacher]


@contextlib.contextmanager
def _recording(model: nn.Module, names: Sequence[str], into: dict[str, Tensor]) -> Iterator[None]:
    """Keep the first floating-point tensor in the output of each of these modules."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            tensors = outputs_of(out)
            if tensors:
                into[name] = tensors[0][0]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_of(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _relative(y: Tensor, y_hat: Tensor, mask: Tensor | None) -> Tensor:
    """‖y - ŷ‖² / ‖y‖² in float32, over the rows that count where y is not infinite."""
    if mask is not None and y.dim() > 2 and y.shape[:2] == mask.shape:
        mask = mask.to(y.device)
        y, y_hat = y[mask], y_hat[mask]
    y, y_hat = y.float(), y_hat.float()
    infinite = y.isinf()
    if bool(infinite.any()):
        y, y_hat = y[~infinite], y_hat[~infinite]
    return (y - y_hat).square().sum() / y.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


@contextlib.contextmanager
def _bar(steps: int, *, shown: bool) -> Iterator[Callable[[float], None]]:
    columns = (TextColumn("distilling"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.5f}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=steps, loss=math.nan)
        yield lambda loss: bar.update(task, advance=1, loss=loss)
