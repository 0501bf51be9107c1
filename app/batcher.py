"""Batches without a timer: what arrived in the same turn of the event loop, or while the last batch ran."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnxruntime as ort

from app.calls import Call, CallQueue
from app.cuda_runs import Parts
from app.errors import AppError, DeadlineExceededError, InferenceFailedError, ModelUnavailableError, OverloadedError
from app.model import Model
from app.results import Results
from app.statistics import Statistics
from app.tensors import Array

log = logging.getLogger(__name__)

_LONG_WARM_UP_NS = 500_000_000


class Batcher:
    """Runs the calls of one model, several at a time where the model allows it.

    A run that is expected to be short happens in the event loop itself: handing it to a thread would cost more than
    it takes. A longer one goes to the one thread that the model owns, and what arrives meanwhile is the next batch.
    While calls come one by one, each is run as it comes.

    Where the model runs on a device and other calls wait, the answers of a batch are written while the next one runs.

    Attributes:
        running: whether the owner thread is at a run.

    Args:
        model: the model to run.
        max_rows: most rows in one run; a call with more is run in pieces.
        inline_ns: a run expected to take no longer than this happens in the event loop.
        together: whether calls may share a run; if not, each has its own.
        delay_ns: how long the first call of a batch may wait for others.
        max_queue_rows: rows that may wait; 0 for no bound.
        max_queue_bytes: bytes of tensors that may wait; 0 for no bound.
        max_wait_ns: how long a call may have to wait, by what runs have taken so far; 0 for no bound.
    """

    def __init__(
        self,
        model: Model,
        max_rows: int,
        inline_ns: int,
        *,
        together: bool = True,
        delay_ns: int = 0,
        max_queue_rows: int = 0,
        max_queue_bytes: int = 0,
        max_wait_ns: int = 0,
    ) -> None:
        self.model = model
        self.max_rows = max_rows
        self.inline_ns = inline_ns
        self.together = together and model.batched
        self.delay_ns = delay_ns if self.together else 0
        self.max_wait_ns = max_wait_ns
        self.statistics = Statistics()
        self._queue = CallQueue(max_queue_rows, max_queue_bytes)
        self._scheduled = False
        self.running = False
        self._closed = False
        self._timed = False  # whether a pending call has a deadline
        self._alone = False  # whether the last turn of the loop had but one call
        self._run_began_ns = 0  # of the owner thread
        self._delayed: asyncio.TimerHandle | None = None
        self._current: list[Call] = []  # what the owner thread runs
        self._options = ort.RunOptions()  # of that run
        self._left: tuple[list[Call], list[_Outcome]] | None = None  # a batch that ran and is not yet answered
        self._cost_ns: dict[int, float] = {}  # rows, rounded up to a power of two (as its exponent): typical run
        self._thread: ThreadPoolExecutor | None = None
        self._ran_well: list[tuple[int, int, Call]] = []  # runs that are not counted yet: rows, ns, the first call

    @property
    def depth(self) -> int:
        """Calls that wait."""
        return len(self._queue)

    @property
    def pending_rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self.running and self._left is None

    @property
    def running_s(self) -> float:
        """Seconds since the run began that the owner thread is at; 0 where it is at none."""
        began_ns = self._run_began_ns
        return (time.perf_counter_ns() - began_ns) / 1e9 if began_ns else 0.0

    def warm_up(self) -> None:
        """Run the model at one row and at its largest batch, so that the first requests meet no cold path."""
        for rows in dict.fromkeys((1, 8, 64, self.max_rows)) if self.model.batched else (1,):
            if rows > self.max_rows:
                continue
            feeds = self.model.random_feeds(rows)
            try:
                for _ in range(2):
                    began = time.perf_counter_ns()
                    self.model.run(feeds, self.model.output_names)
                    ended = time.perf_counter_ns()
            except InferenceFailedError:
                return  # random input is not always to a model's liking
            self._cost_ns[(rows - 1).bit_length()] = ended - began
            if ended - began > _LONG_WARM_UP_NS:
                return

    def submit(self, call: Call) -> None:
        """Queue a call; must be called in the event loop."""
        if self._closed:
            call.done(call, None, ModelUnavailableError(f"model {self.model.name!r} is being unloaded"))
            return
        call.queued_ns = time.perf_counter_ns()
        if self._alone and not (self._scheduled or self.running or self._queue) and not call.deadline_ns:
            self._run_at_once(call)
            return
        call.nbytes = sum([array.nbytes for array in call.feeds.values()])
        full = self.full(call.rows, call.nbytes)
        if full is not None:
            call.done(call, None, full)
            return
        self._queue.append(call)
        if call.deadline_ns:
            self._timed = True
            wait_s = max(0.0, (call.deadline_ns - call.queued_ns) / 1e9)
            call.timer = asyncio.get_running_loop().call_later(wait_s, self._expire, call)
        self._schedule()

    def full(self, rows: int = 1, nbytes: int = 0) -> OverloadedError | None:
        """Why a call must not be submitted now, or None.

        Args:
            rows: of the call; 1 before that is known.
            nbytes: of its feeds.
        """
        if not self.running:
            return None  # all that waits runs in this turn of the loop
        rule = self._queue.full(rows, nbytes)
        wait_ns = self._wait_ns()
        if rule is None:
            if not self.max_wait_ns or wait_ns <= self.max_wait_ns or not self._queue:
                return None
            rule = f"it would wait {wait_ns / 1e6:.0f} ms, more than max_queue_ms ({self.max_wait_ns / 1e6:.0f})"
        wait_s = min(60, max(1, math.ceil(wait_ns / 1e9)))
        return OverloadedError(f"model {self.model.name!r} has too much to do: {rule}", wait_s)

    def _wait_ns(self) -> float:
        """How long a call that came now would wait, by what runs have taken so far; 0 where that is not known."""
        rows = self._queue.rows
        most = self.max_rows if self.together else max(1, rows // max(1, len(self._queue)))
        wait_ns = self._expected_ns(most) * rows / most
        return wait_ns if math.isfinite(wait_ns) else 0.0

    def cancel(self, call: Call) -> None:
        """Drop a call whose caller has gone: it costs no model time, or no more where nobody else waits for the run."""
        call.cancelled = True
        if call in self._queue:
            self._queue.remove(call)
        elif self._current and all(other.cancelled for other in self._current):
            self._options.terminate = True

    def close(self) -> None:
        """Take no new calls; what waits is still run."""
        self._closed = True
        self._end_thread()

    def _end_thread(self) -> None:
        """End the owner thread once nothing is left for it."""
        if self._closed and self.idle and self._thread is not None:
            self._thread.shutdown(wait=False)

    def _schedule(self) -> None:
        if self._scheduled or self.running or not self._queue:
            return
        if self.delay_ns and self._queue.rows < self.max_rows and not self._closed:
            if self._delayed is None:
                wait_ns = next(iter(self._queue)).queued_ns + self.delay_ns - time.perf_counter_ns()
                self._delayed = asyncio.get_running_loop().call_later(max(0.0, wait_ns / 1e9), self._waited)
            return
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _waited(self) -> None:
        """The first call has waited for others for as long as it may."""
        self._delayed = None
        if self._queue and not self._scheduled and not self.running:
            self._scheduled = True
            self._turn()

    def _run_at_once(self, call: Call) -> None:
        """Run a call that has probably come alone; what yet comes in this turn of the loop is the next batch."""
        cost = self._cost_ns.get((call.rows - 1).bit_length())
        if cost is None or cost > self.inline_ns:
            self._alone = False
            self._queue.append(call)
            self._schedule()
            return
        self._scheduled = True
        batch = [call]
        self._finish(batch, self._execute(batch, call.rows))
        # Once it is answered: what this costs the loop costs the caller nothing.
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        if self._timed:
            self._drop_late()
        if self.running or not self._queue:
            self._answer_left()
            if self._closed:
                self._end_thread()
            return
        batch, rows = self._queue.take(self.max_rows if self.together else 1)
        if self._expected_ns(rows) <= self.inline_ns:
            self._alone = not self._alone and len(batch) == 1 and not self._queue and not self.delay_ns
            outcomes = self._execute(batch, rows)
            self._answer_left()
            if self.model.gathers and self._queue and not self.delay_ns:
                self._left = batch, outcomes
            else:
                self._finish(batch, outcomes)
        else:
            self._answer_left()
            self._alone = False
            self.running = True
            self._current = batch
            self._options = ort.RunOptions()
            self._run_began_ns = time.perf_counter_ns()
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{self.model.name}")
            loop = asyncio.get_running_loop()
            future = self._thread.submit(self._execute, batch, rows, self._options)
            future.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._ran, batch, ended))
            return
        self._schedule()
        if self._closed:
            self._end_thread()

    def _answer_left(self) -> None:
        """Answer the batch before, if that is still to be done."""
        if self._left is not None:
            left, self._left = self._left, None
            self._finish(*left)

    def _ran(self, batch: list[Call], ended: "Future[list[_Outcome]]") -> None:
        self.running = False
        self._current = []
        self._run_began_ns = 0
        self._finish(batch, ended.result())
        self._schedule()
        self._end_thread()

    def _execute(self, batch: list[Call], rows: int, options: ort.RunOptions | None = None) -> "list[_Outcome]":
        """Run a batch, in the loop or on the owner thread; one outcome for each call."""
        began = time.perf_counter_ns()
        start = 0
        for call in batch:
            call.queue_ns = began - call.queued_ns
            call.start, call.stop = start, start + call.rows
            start = call.stop
        first = batch[0]
        try:
            feeds: Mapping[str, Parts] = first.feeds if len(batch) == 1 else self._together(batch)
            ready = time.perf_counter_ns()
            names = first.output_names
            if rows > self.max_rows and self.model.batched:
                arrays = self._run_in_pieces(feeds, names, rows, options)
            elif self._left is None:
                arrays = self.model.run(feeds, names, options)
            else:
                arrays = self.model.run(feeds, names, options, self._answer_left)
            run_ns = time.perf_counter_ns() - ready - self.model.aside_ns
            results = Results(self.model, names, arrays)
            # What copies to and from a device take is no time of the model.
            copied_in, output_ns = self.model.copy_ns
            for call in batch:
                call.input_ns = ready - began + copied_in
                call.infer_ns = run_ns - copied_in - output_ns
                call.output_ns = output_ns
            self._ran_well.append((rows, run_ns, first))
        except InferenceFailedError as error:
            if len(batch) == 1 or (options is not None and options.terminate):
                return [error] * len(batch)
            # One of them poisoned the run: each by itself, so that it fails alone.
            return [outcome for call in batch for outcome in self._execute([call], call.rows, options)]
        except MemoryError:
            if len(batch) == 1:
                return [OverloadedError(f"model {self.model.name!r} has no memory for this request now")]
            return [outcome for call in batch for outcome in self._execute([call], call.rows, options)]
        except Exception as error:  # a defect of ours must not leave callers waiting for ever
            log.exception("a batch of model %s failed", self.model.name)
            failure = InferenceFailedError(f"model {self.model.name!r} failed")
            failure.__cause__ = error
            return [failure] * len(batch)
        return [results] * len(batch)

    def _account(self) -> None:
        """Count the runs that ended, and learn from them; once their callers have what they wait for."""
        for rows, run_ns, call in self._ran_well:
            self._learn(rows, run_ns)
            self.statistics.executed(rows, call.input_ns, call.infer_ns, call.output_ns)
        self._ran_well.clear()

    def _together(self, batch: list[Call]) -> Mapping[str, Parts]:
        """The rows of several calls, one below the other, or as they are where the model puts them so."""
        names = batch[0].feeds
        if self.model.gathers:
            return {name: [call.feeds[name] for call in batch] for name in names}
        return {name: np.concatenate([call.feeds[name] for call in batch]) for name in names}

    def _run_in_pieces(
        self, feeds: Mapping[str, Parts], output_names: tuple[str, ...], rows: int, options: ort.RunOptions | None
    ) -> list[Array]:
        pieces = [
            self.model.run(
                {name: array[at : at + self.max_rows] for name, array in feeds.items()}, output_names, options
            )
            for at in range(0, rows, self.max_rows)
        ]
        outputs = list(zip(*pieces, strict=True))
        if any(len({part.shape[1:] for part in parts}) > 1 for parts in outputs):
            # What is in the rows decides on an output's shape: only all together have one.
            return self.model.run(feeds, output_names, options)
        return [np.concatenate(parts) for parts in outputs]

    def _finish(self, batch: list[Call], outcomes: "list[_Outcome]") -> None:
        for call, outcome in zip(batch, outcomes, strict=True):
            if call.timer is not None:
                call.timer.cancel()
            if call.cancelled:
                continue
            try:
                if isinstance(outcome, Results):
                    call.done(call, outcome, None)
                else:
                    call.done(call, None, outcome)
            except Exception:  # the others of the batch still get their answers
                log.exception("a caller of model %s could not be answered", self.model.name)
        self._account()

    def _drop_late(self) -> None:
        now = time.perf_counter_ns()
        for call in [item for item in self._queue if item.deadline_ns]:
            if call.deadline_ns <= now:
                self._expire(call)
        self._timed = any(call.deadline_ns for call in self._queue)

    def _expire(self, call: Call) -> None:
        if call in self._queue:
            self._queue.remove(call)
            if call.timer is not None:
                call.timer.cancel()
            waited_us = (time.perf_counter_ns() - call.queued_ns) // 1000
            call.done(call, None, DeadlineExceededError(f"the request waited {waited_us} µs, longer than its timeout"))

    def _expected_ns(self, rows: int) -> float:
        """How long a run of so many rows should take, from those seen; one never seen counts as too long."""
        bucket = (rows - 1).bit_length()
        cost = self._cost_ns.get(bucket)
        if cost is not None:
            return cost
        smaller = [(size, ns) for size, ns in self._cost_ns.items() if size < bucket]
        if not smaller:
            return min(self._cost_ns.values(), default=float("inf"))
        size, ns = max(smaller)
        return ns * 2.0 ** (bucket - size)

    def _learn(self, rows: int, ns: int) -> None:
        bucket = (rows - 1).bit_length()
        known = self._cost_ns.get(bucket)
        # A slow outlier (another process had the core) fades; a change of load is followed within a few runs.
        self._cost_ns[bucket] = ns if known is None else known + 0.2 * (ns - known)


_Outcome = Results | AppError
