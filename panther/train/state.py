"""How far a run of `fit` is, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panther.runs import checkpoint, processes, sharding
from panther.train.targets import TargetLoss

Loss = Callable[[Tensor, Tensor], Tensor]


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


@dataclass
class Part:
    """How far an epoch is.

    Attributes:
        step: how many of its batches are done.
        total, rows: of this process: the sum of the losses of its rows, which may lie on its device, and how many there
            were.
        start: states of the generators when it began, from which its order of rows follows.
    """

    step: int = 0
    total: float | Tensor = 0.0
    rows: int = 0
    start: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, rows: int) -> None:
        """Count a step with its mean loss, without waiting for the device."""
        self.step, self.rows = self.step + 1, self.rows + rows
        # MPS has no float64
        self.total = self.total + (loss.item() if loss.device.type == "mps" else loss.double()) * rows

    def summed(self, device: torch.device) -> dict[str, Any]:
        """Plain values for a checkpoint, summed over the processes."""
        total, rows = processes.add_up(float(self.total), self.rows, device=device)
        return {"step": self.step, "total": total, "rows": int(rows), "start": self.start}

    def mean_loss(self, device: torch.device) -> float:
        """The mean over all rows of all processes."""
        total, rows = processes.add_up(float(self.total), self.rows, device=device)
        return total / rows


@dataclass(frozen=True)
class Saver:
    """Checkpoints of a run in a folder.

    Attributes:
        run: what is saved.
        folder: None to save nothing.
        every: steps between the states within an epoch; None for none.
        loss_fn: whose task belongs to the state where it finds it by itself.
        device: of the model.
    """

    run: checkpoint.Run
    folder: Path | None
    every: int | None
    loss_fn: Loss
    device: torch.device

    def resume(self, *, resume: bool) -> tuple[list[EpochResult], Part]:
        """Results of the epochs that are done, and how far the one after them is."""
        if self.folder is None:
            return [], Part()
        if not resume:
            self.run.clear(self.folder)
        state = self.run.restore(self.folder)
        if state is None:
            return [], Part()
        if isinstance(self.loss_fn, TargetLoss) and self.loss_fn.task is None:
            self.loss_fn.task = state["task"]
        part = Part() if state["part"] is None else Part(**state["part"])
        if processes.rank() > 0:
            # the first process has the sums of all
            part.total, part.rows = 0.0, 0
        return [EpochResult(**entry) for entry in state["history"]], part

    def after_step(self, results: list[EpochResult], part: Part, steps: int) -> None:
        """Save within an epoch of so many steps where it is time; its end is saved by `after_epoch`."""
        if self.every is not None and part.step % self.every == 0 and part.step < steps:
            self._save(results, part)

    def after_epoch(self, results: list[EpochResult]) -> None:
        """Save the state, and the model too where it is the best so far."""
        if self.folder is None:
            return
        if results[-1] is _best(results):
            model = sharding.full_state_dict(self.run.model)
            if processes.rank() == 0:
                checkpoint.write(self.folder / checkpoint.BEST, model)
        self._save(results, None)

    def _save(self, results: list[EpochResult], part: Part | None) -> None:
        if self.folder is None:
            return
        progress = {
            "history": [asdict(result) for result in results],
            "task": self.loss_fn.task if isinstance(self.loss_fn, TargetLoss) else None,
            "part": None if part is None else part.summed(self.device),
        }
        self.run.save(self.folder, progress)


def _best(results: list[EpochResult]) -> EpochResult:
    """The first of the best: by score where there is one, else by loss."""
    return max(results, key=lambda result: -result.loss if result.score is None else result.score)
