"""`sketch_and_distill`: sketch a model in stages, each trained to match the original's outputs."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from panther.convert.api import sketch_
from panther.convert.distill import DistillResult, distill_
from panther.convert.forward import Forward, batches_of
from panther.convert.layers import Filter
from panther.convert.memory import parse_size
from panther.convert.report import ConversionReport
from panther.convert.restore import restore_state_
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.head import LowRankHead
from panther.nn.sketched_conv import SketchedConv
from panther.runs import checkpoint, processes
from panther.runs.precision import Precision

STAGES = (0.75, 0.5, 0.25)
"""Ratios on the way to a smaller one, by default."""
# share of the last stage's steps; more did not help, see docs/conversion.md
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
    patience: int = 20,
    filter_fn: Filter | None = None,
    skip: Iterable[str] = (),
    forward: Forward | None = None,
    probes: int = 8,
    memory: int | str | None = None,
    precision: Precision = "float32",
    checkpoints: str | Path | None = None,
    resume: bool = True,
    shard: bool = False,
    progress: bool = True,
    on_stage: Callable[[Stage], None] | None = None,
) -> Distilled:
    """Sketch a copy of a trained model in stages, and train each stage to match the model's outputs.

    Each stage sketches the trained result of the stage before, which ends up closer to the original than a single step
    (Cho and Hariharan, "On the efficacy of knowledge distillation", 2019; Mirzadeh et al., "Improved knowledge
    distillation via teacher assistant", 2020). All parameters but embedding tables are trained, see `panther.distill_`.
    No labels are needed, but many inputs: a few thousand give far better results than a few hundred.

    Under ``torchrun`` the processes train together, see `panther.distill_`; all start from the first one's
    conversion.

    Args:
        model: a trained model; it is not changed.
        inputs: batches without labels to train on, as `panther.sketch_` takes them for calibration.
        ratio: the last stage's budget, see `panther.sketch_`.
        stages: ratios in falling order, before that one; 0.75, 0.5 and 0.25, as far as they are larger, when None.
        calibration: inputs for the conversions; the first batches of ``inputs``, of 384 rows together, when None.
        steps: of the last stage; each stage before it takes 0.4 of them.
        lr, validation, patience, forward: see `panther.distill_`.
        filter_fn, skip, probes, memory: see `panther.sketch_`; the training has no such limit.
        precision, shard: see `panther.distill_`.
        checkpoints: a folder that all processes share. Each stage's conversion and training are saved there, and the
            same call resumes from them after a kill.
        resume: resume from the state in the folder; False starts over.
        progress: show a progress bar on the terminal.
        on_stage: called after each stage, including those that a resumed run had finished before.

    Raises:
        ValueError: an argument is out of range, a budget can't be met, or the state in the folder is damaged or of
            another run.
        ConversionError: the model has no layer to sketch, or can't be run on the inputs.
    """
    ratios, most_memory = _ratios(ratio, stages), parse_size(memory)
    batches = batches_of(inputs, "inputs")
    chosen = _first(batches, _CALIBRATION_ROWS) if calibration is None else batches_of(calibration)
    saved = _Saved(None if checkpoints is None else Path(checkpoints))
    saved.open(model, {"ratios": ratios, "steps": steps, "lr": lr, "probes": probes}, resume=resume)
    student, done, report = saved.restore(model)
    if on_stage is not None:
        for stage in done:
            on_stage(stage)
    for number in range(len(done), len(ratios)):
        target = ratios[number]
        if report is None:
            if number:
                densify_(student, model)
            report = sketch_(
                student,
                ratio=target,
                calibration=chosen,
                filter_fn=filter_fn,
                skip=skip,
                forward=forward,
                probes=probes,
                memory=most_memory,
            )
            student, report = of_first(student, report, model)
            saved.save(student, done, report)
        found = distill_(
            student,
            model,
            batches,
            steps=steps if number == len(ratios) - 1 else max(1, round(_SHARE_ON_THE_WAY * steps)),
            lr=lr,
            validation=validation,
            patience=patience,
            forward=forward,
            precision=precision,
            checkpoints=saved.of_stage(number),
            resume=resume,
            shard=shard,
            progress=progress,
        )
        done.append(Stage(target, report, found))
        report = None
        saved.save(student, done, report)
        if on_stage is not None:
            on_stage(done[-1])
    return Distilled(student.eval(), tuple(done))


@dataclasses.dataclass(frozen=True)
class _Saved:
    """Finished stages in ``stages.pt`` of a folder, with a subfolder for the training of the current stage.

    Attributes:
        folder: None to save nothing.
    """

    folder: Path | None

    def open(self, model: nn.Module, settings: dict[str, Any], *, resume: bool) -> None:
        """Refuse the folder of another run, or empty it to start over."""
        if self.folder is None:
            return
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if hasattr(value, "shape")}
        checkpoint.hold_to(self.folder / "settings.pt", {**settings, "model": shapes}, resume=resume)
        if not resume and processes.rank() == 0:
            (self.folder / "stages.pt").unlink(missing_ok=True)
        processes.barrier()

    def restore(self, model: nn.Module) -> tuple[nn.Module, list[Stage], ConversionReport | None]:
        """The student, the finished stages, and the report of a stage that is converted but not yet trained."""
        student = copy.deepcopy(model)
        path = None if self.folder is None else self.folder / "stages.pt"
        if path is None or not path.exists():
            return student, [], None
        state = checkpoint.read(path)
        restore_state_(student, state["student"])
        stages = [
            Stage(ratio, ConversionReport.from_dict(report), DistillResult(**distillation))
            for ratio, report, distillation in state["stages"]
        ]
        report = state["report"]
        return student, stages, None if report is None else ConversionReport.from_dict(report)

    def save(self, student: nn.Module, done: Sequence[Stage], report: ConversionReport | None) -> None:
        """Save after a conversion, whose report is given, or after the training that followed."""
        if self.folder is None:
            return
        if processes.rank() == 0:
            stages = [(stage.ratio, stage.report.as_dict(), dataclasses.asdict(stage.distillation)) for stage in done]
            of_conversion = None if report is None else report.as_dict()
            state = {"student": student.state_dict(), "stages": stages, "report": of_conversion}
            checkpoint.write(self.folder / "stages.pt", state)
            if report is None:
                shutil.rmtree(self.folder / f"stage-{len(done)}", ignore_errors=True)
        processes.barrier()

    def of_stage(self, number: int) -> Path | None:
        """A folder for the training of a stage."""
        return None if self.folder is None else self.folder / f"stage-{number + 1}"


def of_first(student: nn.Module, report: ConversionReport, model: nn.Module) -> tuple[nn.Module, ConversionReport]:
    """Use the first process's student everywhere: rounding may lead to other ranks elsewhere."""
    if processes.world_size() == 1:
        return student, report
    state = student.state_dict()
    places: dict[tuple[int, torch.Size], str] = {}
    # tensors that share memory are sent once
    own = {
        name: (value.shape, value.dtype, places.setdefault((value.data_ptr(), value.shape), name))
        for name, value in state.items()
    }
    spec, report = processes.of_first((own, report))
    if spec != own:
        device = next(student.parameters()).device
        made = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype, _) in spec.items()}
        state = {name: made[first] for name, (_, _, first) in spec.items()}
    processes.take_from_first(value for name, value in state.items() if spec[name][2] == name)
    if spec != own:
        student = copy.deepcopy(model)
        restore_state_(student, state)
    return student, report


def densify_(student: nn.Module, original: nn.Module) -> None:
    """Replace each sketched layer that the original does not have by a dense one with the same function."""
    made: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    own = {name for name, module in original.named_modules(remove_duplicate=False) if _is_sketched(module)}
    for name, module in list(student.named_modules(remove_duplicate=False)):
        if name in own:
            continue
        if isinstance(module, SKLinear):
            dense: nn.Module = made.setdefault(id(module), module.to_linear())
        elif isinstance(module, SketchedConv):
            dense = made.setdefault(id(module), module.to_conv())
        elif isinstance(module, LowRankTable):
            dense = made.setdefault(id(module), _as_in(original, name, module, weights))
        else:
            continue
        student.set_submodule(name, dense)


def _as_in(original: nn.Module, name: str, table: LowRankTable, weights: dict[int, nn.Parameter]) -> nn.Module:
    """The dense module, its weight one with that of others on the same factors, by the id of A."""
    dense = copy.deepcopy(original.get_submodule(name))
    if id(table.A) not in weights:
        weights[id(table.A)] = nn.Parameter(table.weight.detach().contiguous())
    dense.weight = weights[id(table.A)]
    if isinstance(table, LowRankHead):
        dense.register_parameter("bias", table.bias)
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
