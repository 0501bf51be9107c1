"""Latency budget: options are chosen by their time in onnxruntime, and the exported file is timed at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panther.compression.inputs import Inputs
from panther.compression.latency import Stopwatch
from panther.compression.options import Part
from panther.compression.plan import Cost
from panther.compression.report import Speed
from panther.compression.search import Search, Step
from panther.compression.trials import Trial, Trials
from panther.convert.embeddings import is_embedding
from panther.convert.fast_path import observing
from panther.export import export_onnx, ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner

# how often the budget is tightened if the file is slower than predicted
_ATTEMPTS = 3
_BUDGET_S = 2.0


@dataclass(frozen=True)
class Timing:
    """Options of the latency measurements.

    Attributes:
        inputs: inputs of the model.
        batch_size: rows per run.
        threads: CPU threads.
    """

    inputs: Inputs
    batch_size: int
    threads: int

    def file(self, model: nn.Module, path: Path) -> Path:
        """Export a model for timing."""
        export_onnx(
            model,
            self.inputs.examples(),
            path,
            name="timed",
            dynamic_axes=self.inputs.dynamic_axes,
            num_threads=self.threads,
            batch_sizes=(self.batch_size,),
            tolerance=0.5,
        )
        return path

    def speed(self, before: Path, after: Path) -> Speed:
        """Time two files in turn."""
        target = Target("cpu", self.threads)
        feeds = self.inputs.repeated(self.batch_size)
        runs = {name: runner(ort.load(path, target), feeds, target) for name, path in (("b", before), ("a", after))}
        found = median_us(runs, budget_s=_BUDGET_S, clock=clock_of(target))
        return Speed(found["b"], found["a"], self.batch_size, self.threads)


class SpeedSearch:
    """Finds the plan with the smallest output error for a speedup over the original's file.

    Args:
        model: the model in eval mode; every method leaves it unchanged.
        trials: measures the output error of plans.
        other_bytes: bytes of the model outside the parts.
        kinds: the allowed kinds of layers.
        timing: options of the latency measurements.
        step: called with (what, done, all).
    """

    def __init__(
        self, model: nn.Module, trials: Trials, other_bytes: int, kinds: Sequence[str], timing: Timing, step: Step
    ) -> None:
        self._model, self._trials, self._timing, self._step = model, trials, timing, step
        self._costs = self._measure(calls_of(model, trials.parts, timing))
        cost = Cost("µs", lambda option: self._costs[id(option)])
        self.search = Search(trials, other_bytes, kinds, step, cost)

    def within(self, speedup: float) -> tuple[Trial, Speed]:
        """The plan, or else the fastest plan that was found, with the speed of its file.

        Raises:
            ValueError: the options of all layers together don't save enough; the message has the limit.
        """
        timing, least = self._timing, self.search.chooser.least
        with tempfile.TemporaryDirectory(prefix="panther-") as folder:
            before = timing.file(self._model, Path(folder) / "before.onnx")
            whole = timing.speed(before, before).before_us
            # layers timed by themselves can take longer than the file, by noise
            rest = max(0.0, whole - sum(self._costs[id(part.options[0])] for part in self._trials.parts))
            limit = whole / speedup - rest
            if limit < least:
                raise ValueError(
                    f"speedup ({speedup:g}) can't be met: with the fastest option for every layer the model takes "
                    f"about {rest + least:,.0f} of {whole:,.0f} µs, {whole / (rest + least):.2f} times as fast; "
                    "give at most that"
                )
            found: list[tuple[Trial, Speed]] = []
            for attempt in range(_ATTEMPTS):
                trial = self.search.within(max(limit, least))
                with self._trials.swap(trial.plan):
                    after = timing.file(self._model, Path(folder) / f"after{attempt}.onnx")
                speed = timing.speed(before, after)
                found.append((trial, speed))
                self._step("timing files", attempt + 1, _ATTEMPTS)
                if speed.speedup >= speedup or limit <= least:
                    break
                # time of the file that the layers' times don't explain counts against the budget
                limit -= speed.after_us - speed.before_us / speedup
        return max(found, key=lambda entry: entry[1].speedup)

    def _measure(self, calls: Mapping[str, list[tuple[int, ...]]]) -> dict[int, float]:
        """Microseconds per run of the model, by the id of the option."""
        stopwatch, found = Stopwatch(self._timing.threads, calls), dict[int, float]()
        for done, part in enumerate(self._trials.parts):
            for option in part.options:
                found[id(option)] = stopwatch.option_us(part.name, option)
            self._step("timing layers", done + 1, len(self._trials.parts))
        return found


@torch.no_grad()
def calls_of(model: nn.Module, parts: Sequence[Part], timing: Timing) -> dict[str, list[tuple[int, ...]]]:
    """Input shapes of each part's layers, one per call, in a run of the model on a batch; embeddings are excluded."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def count(calls: list[tuple[int, ...]]) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Tensor) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            calls.append(tuple(x.shape))

        return hook

    handles = []
    for part in parts:
        calls = found.setdefault(part.name, [])
        modules = {id(module): module for module in map(model.get_submodule, part.names) if not is_embedding(module)}
        handles += [module.register_forward_hook(count(calls), with_kwargs=True) for module in modules.values()]
    feeds = {name: torch.from_numpy(array) for name, array in timing.inputs.repeated(timing.batch_size).items()}
    try:
        with observing(model):
            model(**feeds) if timing.inputs.by_name else model(*feeds.values())
    finally:
        for handle in handles:
            handle.remove()
    return found
