"""An inference request in the engine: inputs, timings and completion."""

import asyncio
from collections.abc import Hashable
from typing import NamedTuple, Protocol

from app.engine.results import InferenceResult
from app.errors import AppError
from app.runtime.tensors import Array


class InferenceRequest(NamedTuple):
    """A decoded request. It is a tuple for speed, because each HTTP request makes one.

    Attributes:
        feeds: Input name to array.
        output_names: Outputs to compute, in order.
        rows: Rows of the batch dimension; 1 for a model that is not batched.
        key: Only requests with the same key may share a run.
        priority: 1 is the highest; 0 means no priority and comes last.
        timeout_us: Maximum time from arrival to the start of the run; 0 for no limit.
    """

    feeds: dict[str, Array]
    output_names: tuple[str, ...]
    rows: int
    key: Hashable
    priority: int = 0
    timeout_us: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the feeds."""
        nbytes = 0
        for array in self.feeds.values():  # one or two arrays, for which sum() is slower
            nbytes += array.nbytes
        return nbytes


class Timings:
    """The times of one inference request, written at each stage.

    Moments are values of ``time.perf_counter_ns``; 0 if the stage was not reached.

    Attributes:
        began_ns: Moment of arrival.
        decoded_ns: Moment after decoding.
        queued_ns: Moment of submission.
        queue_ns: Time in the queue.
        input_ns: Time to concatenate the batch, and to copy it to a device.
        infer_ns: Time of the run, without copies.
        output_ns: Time to copy the outputs from a device.
    """

    __slots__ = ("began_ns", "decoded_ns", "infer_ns", "input_ns", "output_ns", "queue_ns", "queued_ns")

    def __init__(self, began_ns: int = 0) -> None:
        self.began_ns = began_ns
        self.decoded_ns = self.queued_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0

    @property
    def compute_ns(self) -> int:
        """Time of the whole run, including copies; 0 if it did not run."""
        return self.input_ns + self.infer_ns + self.output_ns if self.infer_ns else 0


class Completion(Protocol):
    """Receives the outcome of one inference request: exactly one call, on the event loop; none after a cancellation.

    The engine refers to the completion while the request is queued or running. A completion never refers to the request
    or to the engine's entry for it (instead, it cancels the request of a disconnected client, ``Batcher.cancel``),
    so no reference cycle keeps tensors alive.
    """

    def completed(self, result: InferenceResult) -> None:
        """Receive the result."""
        ...

    def failed(self, error: AppError) -> None:
        """Receive the error."""
        ...


class FutureCompletion:
    """A completion that resolves a future.

    Args:
        future: Receives the result or the error, unless it was cancelled.
        keep: Object to keep alive as long as the engine refers to the completion.
    """

    __slots__ = ("_future", "_keep")

    def __init__(self, future: "asyncio.Future[InferenceResult]", keep: object) -> None:
        self._future = future
        self._keep = keep

    def completed(self, result: InferenceResult) -> None:
        """Resolve the future with the result."""
        if not self._future.done():
            self._future.set_result(result)

    def failed(self, error: AppError) -> None:
        """Resolve the future with the error."""
        if not self._future.done():
            self._future.set_exception(error)
