"""Checkpoints of a training run, to resume it after it was killed.

See docs/decisions/0040-checkpoint-formats.md and docs/decisions/0086-sharded-and-resumable-runs.md.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panther.runs import processes

LAST, BEST = "last.pt", "best.pt"
_SHARDED = re.compile(r"last-(\d+)")
# file of a sharded checkpoint for state that is no tensor of the model or the optimizer
_PLAIN = "run.pt"


@dataclass
class Run:
    """The parts of a run whose state is saved. All processes save and restore together.

    Attributes:
        model, optimizer, schedule, scaler: with their state_dicts.
        generators: whose state is saved beside torch's own.
        plan: what must be the same for the run to be the same, by name.
        sharded: write a folder to which each process adds its share, and not one file.
        kept: further tensors by name, filled in place when a state is restored.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    generators: Sequence[torch.Generator]
    plan: dict[str, Any]
    sharded: bool = False
    kept: MutableMapping[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Write the state; a kill at any moment leaves the old one or the new one.

        Args:
            folder: one that all processes see.
            progress: how far the run is, in plain values and tensors, the same in all processes.
        """
        state = {
            "plan": self.plan,
            "shapes": _shapes(self.model),
            "progress": dict(progress),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": processes.of_all(self.generator_states()),
        }
        if self.sharded:
            self._save_shares(folder, state)
        elif processes.rank() == 0:
            tensors = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "kept": dict(self.kept),
            }
            write(folder / LAST, state | tensors)
        processes.barrier()

    def restore(self, folder: Path) -> dict[str, Any] | None:
        """Restore the latest saved state.

        Returns:
            How far the run is; None where there is no state yet.

        Raises:
            ValueError: the state is damaged, or is of another run than this one.
        """
        path = _newest(folder) if self.sharded else folder / LAST
        if path is None or not path.exists():
            other = folder / LAST if self.sharded else _newest(folder)
            if other is not None and other.exists():
                raise ValueError(
                    f"{other} is of a run with shard {not self.sharded}; this one has shard {self.sharded}. "
                    "Use another folder, or delete it"
                )
            return None
        state = read(path / _PLAIN if self.sharded else path)
        try:
            check_plan(path, state["plan"], self.plan)
            _check_shapes(path, state["shapes"], _shapes(self.model))
            if self.sharded:
                self._restore_shares(path)
            else:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                with torch.no_grad():
                    for name, tensor in self.kept.items():
                        tensor.copy_(state["kept"][name])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            of_all = state["generators"]
            self.use_generator_states(of_all[processes.rank() if len(of_all) == processes.world_size() else 0])
            progress: dict[str, Any] = state["progress"]
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from error
        return progress

    def clear(self, folder: Path) -> None:
        """Remove the saved states, to start over."""
        if processes.rank() == 0:
            for path in _all_sharded(folder):
                shutil.rmtree(path)
            (folder / LAST).unlink(missing_ok=True)
        processes.barrier()

    def generator_states(self) -> list[Tensor]:
        """States of torch's own generator, of those of the run, and of the model's GPU."""
        states = [generator.get_state() for generator in self._all_generators()]
        device = next(self.model.parameters()).device
        return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states

    def use_generator_states(self, states: Sequence[Tensor]) -> None:
        """Put the generators into states that `generator_states` returned.

        Raises:
            ValueError: they are of another number of generators.
        """
        generators = self._all_generators()
        device = next(self.model.parameters()).device
        # a run may resume on another kind of device
        if len(states) - len(generators) not in (0, 1):
            raise ValueError(
                f"the state is of a run with {len(states)} generators; this one has {len(generators)}, torch's own "
                "included"
            )
        for generator, state in zip(generators, states, strict=False):
            generator.set_state(state)
        if len(states) > len(generators) and device.type == "cuda":
            torch.cuda.set_rng_state(states[-1], device)

    def _all_generators(self) -> list[torch.Generator]:
        return [torch.default_generator, *self.generators]

    def _save_shares(self, folder: Path, state: dict[str, Any]) -> None:
        newest = _newest(folder)
        name = f"last-{int(newest.name.removeprefix('last-')) + 1 if newest else 1:09d}"
        path, aside = folder / name, folder / f".{name}.writing"
        # all processes must find the newest before a newer one exists
        processes.barrier()
        if processes.rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        processes.barrier()
        # imported here: the import takes longer than that of torch
        from torch.distributed.checkpoint.state_dict_saver import save

        with _quietly():
            save(self._shares(), checkpoint_id=aside, no_dist=processes.world_size() == 1)
        if processes.rank() == 0:
            write(aside / _PLAIN, state)
            aside.rename(path)
            for older in _all_sharded(folder)[:-1]:
                shutil.rmtree(older)

    def _restore_shares(self, path: Path) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        shares = self._shares()
        try:
            with _quietly():
                load(shares, checkpoint_id=path, no_dist=processes.world_size() == 1)
        except (CheckpointException, OSError, EOFError, pickle.UnpicklingError) as error:
            text = str(error).strip() or type(error).__name__
            raise ValueError(f"{path} cannot be read as a training checkpoint: {text.splitlines()[-1]}") from error
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=shares["model"],
            optim_state_dict=shares["optimizer"],
        )

    def _shares(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "kept": dict(self.kept)}


def check_plan(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a file of a run with other settings.

    Raises:
        ValueError: a setting differs; names each that does.
    """
    differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if differing:
        raise ValueError(
            f"{path} is of a run with {_words(theirs, differing)}; this one has {_words(ours, differing)}. "
            "Use another folder, or delete it"
        )


def hold_to(path: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
    """Keep the settings of a run in a file, and refuse to resume with others. All processes call it together.

    Raises:
        ValueError: the file is damaged, or has other settings.
    """
    if resume and path.exists():
        check_plan(path, read(path), plan)
    elif processes.rank() == 0:
        write(path, dict(plan))
    processes.barrier()


def write(path: Path, state: Any) -> None:
    """Write with torch.save to a temporary file, then rename it."""
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
    """Read with torch.load, restricted to tensors and plain values.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a training checkpoint: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        # with one process
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _all_sharded(folder: Path) -> list[Path]:
    """Complete sharded checkpoints, the newest last."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _SHARDED.fullmatch(path.name))


def _newest(folder: Path) -> Path | None:
    found = _all_sharded(folder)
    return found[-1] if found else None


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _check_shapes(path: Path, theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> None:
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            found, own = (tuple(s[name]) if name in s else "missing" for s in (theirs, ours))
            raise ValueError(f"{path} does not fit this run: {name} is {found} there, and {own} in this model")


def _words(plan: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {plan.get(key, 'not set')}" for key in keys)
