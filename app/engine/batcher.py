"""Dynamic batching without a delay: a batch is whatever queued while the previous one ran.

See docs/decisions/0008-cancel-runs-by-terminate.md.
See docs/decisions/0034-wait-for-the-gpu-in-the-event-loop.md.
"""

import asyncio
import enum
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from app.engine.batch_runner import BatchOutcome, BatchRunner
from app.engine.batching_options import BatchingOptions
from app.engine.cost_model import CostModel
from app.engine.queue import QueueEntry, RequestQueue
from app.engine.request import Completion, FutureCompletion, InferenceRequest, Timings
from app.engine.results import InferenceResult
from app.engine.thread_run import ThreadRun
from app.engine.warm_up import warm_up
from app.errors import AppError, DeadlineExceededError, ModelUnavailableError, OverloadedError
from app.runtime.instance import ModelInstance
from app.runtime.model import OnnxModel
from app.telemetry.statistics import Statistics

log = logging.getLogger(__name__)

_MAX_RETRY_S = 60
_LARGE_BYTES = 1 << 20
"""A batch of at least this size runs on a thread: copying its tensors would block the event loop."""


class State(enum.Enum):
    """State of a batcher; see ``Batcher``."""

    IDLE = enum.auto()
    DELAYED = enum.auto()
    SCHEDULED = enum.auto()
    RUNNING = enum.auto()


_IDLE, _DELAYED, _SCHEDULED, _RUNNING = State  # looking up a member on its class is slow


class Batcher:
    """Runs the inference requests of one model, several per run if the model allows it.

    A run with a short expected duration and small tensors executes on the event loop: handing it to a thread would
    cost more than the run. Other runs execute on the model's only thread; requests that arrive meanwhile form the next
    batch. Requests that arrive one at a time run at once. If the model runs on a device and other requests are
    queued, the responses of a batch are deferred, and written while the next batch runs.

    A turn takes a batch from the queue and runs it. Everything but the run itself happens on the event loop:

    ========= ======================= ======================= ================== ====================
    state     queue                   next turn               ``_thread_run``    ``_deferred``
    ========= ======================= ======================= ================== ====================
    IDLE      empty                   with the next request   None               None
    DELAYED   less than a batch [1]_  when the delay is over  None               None
    SCHEDULED any                     due, or under way       None               a batch, or None
    RUNNING   any                     when the run ends       the run            None
    ========= ======================= ======================= ================== ====================

    .. [1] Or empty, if requests were cancelled or expired: the delay then ends in IDLE.

    ``close`` is valid in each state and changes none: queued requests still run, and the thread ends once the state
    is IDLE. ``_alone`` (the last turn had a single request) lets a request in the state IDLE run at once.

    Args:
        model: The model to run.
        options: Batching and queue options.
        instance: Instance of the model that runs the requests; None for the model itself.

    Attributes:
        options: The effective options; a model that cannot be batched never shares a run.
        statistics: Counters of the model's runs.
        cost: Expected duration of runs.
    """

    def __init__(self, model: OnnxModel, options: BatchingOptions, instance: ModelInstance | None = None) -> None:
        self.model = model
        self.options = options if options.together and model.batched else replace(options, together=False, delay_ns=0)
        self.statistics = Statistics()
        self.cost = CostModel()
        self._queue = RequestQueue(options.max_queue_rows, options.max_queue_bytes)
        self._runner = BatchRunner(model, options.max_rows, instance)
        self._state = _IDLE
        self._closed = False
        self._alone = False
        self._delay: asyncio.TimerHandle | None = None  # in the state DELAYED
        self._thread_run: ThreadRun | None = None
        self._deferred: tuple[list[QueueEntry], BatchOutcome] | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def together(self) -> bool:
        """Whether requests share runs; batching ends if a run shows that rows are not independent."""
        return self.options.together and self.model.batching.batched

    @property
    def closed(self) -> bool:
        """Whether new requests are refused, because the model is being unloaded."""
        return self._closed

    @property
    def depth(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether no request is queued, running, or waiting for its response."""
        return not self._queue and self._thread_run is None and self._deferred is None

    @property
    def running_s(self) -> float:
        """Seconds since the start of the run on the model's thread; 0 without one."""
        run = self._thread_run
        return 0.0 if run is None else run.running_s

    @property
    def runs_by_instance(self) -> list[int]:
        """Number of runs by instance."""
        return [self.statistics.executions]

    def warm_up(self) -> None:
        """Run the model at a few sizes up to its largest batch, so the first requests find it warm."""
        warm_up(self.model, self.model, self.options.max_rows, self.cost)

    async def run(
        self, request: InferenceRequest, timings: Timings | None = None, *, keep: object = None
    ) -> InferenceResult:
        """Run a request and return its result; cancelling the waiting task cancels the request.

        Args:
            request: See ``submit``.
            timings: See ``submit``.
            keep: Object to keep alive as long as the request's tensors, even if its client disconnects during the run.

        Raises:
            AppError: The request was refused, expired, or failed.
        """
        future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        completion = FutureCompletion(future, keep)
        try:
            self.submit(request, completion, timings or Timings(time.perf_counter_ns()))
            return await future
        except asyncio.CancelledError:
            self.cancel(completion)
            raise
        finally:
            # The traceback of an error refers to this frame, which must not refer back to the error or the tensors.
            del future, completion, request, keep

    def submit(self, request: InferenceRequest, completion: Completion, timings: Timings) -> None:
        """Queue a request, or run it at once; must be called on the event loop.

        Args:
            request: The request.
            completion: Receives the result or the error, possibly before this method returns.
            timings: Timings of the request; ``began_ns`` is set, the other times are filled in.
        """
        if self._closed:
            completion.failed(ModelUnavailableError(f"model {self.model.name!r} is being unloaded"))
            return
        timings.queued_ns = time.perf_counter_ns()
        entry = QueueEntry(request, completion, timings)
        if self._alone and self._state is _IDLE and not entry.deadline_ns:
            self._run_at_once(entry)
            return
        entry.nbytes = request.nbytes
        if self._thread_run is not None:
            refusal = self.why_full(request.rows, entry.nbytes)
            if refusal is not None:
                completion.failed(refusal)
                return
        self._queue.append(entry)
        if entry.deadline_ns:
            wait_s = max(0.0, (entry.deadline_ns - timings.queued_ns) / 1e9)
            entry.timer = asyncio.get_running_loop().call_later(wait_s, self._expire, entry)
        self._schedule()

    def why_full(self, rows: int = 1, nbytes: int = 0) -> OverloadedError | None:
        """The error for a request that must not be submitted now, or None.

        Args:
            rows: Rows of the request; 1 if unknown.
            nbytes: Size of its feeds.
        """
        if self._thread_run is None:
            return None  # the whole queue runs in this turn of the loop
        rule = self._queue.why_full(rows, nbytes)
        wait_ns = self._wait_ns()
        if rule is None:
            max_wait_ns = self.options.max_wait_ns
            if not max_wait_ns or wait_ns <= max_wait_ns or not self._queue:
                return None
            rule = f"the request would wait {wait_ns / 1e6:.0f} ms, more than max_queue_ms ({max_wait_ns / 1e6:.0f})"
        wait_s = min(_MAX_RETRY_S, max(1, math.ceil(wait_ns / 1e9)))
        return OverloadedError(f"model {self.model.name!r} is overloaded: {rule}", wait_s)

    def _wait_ns(self) -> float:
        """Expected waiting time of a new request; 0 if unknown."""
        rows = self._queue.rows
        most = self.options.max_rows if self.together else max(1, rows // max(1, len(self._queue)))
        wait_ns = self.cost.expected_ns(most) * rows / most
        return wait_ns if math.isfinite(wait_ns) else 0.0

    def cancel(self, completion: Completion) -> None:
        """Drop the request of a disconnected client; its completion is not called any more.

        A queued request does not run; a run on the model's thread stops once all clients of its batch disconnected.
        """
        entry = self._queue.find(completion)
        if entry is not None:
            self._queue.discard(entry)
            _end(entry)
            return
        for run in self._runs():
            for other in run.batch:
                if other.completion is completion:
                    _end(other)
            if all(other.cancelled for other in run.batch):
                run.options.terminate = True
        if self._deferred is not None:
            for other in self._deferred[0]:
                if other.completion is completion:
                    _end(other)

    def _runs(self) -> Sequence[ThreadRun]:
        """The current runs on threads."""
        return () if self._thread_run is None else (self._thread_run,)

    def close(self) -> None:
        """Refuse new requests; queued ones still run."""
        self._closed = True
        self._end_thread()

    def _end_thread(self) -> None:
        """End the model's thread once its work is done."""
        if self._closed and self.idle and self._thread is not None:
            self._thread.shutdown(wait=False)

    def _schedule(self) -> None:
        """Schedule the next turn after the queue has grown or a turn has ended."""
        if self._state is _SCHEDULED or self._state is _RUNNING or not self._queue:
            return
        loop = asyncio.get_running_loop()
        options = self.options
        if options.delay_ns and self._queue.rows < options.max_rows and not self._closed:
            if self._state is _IDLE:
                first = next(iter(self._queue))
                wait_ns = first.timings.queued_ns + options.delay_ns - time.perf_counter_ns()
                self._delay = loop.call_later(max(0.0, wait_ns / 1e9), self._delay_is_over)
                self._state = _DELAYED
            return
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        self._state = _SCHEDULED
        loop.call_soon(self._turn)

    def _delay_is_over(self) -> None:
        self._delay = None
        self._state = _SCHEDULED
        self._turn()

    def _run_at_once(self, entry: QueueEntry) -> None:
        """Run a request that is probably alone; requests that arrive in this turn of the loop form the next batch."""
        cost_ns = self.cost.known_ns(entry.request.rows)
        if cost_ns is None or cost_ns > self.options.inline_ns:
            self._alone = False
            self._queue.append(entry)
            self._schedule()
            return
        self._state = _SCHEDULED
        batch = [entry]
        self._answer(batch, self._runner.run(batch))
        # Scheduled after the response, so the client does not wait for this work.
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Run the next batch; requests submitted meanwhile are left for the next turn."""
        if self._queue.timed:
            for entry in self._queue.late(time.perf_counter_ns()):
                self._expire(entry)
        if self._queue:
            queued_bytes = self._queue.nbytes
            batch, rows = self._queue.take(self.options.max_rows if self.together else 1)
            large = queued_bytes - self._queue.nbytes >= _LARGE_BYTES
            if large or self.cost.expected_ns(rows) > self.options.inline_ns:
                self._run_on_thread(batch)
                return
            self._run_inline(batch)
        else:
            self._answer_deferred()
        self._state = _IDLE
        if self._queue:
            self._schedule()
        if self._closed:
            self._end_thread()

    def _run_inline(self, batch: list[QueueEntry]) -> None:
        """Run a batch on the event loop."""
        delayed = self.options.delay_ns > 0
        self._alone = not self._alone and len(batch) == 1 and not self._queue and not delayed
        outcome = self._runner.run(batch, None, None if self._deferred is None else self._answer_deferred)
        self._answer_deferred()
        if self._runner.instance.gathers and self._queue and not delayed:
            self._deferred = batch, outcome
        else:
            self._answer(batch, outcome)

    def _run_on_thread(self, batch: list[QueueEntry]) -> None:
        """Run a batch on the model's thread."""
        self._alone = False
        self._state = _RUNNING
        run = self._thread_run = ThreadRun(batch)
        self._answer_deferred()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{self.model.name}")
        loop = asyncio.get_running_loop()
        try:
            future = self._thread.submit(self._runner.run, batch, run.options)
        except RuntimeError as error:  # a thread cannot be started
            self._thread, self._thread_run, self._state = None, None, _IDLE
            self._refuse(batch, error)
            return
        future.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._run_ended, ended))

    def _refuse(self, batch: list[QueueEntry], error: RuntimeError) -> None:
        """Refuse a batch because a thread cannot be started."""
        refusal = OverloadedError(f"model {self.model.name!r} cannot start a thread: {error}")
        self._answer(batch, BatchOutcome([refusal] * len(batch), []))
        self._schedule()

    def _run_ended(self, ended: "Future[BatchOutcome]") -> None:
        run, self._thread_run = self._thread_run, None
        self._state = _IDLE
        if self._queue.nbytes >= _LARGE_BYTES and not self.options.delay_ns:
            self._turn()  # the model does not wait while long responses are written
        if run is not None:
            self._answer(run.batch, ended.result())
        self._schedule()
        self._end_thread()

    def _answer_deferred(self) -> None:
        """Send the deferred responses of the previous batch."""
        if self._deferred is not None:
            deferred, self._deferred = self._deferred, None
            self._answer(*deferred)

    def _answer(self, batch: list[QueueEntry], outcome: BatchOutcome) -> None:
        """Complete the requests of a batch, and count its runs after the clients got their responses."""
        for index, each in enumerate(outcome.outcomes):
            entry = batch[index]
            if entry.timer is not None:
                entry.timer.cancel()
                entry.timer = None
            if entry.cancelled:
                continue
            try:
                if isinstance(each, AppError):
                    entry.completion.failed(each)
                else:
                    entry.completion.completed(each)
            except Exception:  # the other requests of the batch still get their responses
                log.exception("cannot deliver a response of model %s", self.model.name)
        if outcome.mismatched:
            self.statistics.mismatched_runs += 1
        for rows, run_ns, timings in outcome.runs:
            self.cost.learn(rows, run_ns)
            self.statistics.executed(rows, timings.input_ns, timings.infer_ns, timings.output_ns)

    def _expire(self, entry: QueueEntry) -> None:
        """Fail an expired request, if it is still queued."""
        if self._queue.discard(entry):
            _end(entry)
            waited_us = (time.perf_counter_ns() - entry.timings.queued_ns) // 1000
            error = DeadlineExceededError(f"the request waited {waited_us} µs, longer than its timeout")
            entry.completion.failed(error)


def _end(entry: QueueEntry) -> None:
    """Detach an entry, so that its completion is not called any more."""
    entry.cancelled = True
    if entry.timer is not None:
        entry.timer.cancel()
        entry.timer = None
