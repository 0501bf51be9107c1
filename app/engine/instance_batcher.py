"""Dynamic batching for a model of several instances: one queue, and a thread for each instance.

See docs/decisions/0092-instances-behind-one-queue.md.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from app.engine.batch_runner import BatchOutcome, BatchRunner
from app.engine.batcher import Batcher, State
from app.engine.batching_options import BatchingOptions
from app.engine.queue import QueueEntry
from app.engine.thread_run import ThreadRun
from app.engine.warm_up import warm_up
from app.runtime.instance import ModelInstance
from app.runtime.model import OnnxModel

_IDLE, _, _, _RUNNING = State


class _Lane:
    """One instance with its thread and its current run."""

    def __init__(self, runner: BatchRunner, instance: ModelInstance) -> None:
        self.runner = runner
        self.instance = instance
        self.device = instance.device
        self.thread: ThreadPoolExecutor | None = None
        self.run: ThreadRun | None = None
        self.runs = 0


class InstanceBatcher(Batcher):
    """Batcher for a model with several instances, on one or more devices.

    A free instance takes the next batch from the queue. If several are free, an instance on the device with the fewest
    runs takes it. Every run executes on a thread, so the event loop can receive requests and send responses during the
    run. The state is RUNNING only while all instances are busy. In any other state a request does not wait for a run
    and is not refused.

    Args:
        model: The model with its instances.
        options: See ``Batcher``; ``inline_ns`` has no effect.
    """

    def __init__(self, model: OnnxModel, options: BatchingOptions) -> None:
        super().__init__(model, replace(options, inline_ns=-1))
        self._lanes = [_Lane(BatchRunner(model, options.max_rows, instance), instance) for instance in model.instances]

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or runs."""
        return not self._queue and not self._runs()

    @property
    def running_s(self) -> float:
        """Seconds since the start of the oldest run; 0 without one."""
        return max((run.running_s for run in self._runs()), default=0.0)

    @property
    def runs_by_instance(self) -> list[int]:
        """Number of runs by instance."""
        return [lane.runs for lane in self._lanes]

    def warm_up(self) -> None:
        """Warm up each instance; see ``Batcher``."""
        for lane in self._lanes:
            warm_up(self.model, lane.instance, self.options.max_rows, self.cost)

    def _wait_ns(self) -> float:
        return super()._wait_ns() / len(self._lanes)

    def _runs(self) -> Sequence[ThreadRun]:
        return [lane.run for lane in self._lanes if lane.run is not None]

    def _end_thread(self) -> None:
        if self._closed and self.idle:
            for lane in self._lanes:
                if lane.thread is not None:
                    lane.thread.shutdown(wait=False)

    def _run_on_thread(self, batch: list[QueueEntry]) -> None:
        """Run a batch on a free instance; there is one in every state except RUNNING."""
        free = [lane for lane in self._lanes if lane.run is None]
        busy = Counter(lane.device for lane in self._lanes if lane.run is not None)
        lane = min(free, key=lambda each: (busy[each.device], each.runs))
        run = lane.run = ThreadRun(batch)
        self._state = _IDLE if len(free) > 1 else _RUNNING
        self._thread_run = None if len(free) > 1 else run
        loop = asyncio.get_running_loop()
        try:
            if lane.thread is None:
                lane.thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{self.model.name}-{lane.device}")
            future = lane.thread.submit(lane.runner.run, batch, run.options)
        except RuntimeError as error:  # a thread cannot be started
            lane.thread = lane.run = self._thread_run = None
            self._state = _IDLE
            self._refuse(batch, error)
            return
        lane.runs += 1
        future.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._lane_ended, lane, ended))
        self._schedule()

    def _lane_ended(self, lane: _Lane, ended: "Future[BatchOutcome]") -> None:
        run, lane.run, self._thread_run = lane.run, None, None
        if self._state is _RUNNING:
            self._state = _IDLE
        if self._state is _IDLE and self._queue and not self.options.delay_ns:
            self._turn()  # the device runs the next batch while the responses are written
        if run is not None:
            self._answer(run.batch, ended.result())
        self._schedule()
        self._end_thread()
