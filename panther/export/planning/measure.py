"""Times of candidates, measured in turn in one run.

See docs/decisions/0051-time-the-faster-half.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from panther.export.graph.constants import Array
from panther.export.ort import Target, onnxruntime

SAMPLE_S = 0.002
MIN_ROUNDS, MAX_ROUNDS = 6, 60
CLEAR_CUT = 2.0


def clock_of(target: Target) -> Callable[[], float]:
    """Seconds, as calls on a target are to be timed.

    On one thread of the CPU a run is done by the caller's thread, and its processor time is what it takes on a machine
    that does nothing else; other processes don't lengthen it. Else the time on the wall counts.
    """
    return time.thread_time if target.device == "cpu" and target.num_threads == 1 else time.perf_counter


def median_us(
    runs: Mapping[str, Callable[[], object]],
    *,
    budget_s: float = 0.4,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median time of one call of each, in microseconds.

    The candidates take turns, so that what else the machine does falls on all of them; a sample is as many calls as
    take 2 ms. Counted is the quicker half of the rounds, all candidates' samples of a round together: the rest are
    those that other processes disturbed. Measuring ends with the budget, or as soon as the slowest takes twice the
    fastest even in its best round.

    Args:
        runs: the candidates by name.
        budget_s: seconds to spend on all of them together; six rounds are measured in any case.
        clock: what counts, in seconds.
    """
    repeats = {}
    for name, run in runs.items():
        run()
        start = clock()
        run()
        repeats[name] = max(1, int(SAMPLE_S / max(clock() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + budget_s
    for index in range(MAX_ROUNDS):
        for name, run in runs.items():
            start = clock()
            for _ in range(repeats[name]):
                run()
            samples[name].append((clock() - start) / repeats[name] * 1e6)
        best = {name: min(times) for name, times in samples.items()}
        clear = len(best) > 1 and max(best.values()) > CLEAR_CUT * min(best.values())
        if index + 1 >= MIN_ROUNDS and (clear or time.perf_counter() > end):
            break
    return undisturbed_medians(samples)


def undisturbed_medians(samples: Mapping[str, list[float]]) -> dict[str, float]:
    """Medians over the quicker half of the rounds; a round is one sample of each, and counts as slow as its slowest.

    Args:
        samples: times by candidate, one a round.
    """
    best = {name: min(times) for name, times in samples.items()}
    rounds = range(len(next(iter(samples.values()))))
    slowdown = {index: max(times[index] / best[name] for name, times in samples.items()) for index in rounds}
    kept = sorted(rounds, key=slowdown.__getitem__)[: (len(rounds) + 1) // 2]
    return {name: statistics.median(times[index] for index in kept) for name, times in samples.items()}


def runner(
    session: Any,
    feeds: Mapping[str, Array],
    target: Target,
    output_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Callable[[], object]:
    """A call that runs a session once, from and to buffers of the target's own on a GPU, waiting for the result.

    Args:
        session: to run.
        feeds: inputs by name.
        target: what the session runs on.
        output_shapes: of all outputs, in the type of the first input. Needed where the session records a CUDA graph:
            what it runs first is what it replays, and a run to look at the outputs is one with copies from the host.
    """
    if target.device == "cpu":
        outputs = [output.name for output in session.get_outputs()]
        return lambda: session.run(outputs, feeds)
    ort = onnxruntime()
    if output_shapes is None:
        names = [output.name for output in session.get_outputs()]
        results = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        places = {name: (array.shape, array.dtype) for name, array in results.items()}
    else:
        dtype = next(iter(feeds.values())).dtype
        places = {name: (shape, dtype) for name, shape in output_shapes.items()}
    binding = session.io_binding()
    held = []
    for name, array in feeds.items():
        held.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0))
        binding.bind_ortvalue_input(name, held[-1])
    for name, (shape, output_dtype) in places.items():
        held.append(ort.OrtValue.ortvalue_from_shape_and_type(shape, output_dtype, "cuda", 0))
        binding.bind_ortvalue_output(name, held[-1])

    def run(_held: object = held) -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def resized(
    feeds: Mapping[str, Array], axes: Mapping[str, Mapping[int, str]], axis_name: str, size: int
) -> dict[str, Array]:
    """Copies of the inputs with every axis of a name cut or repeated to a size."""
    result = {}
    for name, array in feeds.items():
        for axis, dim in axes.get(name, {}).items():
            if dim == axis_name:
                array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)  # noqa: PLW2901
        result[name] = np.ascontiguousarray(array)
    return result
