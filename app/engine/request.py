"""An inference request in the engine: inputs, timings and completion."""

import asyncio
from collections.abc import Hashable
from typing import NamedTuple, Protocol

from app.engine.results import InferenceResult
from app.errors import AppError
from app.runtime.tensors import Array


class InferenceRequest(NamedTuple):
    """A decoded request, as a model runs it; a tuple, since one is made for each request.

    Attributes:
        feeds: input name to array.
        output_names: outputs to compute, in order.
        rows: rows of the batch dimension; 1 for a model that is not batched.
        key: only requests of the same key may share a run.
        priority: 1 is the highest; 0 is no priority and comes last.
        timeout_us: how long the request may be on its way before its run begins; 0 for no limit.
    """

    feeds: dict[str, Array]
    output_names: tuple[str, ...]
    rows: int
    key: Hashable
    priority: int = 0
    timeout_us: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the feeds."""
        nbytes = 0
        for array in self.feeds.values():  # of one or two, which sum() would take longer for
            nbytes += array.nbytes
        return nbytes


class Timings:
    """The times of one inference request, written as it passes each stage.

    Moments are of ``time.perf_counter_ns``; 0 where the stage was not reached.

    Attributes:
        began_ns: moment of its arrival.
        decoded_ns: moment when it was decoded.
        queued_ns: moment when it was submitted.
        queue_ns: time in the queue.
        input_ns: time to concatenate the batch, and to copy it to a device.
        infer_ns: time of the run, without copies.
        output_ns: time to copy the outputs from a device.
    """

    __slots__ = ("began_ns", "decoded_ns", "infer_ns", "input_ns", "output_ns", "queue_ns", "queued_ns")

    def __init__(self, began_ns: int = 0) -> None:
        self.began_ns = began_ns
        self.decoded_ns = self.queued_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0

    @property
    def compute_ns(self) -> int:
        """Time of the whole run, with its copies; 0 where it did not run."""
        return self.input_ns + self.infer_ns + self.output_ns if self.infer_ns else 0


class Completion(Protocol):
    """Receives the end of one inference request: exactly one call, in the event loop; none after a cancellation.

    The engine refers to the completion while the request is queued or runs. A completion never refers to the request
    or to the engine's entry of it (a client that leaves is cancelled by its completion, see ``Batcher.cancel``), so
    that no reference cycle keeps tensors alive.
    """

    def completed(self, result: InferenceResult) -> None:
        """Take the result."""
        ...

    def failed(self, error: AppError) -> None:
        """Take the error."""
        ...


class FutureCompletion:
    """A completion that ends a future.

    Args:
        future: takes the result or the error, unless it is cancelled before.
        keep: kept for as long as the engine refers to the completion.
    """

    __slots__ = ("_future", "_keep")

    def __init__(self, future: "asyncio.Future[InferenceResult]", keep: object) -> None:
        self._future = future
        self._keep = keep

    def completed(self, result: InferenceResult) -> None:
        """Take the result."""
        if not self._future.done():
            self._future.set_result(result)

    def failed(self, error: AppError) -> None:
        """Take the error."""
        if not self._future.done():
            self._future.set_exception(error)
