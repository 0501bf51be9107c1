"""The loaded model beside its dense twin, where it is served."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.cuda import accelerate
from app.cuda_runs import Plain
from app.device import Device, open_session
from app.errors import BenchmarkError
from app.model import Model
from app.serving import Serving
from app.tensors import Array
from app.twin import dense_twin, folded, in_memory, sites, twin_weights

MAX_TWIN_BYTES = 2**30
ROWS = (1, 32, 256)
_FEWEST_ROUNDS = 3
_MOST_ROUNDS = 2000


def check_memory(model: Model, needed_bytes: int) -> None:
    """See that the twin can be made: its weights are held three times while it is.

    Raises:
        BenchmarkError: it is too large, or memory is short.
    """
    name = f"the dense twin of model {model.name!r} has {needed_bytes:,} bytes of weights"
    if needed_bytes > MAX_TWIN_BYTES:
        raise BenchmarkError(f"{name}; at most {MAX_TWIN_BYTES:,} are allowed")
    free = _free_bytes()
    if free is not None and 3 * (needed_bytes + model.file_bytes) > free:
        raise BenchmarkError(f"{name}, too much for the {free:,} bytes of free memory")


def _free_bytes() -> int | None:
    """What the machine and the control group have left, as far as they tell."""
    found = []
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        found.append(int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def run_benchmark(serving: Serving, device: Device, rows: Sequence[int], seconds: float) -> dict[str, Any]:
    """Run the loaded model and its dense twin in turn and compare the medians.

    Args:
        serving: the loaded model.
        device: to run the twin on, that of the model.
        rows: batch sizes; 1 alone for a model that is not batched.
        seconds: to spend on timing; making the twin comes on top.

    Raises:
        BenchmarkError: the model has no card or no layers to compare, the twin is too large, or it can't be made.
    """
    model = serving.model
    if model.card is None:
        raise BenchmarkError(f"model {model.name!r} has no card: what is dense for it is not known")
    wanted = sites(model.card)
    if not wanted:
        raise BenchmarkError(f"model {model.name!r} has no layer that runs as two products: it is dense already")
    began = time.perf_counter()
    check_memory(model, 4 * twin_weights(wanted))
    twin = dense_twin(folded(model.path), wanted, np.random.default_rng(0))
    with _stream(device) as stream:
        with in_memory("twin") as path:
            Path(path).write_bytes(twin)
            del twin
            dense_run = _runner(path, model, device, serving.batcher.max_rows, stream)
        sizes = [size for size in rows if size <= serving.batcher.max_rows] if model.batched else [1]
        batches = [_compare(model, dense_run, size, seconds / len(sizes)) for size in sizes]
        del dense_run
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


def _compare(model: Model, dense_run: Plain, size: int, seconds: float) -> dict[str, Any]:
    feeds = model.random_feeds(size)

    def ours() -> None:
        model.run(feeds, model.output_names)

    def dense() -> None:
        dense_run(feeds, model.output_names)

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
    """A stream of CUDA, where there is one."""
    if device.streams is None:
        yield None
        return
    stream = device.streams.take(device.cuda.device_id)
    try:
        yield stream
    finally:
        device.streams.give(device.cuda.device_id, stream)


def _runner(path: str, model: Model, device: Device, max_rows: int, stream: int | None) -> Plain:
    """What runs the twin in the way that the model is run in."""
    session, _ = open_session(path, device, model.num_threads, stream)

    def plain(feeds: Mapping[str, Array], output_names: Sequence[str]) -> list[Array]:
        return session.run(output_names, feeds)  # type: ignore[no-any-return]

    if model.cuda is None:
        return plain
    rows = max_rows if model.batched else None
    feeds = model.random_feeds
    report, runner = accelerate(session, model.inputs, model.outputs, rows, device, stream, feeds, plain)
    if runner is None:
        return plain
    if report.mode != model.cuda.mode:
        raise BenchmarkError(f"the dense twin runs in the mode {report.mode}, the model in {model.cuda.mode}")
    return runner.run


def in_turn(ours: Callable[[], None], dense: Callable[[], None], seconds: float) -> tuple[float, float, int]:
    """Median microseconds of both, and how many rounds were run; each round runs both, in changing order."""
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
