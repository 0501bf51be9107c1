"""Trial loads: each model is loaded in a separate process first, so a bad file cannot crash the server.

onnxruntime is native code: a well-formed graph can exhaust memory or loop forever without raising an
exception. A helper process without models forks for each trial. The first helper is forked while the server
starts, which saves the imports; further ones are spawned when needed. Idle helpers end after a while.

See docs/decisions/0020-trial-load-in-a-subprocess.md.
"""

import contextlib
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Literal

from app.errors import LoadError, LoadTimeoutError
from app.repository.trial_process import Outcome, Passed, Problem, Trial, serve_trials

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

__all__ = ["Trial", "Trials", "trials"]

log = logging.getLogger(__name__)

_IDLE_S = 20.0
_START_S = 120.0
_PATIENCE_S = 1.0
"""Time that a trial waits for a busy helper before a further helper is started."""


class Helper:
    """One helper process; it tries one model at a time.

    Args:
        method: ``fork`` while this process has no threads, sessions or CUDA context; ``spawn`` later.
    """

    def __init__(self, method: Literal["fork", "spawn"]) -> None:
        context: Any = multiprocessing.get_context(method)
        self._connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve_trials, args=(theirs,), name="trial-helper")
        self.process.start()
        theirs.close()
        # At exit multiprocessing waits for its children; end them first.
        self.close = Finalize(self, _end, (self.process, self._connection), exitpriority=1)

    @property
    def alive(self) -> bool:
        """Whether it can run a trial."""
        return self.process.is_alive()

    def ask(self, trial: Trial) -> Outcome:
        """Run a trial.

        Raises:
            OSError: The process ended, or does not respond.
        """
        try:
            self._connection.send(trial)
            # The helper enforces the time limit; this limit is for a stopped helper.
            if not self._connection.poll(_START_S + 2 * trial.limit_s):
                raise OSError("the helper process does not respond")
            outcome: Outcome = self._connection.recv()
        except EOFError:
            raise OSError("the helper process has ended") from None
        return outcome


def _end(process: "BaseProcess", connection: "Connection[Any, Any]") -> None:
    connection.close()
    process.kill()  # it has nothing to clean up
    process.join()


class Trials:
    """The helper processes of a server. One is enough unless a trial takes long; then another one is started."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Helper] = []
        self._busy: set[Helper] = set()
        self._timer: threading.Timer | None = None

    def prepare(self) -> None:
        """Fork the first helper after all imports, but before there are threads, sessions or a CUDA context."""
        if not self._idle:
            self._idle.append(Helper("fork"))

    def run(self, trial: Trial) -> Passed:
        """Load a model in another process, and return the findings.

        Raises:
            LoadTimeoutError: The trial timed out.
            LoadError: The trial failed, crashed, or exceeded its memory limit.
        """
        try:
            with self._helper() as helper:
                outcome = helper.ask(trial)
        except OSError as error:
            raise LoadError(f"{trial.what} cannot be loaded in a trial: {error.strerror or error}") from error
        if isinstance(outcome, Problem):
            raise (LoadTimeoutError if outcome.timed_out else LoadError)(outcome.problem)
        return outcome

    def close(self) -> None:
        """End all helpers and their trials; waiting callers get an error."""
        self.abort()
        with self._changed:
            self._close_idle()

    def abort(self) -> None:
        """End running trials; waiting callers get an error."""
        with self._changed:
            for helper in self._busy:
                helper.process.kill()

    @contextmanager
    def _helper(self) -> Iterator[Helper]:
        """A helper for one trial; it is reused afterwards if it is alive."""
        with self._changed:
            if self._timer is not None:
                self._timer.cancel()
            if self._busy and not self._idle:
                self._changed.wait_for(lambda: self._idle, _PATIENCE_S)
            helper = self._take_idle() or Helper("spawn")
            self._busy.add(helper)
        usable = False
        try:
            yield helper
            usable = True
        finally:
            with self._changed:
                self._busy.discard(helper)
                if usable:
                    self._idle.append(helper)
                    self._close_later()
                else:
                    helper.close()
                self._changed.notify()

    def _take_idle(self) -> Helper | None:
        while self._idle:
            helper = self._idle.pop()
            if helper.alive:
                return helper
            helper.close()
        return None

    def _close_later(self) -> None:
        self._timer = threading.Timer(_IDLE_S, self._time_out)
        self._timer.daemon = True
        with contextlib.suppress(RuntimeError):  # a thread cannot be started: the helper stays
            self._timer.start()

    def _time_out(self) -> None:
        with self._changed:
            if self._timer is threading.current_thread():
                self._close_idle()

    def _close_idle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            with contextlib.suppress(OSError):
                self._idle.pop().close()


trials = Trials()
