"""Loading a model in a process of its own first: a file that ends the process, hangs or fills the memory ends that one.

onnxruntime is native code: a well-formed graph can ask for more memory than there is or loop for ever, and no exception
comes of it. A helper process that holds no model forks for each trial. The first helper is forked while the server
starts, which spares it all imports; later ones are started when needed. Each ends after a while of nothing to do.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.errors import InferenceFailedError, LoadError
from app.memory import available_bytes, is_short

log = logging.getLogger(__name__)

_IDLE_S = 20.0
_START_S = 120.0
_SHARE = 0.9  # of the memory that is there; the rest is for what the server does meanwhile
_LONG_RUN_S = 0.25


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        name, version, path: of the model.
        num_threads: of the runtime.
        max_rows: the largest batch that it is warmed up with; None to make a session only, and run nothing.
        limit_s: how long all of it may take.
    """

    name: str
    version: str
    path: str
    num_threads: int
    max_rows: int | None
    limit_s: float

    @property
    def what(self) -> str:
        """The model, for a message."""
        return f"model {self.name!r} version {self.version}"


class _Forked:
    """A helper that was forked from this process; what is used of it is as of ``subprocess.Popen``."""

    def __init__(self) -> None:
        given, told = os.pipe(), os.pipe()
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be_helper(given[0], told[1])
        os.close(given[0])
        os.close(told[1])
        self.stdin, self.stdout = os.fdopen(given[1], "wb"), os.fdopen(told[0], "rb")

    def poll(self) -> int | None:
        """The status once it has ended, else None."""
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        """Wait for its end."""
        return self._ended(0)

    def kill(self) -> None:
        """End it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                self._status = 0
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


class Trials:
    """The helper process, of which a server needs one; trials come one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | _Forked | None = None
        self._timer: threading.Timer | None = None

    def prepare(self) -> None:
        """Fork the helper: before there are threads, sessions or a CUDA context, and after all is imported."""
        if self._process is None:
            self._process = _Forked()

    def run(self, trial: Trial) -> None:
        """Load a model in another process.

        Raises:
            LoadError: that fails, ends the process, takes too long or too much memory.
        """
        with self._lock:
            try:
                answer = self._ask(trial)
            except OSError as error:
                self._close()
                raise LoadError(f"{trial.what} can't be tried: {error.strerror or error}") from error
            self._close_later()
        if answer is not None:
            raise LoadError(answer)

    def close(self) -> None:
        """End the helper, and what it tries; whoever waits for that gets an error."""
        self.cut()
        with self._lock:
            self._close()

    def cut(self) -> None:
        """End the trial that is under way, if there is one."""
        process = self._process
        if self._lock.locked() and process is not None:
            process.kill()

    def _ask(self, trial: Trial) -> str | None:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise OSError("no pipes")
        process.stdin.write(json.dumps(asdict(trial)).encode() + b"\n")
        process.stdin.flush()
        # The helper keeps the time limit itself; this is for one that is itself stopped.
        ready, _, _ = select.select([process.stdout], [], [], _START_S + 2 * trial.limit_s)
        line = process.stdout.readline() if ready else b""
        if not line:
            process.kill()
            raise OSError("the process to try it in gave no answer")
        problem: str | None = json.loads(line)
        return problem

    def _started(self) -> "subprocess.Popen[bytes] | _Forked":
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is not None and self._process.poll() is not None:
            self._close()
        if self._process is None:
            program = f"import sys; sys.path[:] = {sys.path!r}; from app.trial import help_out; help_out()"
            self._process = subprocess.Popen(  # noqa: S603 - this very program  # nosec B603
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what goes wrong is answered
                start_new_session=True,  # Ctrl-C is not for it: it ends when its standard input does
            )
        return self._process

    def _close_later(self) -> None:
        self._timer = threading.Timer(_IDLE_S, self._close_idle)
        self._timer.daemon = True
        self._timer.start()

    def _close_idle(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.kill()  # it has nothing to tidy up
        process.wait()


trials = Trials()
atexit.register(trials.close)


def _be_helper(given: int, told: int) -> None:
    """The life of a forked helper; never returns."""
    try:
        os.setsid()  # Ctrl-C is not for it: it ends when its standard input does
        nothing = os.open(os.devnull, os.O_RDWR)
        for target, source in enumerate((given, told, nothing)):
            os.dup2(source, target)
        # The server's sockets among them: they must not outlive it here.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdin, sys.stdout = os.fdopen(0, "r"), os.fdopen(1, "w")
        help_out()
    finally:
        os._exit(0)


def help_out() -> None:
    """What runs in the helper: a line of JSON in, a line out, until standard input ends."""
    os.nice(10)  # whoever is served meanwhile comes first
    # Imported once, here, so that each trial begins with all of it.
    import app.model  # noqa: F401

    for line in sys.stdin.buffer:
        problem = _try(Trial(**json.loads(line)))
        sys.stdout.buffer.write(json.dumps(problem).encode() + b"\n")
        sys.stdout.buffer.flush()


def _try(trial: Trial) -> str | None:
    """Load in a child; why that failed, or None."""
    limit = available_bytes()
    limit = None if limit is None else int(_SHARE * limit)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        _in_child(trial, limit, writer)
    os.close(writer)
    try:
        return _watch(trial, limit, child, reader)
    finally:
        os.close(reader)


def _watch(trial: Trial, limit: int | None, child: int, reader: int) -> str | None:
    end = time.monotonic() + trial.limit_s
    said = b""
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        part = os.read(reader, 65536) if ready else b""
        if not part:
            break
        said += part
    if not select.select([reader], [], [], 0)[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return f"{trial.what} is not loaded: a trial took longer than trial_load_s ({trial.limit_s:g})"
    _, status = os.waitpid(child, 0)
    if said:
        problem: str | None = json.loads(said)
        if problem is not None and limit is not None and is_short(problem):
            return f"{trial.what} is not loaded: a trial needed more memory than there is ({limit} bytes): {problem}"
        return problem
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return f"{trial.what} is not loaded: a trial was killed, as the kernel does where it is out of memory"
    ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
    return f"{trial.what} is not loaded: a trial ended the process ({ended}); the file is damaged or hostile"


def _in_child(trial: Trial, limit: int | None, writer: int) -> None:
    """Load, tell by the pipe, end; never returns."""
    try:
        _be_harmless(limit)
        problem = _load(trial)
        os.write(writer, json.dumps(problem).encode())
    finally:
        os._exit(0)  # no clean-up of the parent's


def _be_harmless(limit: int | None) -> None:
    import resource

    from app.tuning import end_with_parent

    end_with_parent()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):  # where memory runs out after all, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load(trial: Trial) -> str | None:
    from app.device import CPU, Device, open_session
    from app.model import Model

    device = Device("cpu", (CPU,))
    try:
        if trial.max_rows is None:
            with contextlib.suppress(Exception):  # what the CPU can't do another device may
                open_session(trial.path, device, trial.num_threads)
            return None
        model = Model(trial.name, trial.version, Path(trial.path), device, trial.num_threads)
        for rows in _batches(trial.max_rows) if model.batched else (1,):
            began = time.monotonic()
            model.run(model.random_feeds(rows), model.output_names)
            if time.monotonic() - began > _LONG_RUN_S:
                break
    except InferenceFailedError as error:
        # Random input is not always to a model's liking.
        return str(error) if is_short(str(error)) else None
    except LoadError as error:
        return str(error)
    except MemoryError as error:
        return f"MemoryError: {error}"
    except Exception:  # noqa: BLE001 - the load that follows meets it again, and logs what it is
        return None
    return None


def _batches(max_rows: int) -> list[int]:
    """As the model will be warmed up; the least and the most show what there is to see."""
    return sorted({1, min(64, max_rows), max_rows})
