"""Checkpoints of a training run, to resume it after it was killed.

See docs/decisions/0040-checkpoint-formats.md.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

LAST, BEST = "last.pt", "best.pt"


@dataclass
class Run:
    """The parts of a run whose state is saved.

    Attributes:
        model, optimizer, schedule, scaler: with their state_dicts.
        generators: whose state is saved beside torch's own.
        plan: what must be the same for the run to be the same: epochs, steps an epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generators: Sequence[torch.Generator]
    plan: dict[str, int]

    def save(self, folder: Path, history: list[dict[str, Any]]) -> None:
        """Write the state after an epoch; a kill at any moment leaves the old file or the new one."""
        state = {
            "plan": self.plan,
            "history": history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": [generator.get_state() for generator in self._all_generators()],
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write(folder / LAST, state)

    def restore(self, folder: Path) -> list[dict[str, Any]]:
        """Take up the state of the last epoch that was finished.

        Returns:
            The history; empty where there is no state yet.

        Raises:
            ValueError: the file is damaged, or is of another run than this one.
        """
        path = folder / LAST
        if not path.exists():
            return []
        state = read(path)
        try:
            if state["plan"] != self.plan:
                raise ValueError(
                    f"{path} is of a run with {_words(state['plan'])}; this one has {_words(self.plan)}. "
                    f"Take another folder, or delete it"
                )
            if len(state["generators"]) != len(self._all_generators()):
                raise ValueError(
                    f"{path} is of a run with {len(state['generators'])} generators; "
                    f"this one has {len(self._all_generators())}"
                )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            for generator, generator_state in zip(self._all_generators(), state["generators"], strict=True):
                generator.set_state(generator_state)
            if len(state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["cuda"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from error
        history: list[dict[str, Any]] = state["history"]
        return history

    def _all_generators(self) -> list[torch.Generator]:
        return [torch.default_generator, *self.generators]


def write(path: Path, state: Any) -> None:
    """Write with torch.save, aside first and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path) -> Any:
    """Read with torch.load, tensors and plain values alone.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a training checkpoint: {str(error).splitlines()[0]}") from error


def _words(plan: dict[str, int]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plan.items())
