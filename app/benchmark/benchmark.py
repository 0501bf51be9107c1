"""Benchmark of the loaded model against its dense twin, on the serving machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.benchmark.dense_twin import dense_twin, folded, in_memory, sites, twin_weights
from app.errors import BenchmarkError
from app.repository.served_model import Serving
from app.runtime.cuda.accelerate import accelerate
from app.runtime.cuda.buffers import CudaTarget
from app.runtime.device import Device, open_session
from app.runtime.host_runners import host_runner
from app.runtime.model import OnnxModel
from app.runtime.runner import Runner
from app.system.memory import available_bytes

MAX_TWIN_BYTES = 2**30
ROWS = (1, 32, 256)
_FEWEST_ROUNDS = 3
_MOST_ROUNDS = 2000


def check_memory(model: OnnxModel, needed_bytes: int) -> None:
    """Check that memory suffices for the twin: three copies of its weights exist during its construction.

    Raises:
        BenchmarkError: The twin is too large, or memory is short.
    """
    name = f"the dense twin of model {model.name!r} has {needed_bytes:,} bytes of weights"
    if needed_bytes > MAX_TWIN_BYTES:
        raise BenchmarkError(f"{name}; the maximum is {MAX_TWIN_BYTES:,}")
    free = available_bytes()
    if free is not None and 3 * (needed_bytes + model.file_bytes) > free:
        raise BenchmarkError(f"{name}, more than the {free:,} bytes of free memory")


def run_benchmark(serving: Serving, rows: Sequence[int], seconds: float) -> dict[str, Any]:
    """Run the loaded model and its dense twin alternately on the device of its first instance; compare the medians.

    Args:
        serving: The loaded model.
        rows: Batch sizes; only 1 for a model that is not batched.
        seconds: Time for the measurement; building the twin takes additional time.

    Raises:
        BenchmarkError: The model has no card or no layers to compare, or the twin is too large or cannot be built.
    """
    model = serving.model
    device = model.session.device
    if model.card is None:
        raise BenchmarkError(f"model {model.name!r} has no card, so its dense twin is unknown")
    wanted = sites(model.card)
    if not wanted:
        raise BenchmarkError(f"model {model.name!r} has no layer that runs as two products, so it is already dense")
    began = time.perf_counter()
    check_memory(model, 4 * twin_weights(wanted))
    twin = dense_twin(folded(model.path), wanted, np.random.default_rng(0))
    with _stream(device) as stream:
        with in_memory("twin") as path:
            Path(path).write_bytes(twin)
            del twin
            dense_runner = _runner(path, model, device, serving.batcher.options.max_rows, stream)
        sizes = [size for size in rows if size <= serving.batcher.options.max_rows] if model.batched else [1]
        batches = [_compare(model, dense_runner, size, seconds / len(sizes)) for size in sizes]
        del dense_runner
    return {
        "model": model.name,
        "version": model.version,
        "provider": model.provider,
        "num_threads": model.num_threads,
        "layers": [layer.name for site in wanted for layer in site.layers],
        "dense_twin_weights": twin_weights(wanted),
        "batches": batches,
        "duration_s": round(time.perf_counter() - began, 3),
    }


def _compare(model: OnnxModel, dense_runner: Runner, size: int, seconds: float) -> dict[str, Any]:
    feeds = model.random_feeds(size)

    def ours() -> None:
        model.run(feeds, model.output_names)

    def dense() -> None:
        dense_runner.run(feeds, model.output_names)

    mine, other, rounds = in_turn(ours, dense, seconds)
    return {
        "rows": size,
        "rounds": rounds,
        "model_median_us": round(mine, 2),
        "dense_twin_median_us": round(other, 2),
        "ratio": round(mine / other, 4),
    }


@contextmanager
def _stream(device: Device) -> Iterator[int | None]:
    """A CUDA stream on a CUDA device, else None."""
    if device.streams is None:
        yield None
        return
    stream = device.streams.take(device.cuda.device_id)
    try:
        yield stream
    finally:
        device.streams.give(device.cuda.device_id, stream)


def _runner(path: str, model: OnnxModel, device: Device, max_rows: int, stream: int | None) -> Runner:
    """A runner of the twin, of the same kind as the model's runner."""
    session, _ = open_session(path, device, model.num_threads, stream)
    host = host_runner(session, model.inputs, model.outputs)
    if model.cuda is None:
        return host
    target = None
    if device.runtime is not None and stream is not None:
        target = CudaTarget(device.runtime, device.cuda.device_id, stream, device.bodies)
    rows = max_rows if model.batched else None
    report, runner = accelerate(session, model.signature, rows, device, target, model.random_feeds, host)
    if runner is None:
        return host
    if report.mode != model.cuda.mode:
        raise BenchmarkError(f"the dense twin runs in the mode {report.mode}, the model in {model.cuda.mode}")
    return runner


def in_turn(ours: Callable[[], None], dense: Callable[[], None], seconds: float) -> tuple[float, float, int]:
    """Median microseconds of both, and the number of rounds; each round runs both, in alternating order."""
    times: tuple[list[int], list[int]] = ([], [])
    sides = (ours, dense)
    for side in sides:
        side()
    deadline = time.perf_counter() + seconds
    for turn in range(_MOST_ROUNDS):
        if turn >= _FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter_ns()
            sides[which]()
            times[which].append(time.perf_counter_ns() - began)
    mine, other = (statistics.median(found) / 1000 for found in times)
    return mine, other, len(times[0])
