"""Processes of a trial load: a helper that forks, and its child, which loads one model within limits.

See docs/decisions/0020-trial-load-in-a-subprocess.md.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InferenceFailedError, LoadError
from app.runtime.batching import Wanted
from app.runtime.session_choices import AS_IT_COMES, SessionChoices
from app.system.memory import available_bytes, data_limit, is_short

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from app.runtime.model import OnnxModel

_SHARE = 0.9  # share of available memory; the rest stays for the server
_LONG_RUN_S = 0.25
_NO_ROWS_S = 5.0


@dataclass(frozen=True)
class Trial:
    """The trial load of one model.

    Attributes:
        name, version, path: Name, version and path of the model.
        num_threads: Threads of the runtime.
        max_rows: Largest batch for the warm-up; None to make a session only, without a run.
        limit_s: Time limit of the whole trial.
        extra_s: Additional time for the size of its files.
        choices, batching: Options from the model's settings.
    """

    name: str
    version: str
    path: str
    num_threads: int
    max_rows: int | None
    limit_s: float
    extra_s: float = 0.0
    choices: SessionChoices = AS_IT_COMES
    batching: Wanted = "auto"

    @property
    def what(self) -> str:
        """The model, for a message."""
        return f"model {self.name!r} version {self.version}"


@dataclass(frozen=True)
class Problem:
    """The reason why a trial failed; a trial that timed out may succeed later."""

    problem: str
    timed_out: bool = False


@dataclass(frozen=True)
class Passed:
    """Result of a successful trial.

    Attributes:
        takes_no_rows: Whether a batch without rows was run, and returned no rows.
    """

    takes_no_rows: bool = False


Outcome = Problem | Passed


def serve_trials(connection: "Connection[Any, Any]") -> None:
    """Main function of a helper: a trial in, its outcome out, until the other side closes the connection."""
    os.setsid()  # ignore Ctrl-C in the terminal
    _keep_only(connection.fileno())
    os.nice(10)  # requests have priority
    # Imported once, here, so each forked trial has it.
    import app.runtime.model  # noqa: F401

    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_try(connection.recv(), connection))


def _keep_only(descriptor: int) -> None:
    """Close inherited resources of the server, especially sockets: they must not stay open here."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _try(trial: Trial, server: "Connection[Any, Any]") -> Outcome:
    """Load in a child process within limits of memory and time; the child does not outlive the server."""
    limits = [limit for limit in (_share(available_bytes()), data_limit()) if limit is not None]
    limit = min(limits, default=None)
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_load_within, args=(trial, limit, writer))
    child.start()
    writer.close()
    try:
        return judge(trial, limit, child, reader, server)
    finally:
        reader.close()
        child.close()


def _share(available: int | None) -> int | None:
    return None if available is None else int(_SHARE * available)


def judge(
    trial: Trial,
    limit: int | None,
    child: BaseProcess,
    reader: "Connection[Any, Any]",
    server: "Connection[Any, Any] | None" = None,
) -> Outcome:
    """Wait for a child and return the outcome of its trial.

    Args:
        trial: The trial.
        limit: Memory limit in bytes; None for no limit.
        child: The process.
        reader: Receives the problem that the child found, or None.
        server: Becomes readable during a trial only when the server has ended.

    Raises:
        EOFError: The server has ended.
    """
    ends = wait([reader] if server is None else [reader, server], trial.limit_s + trial.extra_s)
    if ends and reader not in ends:
        child.kill()
        child.join()
        raise EOFError("the server has ended")
    if not ends:
        child.kill()
        child.join()
        return Problem(f"{trial.what} is not loaded: a trial took longer than {_time_limit(trial)}", timed_out=True)
    try:
        problem: str | None = reader.recv()
    except (EOFError, OSError):
        child.join()
        return Problem(f"{trial.what} is not loaded: {_ended(child.exitcode or 0)}")
    takes_no_rows = problem is None and _second_word(reader)
    child.kill()
    child.join()
    if problem is not None and limit is not None and is_short(problem):
        return Problem(f"{trial.what} is not loaded: {_too_little(limit)}: {problem}")
    return Passed(takes_no_rows) if problem is None else Problem(problem)


def _second_word(reader: "Connection[Any, Any]") -> bool:
    """Whether the model accepts a batch without rows; a child without a second message crashed or hangs."""
    try:
        return reader.poll(_NO_ROWS_S) and bool(reader.recv())
    except (EOFError, OSError):
        return False


def _time_limit(trial: Trial) -> str:
    extra = f" and {trial.extra_s:g} s for the size of its files" if trial.extra_s else ""
    return f"trial_load_s ({trial.limit_s:g}){extra}"


def _too_little(limit: int) -> str:
    if limit == data_limit():
        return f"a trial exceeded the server's RLIMIT_DATA ('ulimit -d') of {limit} bytes"
    return f"a trial exceeded the available memory ({limit} bytes)"


def _ended(exitcode: int) -> str:
    """The meaning of the exit status of a child that sent no message."""
    if exitcode == -signal.SIGKILL:
        return "a trial was killed, probably because the machine ran out of memory"
    ended, limit = f"a trial crashed ({_name(exitcode)})", data_limit()
    if limit is not None:
        return (
            f"{ended}; RLIMIT_DATA ('ulimit -d') allows the server {limit} bytes, which may be too little; "
            "raise it, or the file is damaged or hostile"
        )
    return f"{ended}; the file is damaged or hostile"


def _name(exitcode: int) -> str:
    if exitcode < 0 and -exitcode in set(signal.Signals):
        return signal.Signals(-exitcode).name
    return f"status {exitcode}"


def _load_within(trial: Trial, limit: int | None, writer: "Connection[Any, Any]") -> None:
    """Main function of the child."""
    _limit_process(limit)
    problem, model = _load(trial)
    writer.send(problem)
    if problem is None:
        # Last, because kernels may crash on empty inputs.
        writer.send(model is not None and _takes_no_rows(model))


def _takes_no_rows(model: "OnnxModel") -> bool:
    if not model.batched or not model.takes_empty:
        return False
    try:
        arrays = model.run(model.random_feeds(0), model.output_names).arrays
    except Exception:  # noqa: BLE001 - any exception means that the model rejects empty batches
        return False
    axes = model.batching.cut(model.output_names)
    return all(axis is None or array.shape[axis] == 0 for array, axis in zip(arrays, axes, strict=True))


def _limit_process(limit: int | None) -> None:
    import resource

    from app.system.tuning import end_with_parent

    end_with_parent()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):  # if memory runs out anyway, the kernel should kill this process
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load(trial: Trial) -> tuple[str | None, "OnnxModel | None"]:
    """Load and warm up. Return the problem, or None, and the model."""
    from app.runtime.device import CPU, Device, open_session
    from app.runtime.model import OnnxModel

    device = Device("cpu", (CPU,))
    try:
        if trial.max_rows is None:
            with contextlib.suppress(Exception):  # another device may support a model that the CPU does not
                open_session(trial.path, device, trial.num_threads, choices=replace(trial.choices, providers=()))
            return None, None
        path = Path(trial.path)
        model = OnnxModel(trial.name, trial.version, path, device, trial.num_threads, trial.batching, trial.choices)
        for rows in _batches(trial.max_rows) if model.batched else (1,):
            began = time.monotonic()
            model.run(model.random_feeds(rows), model.output_names)
            if time.monotonic() - began > _LONG_RUN_S:
                break
    except InferenceFailedError as error:
        # Some models reject random input.
        return (str(error) if is_short(str(error)) else None), None
    except LoadError as error:
        return str(error), None
    except MemoryError as error:
        return f"MemoryError: {error}", None
    except Exception:  # noqa: BLE001 - the load that follows fails in the same way, and logs it
        return None, None
    return None, model


def _batches(max_rows: int) -> list[int]:
    """Batch sizes of the trial, as in the warm-up; the smallest and largest reveal most problems."""
    return sorted({1, min(64, max_rows), max_rows})
