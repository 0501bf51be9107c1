"""Times of candidates, measured in turn in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from panther.export.constants import Array
from panther.export.runtime import Target, onnxruntime

SAMPLE_S = 0.002
MIN_ROUNDS, MAX_ROUNDS = 5, 60
CLEAR_CUT = 2.0


def median_us(runs: Mapping[str, Callable[[], object]], *, budget_s: float = 0.4) -> dict[str, float]:
    """Median time of one call of each, in microseconds.

    The candidates take turns, so that what else the machine does falls on all of them; a sample is as many calls as
    take 2 ms. Measuring ends with the budget, or as soon as the slowest takes twice the fastest.

    Args:
        runs: the candidates by name.
        budget_s: seconds to spend on all of them together.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(SAMPLE_S / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + budget_s
    for index in range(MAX_ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            samples[name].append((time.perf_counter() - start) / repeats[name] * 1e6)
        medians = {name: statistics.median(times) for name, times in samples.items()}
        clear = len(medians) > 1 and max(medians.values()) > CLEAR_CUT * min(medians.values())
        if index + 1 >= MIN_ROUNDS and (clear or time.perf_counter() > end):
            break
    return medians


def runner(session: Any, feeds: Mapping[str, Array], target: Target) -> Callable[[], object]:
    """A call that runs a session once, from and to buffers of the target's own on a GPU, waiting for the result."""
    if target.device == "cpu":
        outputs = [output.name for output in session.get_outputs()]
        return lambda: session.run(outputs, feeds)
    ort = onnxruntime()
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    first = session.run(None, dict(feeds))
    for output, array in zip(session.get_outputs(), first, strict=True):
        place = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cuda", 0)
        held[f"output {output.name}"] = place
        binding.bind_ortvalue_output(output.name, place)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def resized(
    feeds: Mapping[str, Array], axes: Mapping[str, Mapping[int, str]], axis_name: str, size: int
) -> dict[str, Array]:
    """The same inputs with every axis of a name cut or repeated to a size."""
    result = {}
    for name, array in feeds.items():
        for axis, dim in axes.get(name, {}).items():
            if dim == axis_name:
                array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)  # noqa: PLW2901
        result[name] = np.ascontiguousarray(array)
    return result
