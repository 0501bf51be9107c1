"""`sketch_and_distill`: a model made small in stages, each trained on the outputs of the original."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from panther.convert.api import sketch_
from panther.convert.distill import DistillResult, distill_
from panther.convert.forward import Forward, batches_of
from panther.convert.layers import Filter
from panther.convert.report import ConversionReport
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.sketched_conv import SketchedConv

STAGES = (0.75, 0.5, 0.25)
"""Ratios on the way to a smaller one, by default."""
# of the steps of a last stage; more did not pay, see docs/conversion.md
_SHARE_ON_THE_WAY = 0.4
_CALIBRATION_ROWS = 384


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: sketched to a ratio, then trained.

    Attributes:
        ratio: of the stage, see `panther.sketch_`.
        report: of the conversion.
        distillation: of the training.
    """

    ratio: float
    report: ConversionReport
    distillation: DistillResult


@dataclasses.dataclass(frozen=True)
class Distilled:
    """The result of `sketch_and_distill`.

    Attributes:
        model: a sketched and trained copy, in eval mode.
        stages: what was done, in order; the last one made the model.
    """

    model: nn.Module
    stages: tuple[Stage, ...]

    @property
    def report(self) -> ConversionReport:
        """The report of the last conversion, with the errors before its training."""
        return self.stages[-1].report

    def __str__(self) -> str:
        lines = ["ratio  error before → after training  mean cosine        steps"]
        for stage in self.stages:
            found = stage.distillation
            lines.append(
                f"{stage.ratio:<5g}  {found.error_before:.4f} → {found.error:.4f}               "
                f"{found.cosine_before:.4f} → {found.cosine:.4f}    {found.steps}"
            )
        return "\n".join(lines)


def sketch_and_distill(
    model: nn.Module,
    inputs: Any,
    *,
    ratio: float,
    stages: Sequence[float] | None = None,
    calibration: Any = None,
    steps: int = 2000,
    lr: float = 0.005,
    validation: Any = None,
    patience: int = 5,
    filter_fn: Filter | None = None,
    skip: Iterable[str] = (),
    forward: Forward | None = None,
    probes: int = 8,
    progress: bool = True,
    on_stage: Callable[[Stage], None] | None = None,
) -> Distilled:
    """Sketch a copy of a trained model in stages, and train it after each on the model's outputs.

    A student that is made small at once has further to go than one that is trained on the way (Cho and Hariharan, "On
    the efficacy of knowledge distillation", 2019; Mirzadeh et al., "Improved knowledge distillation via teacher
    assistant", 2020): each stage sketches what the one before has learnt. All of the student learns but the tables of
    embeddings, see `panther.distill_`. Labels are not needed; many inputs are: a few thousand do far better than a few
    hundred.

    Args:
        model: a trained model; is not changed.
        inputs: batches without labels to train on, as `panther.sketch_` takes them for calibration.
        ratio: the last stage's budget, see `panther.sketch_`.
        stages: ratios in falling order, before that one; 0.75, 0.5 and 0.25, as far as they are larger, when None.
        calibration: inputs for the conversions; the first batches of ``inputs``, of 384 rows together, when None.
        steps: of the last stage; each stage before it takes 0.4 of them.
        lr, validation, patience, forward: see `panther.distill_`.
        filter_fn, skip, probes: see `panther.sketch_`.
        progress: show a progress bar on the terminal.
        on_stage: called after each stage.

    Raises:
        ValueError: an argument is out of range, or a budget can't be met.
        ConversionError: the model has no layer to sketch, or can't be run on the inputs.
    """
    ratios = _ratios(ratio, stages)
    batches = batches_of(inputs, "inputs")
    chosen = _first(batches, _CALIBRATION_ROWS) if calibration is None else batches_of(calibration)
    student = copy.deepcopy(model)
    done: list[Stage] = []
    for number, target in enumerate(ratios):
        if number:
            densify_(student, model)
        report = sketch_(
            student, ratio=target, calibration=chosen, filter_fn=filter_fn, skip=skip, forward=forward, probes=probes
        )
        found = distill_(
            student,
            model,
            batches,
            steps=steps if number == len(ratios) - 1 else max(1, round(_SHARE_ON_THE_WAY * steps)),
            lr=lr,
            validation=validation,
            patience=patience,
            forward=forward,
            progress=progress,
        )
        done.append(Stage(target, report, found))
        if on_stage is not None:
            on_stage(done[-1])
    return Distilled(student.eval(), tuple(done))


def densify_(student: nn.Module, original: nn.Module) -> None:
    """Put a dense layer of the same function in the place of each sketched one that the original does not have."""
    made: dict[int, nn.Module] = {}
    own = {name for name, module in original.named_modules(remove_duplicate=False) if _is_sketched(module)}
    for name, module in list(student.named_modules(remove_duplicate=False)):
        if name in own:
            continue
        if isinstance(module, SKLinear):
            dense: nn.Module = made.setdefault(id(module), module.to_linear())
        elif isinstance(module, SketchedConv):
            dense = made.setdefault(id(module), module.to_conv())
        elif isinstance(module, LowRankTable):
            dense = made.setdefault(id(module), _as_in(original, name, module))
        else:
            continue
        student.set_submodule(name, dense)


def _as_in(original: nn.Module, name: str, table: LowRankTable) -> nn.Module:
    dense = copy.deepcopy(original.get_submodule(name))
    dense.weight = nn.Parameter(table.weight.detach().contiguous())
    return dense


def _is_sketched(module: nn.Module) -> bool:
    return isinstance(module, SKLinear | SketchedConv | LowRankTable)


def _ratios(ratio: float, stages: Sequence[float] | None) -> list[float]:
    if not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise ValueError(f"ratio ({ratio}) must be above 0 and at most 1")
    before = [stage for stage in STAGES if stage > ratio] if stages is None else list(stages)
    ratios = [*before, ratio]
    if any(not later < earlier <= 1 for earlier, later in pairwise(ratios)):
        raise ValueError(f"stages ({', '.join(map(str, before))}) must fall from at most 1 to above ratio ({ratio})")
    return ratios


def _first(batches: Sequence[Any], rows: int) -> list[Any]:
    found: list[Any] = []
    count = 0
    for batch in batches:
        found.append(batch)
        count += _rows(batch)
        if count >= rows:
            break
    return found


def _rows(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return max((_rows(part) for part in parts), default=1)
