"""Trial loads: each model is loaded in a separate process first, so that a bad file can't end the server.

onnxruntime is native code: a well-formed graph can ask for more memory than there is or loop forever, and no exception
comes of it. A helper process that holds no model forks for each trial. The first helper is forked while the server
starts, which spares it all imports; further ones are spawned when needed. Idle helpers end after a while.

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
"""How long a trial waits for the helper that another one occupies before a further helper is started."""


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
        # At exit multiprocessing waits for its children: this ends them first.
        self.close = Finalize(self, _end, (self.process, self._connection), exitpriority=1)

    @property
    def alive(self) -> bool:
        """Whether it can take a trial."""
        return self.process.is_alive()

    def ask(self, trial: Trial) -> Outcome:
        """Try a model.

        Raises:
            OSError: the process ended, or does not answer.
        """
        try:
            self._connection.send(trial)
            # The helper keeps the time limit itself; this is for one that is stopped.
            if not self._connection.poll(_START_S + 2 * trial.limit_s):
                raise OSError("the helper process does not answer")
            outcome: Outcome = self._connection.recv()
        except EOFError:
            raise OSError("the helper process has ended") from None
        return outcome


def _end(process: "BaseProcess", connection: "Connection[Any, Any]") -> None:
    connection.close()
    process.kill()  # it has nothing to tidy up
    process.join()


class Trials:
    """The helper processes of a server. One is enough unless a trial takes long: then others get a further helper."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Helper] = []
        self._busy: set[Helper] = set()
        self._timer: threading.Timer | None = None

    def prepare(self) -> None:
        """Fork the first helper: before there are threads, sessions or a CUDA context, and after all is imported."""
        if not self._idle:
            self._idle.append(Helper("fork"))

    def run(self, trial: Trial) -> Passed:
        """Load a model in another process, and return the findings.

        Raises:
            LoadTimeoutError: that takes too long.
            LoadError: that fails, ends the process, or needs too much memory.
        """
        try:
            with self._helper() as helper:
                outcome = helper.ask(trial)
        except OSError as error:
            raise LoadError(f"{trial.what} can't be tried: {error.strerror or error}") from error
        if isinstance(outcome, Problem):
            raise (LoadTimeoutError if outcome.timed_out else LoadError)(outcome.problem)
        return outcome

    def close(self) -> None:
        """End all helpers and their trials; callers that wait for one get an error."""
        self.abort()
        with self._changed:
            self._close_idle()

    def abort(self) -> None:
        """End the trials under way; callers that wait for one get an error."""
        with self._changed:
            for helper in self._busy:
                helper.process.kill()

    @contextmanager
    def _helper(self) -> Iterator[Helper]:
        """A helper for one trial; it is reused afterwards, if it lives."""
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
        with contextlib.suppress(RuntimeError):  # no thread can be started: the helper stays
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
