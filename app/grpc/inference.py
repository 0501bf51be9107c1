"""The method ModelInfer: one inference request from message to response."""

import time
from functools import partial
from typing import Any

from app.engine.codec import Body, HeaderList, Headers
from app.engine.results import InferenceResult
from app.errors import AppError, DeadlineExceededError, InvalidRequestError
from app.grpc.call import Answered, Direct, Outcome, TimeRemaining
from app.grpc.decoding import GrpcJob, Reader, is_heavy
from app.service.admission import Reservation
from app.service.inference import InferenceService, Target
from app.service.inference_call import InferenceCall
from app.telemetry.statistics import GRPC

DEADLINE_SLACK_S = 0.1
"""A client ends its call at its own deadline, which precedes the server's by the network delay of the call."""

_MAX_TARGETS = 256
_MAX_NAMES = 512  # characters; the targets of longer names are not kept


class _Answer:
    """Response of a call, given once. It has no reference to the call, so that no cycle keeps the call's memory.

    Attributes:
        reservation: Reserved bytes of the message.
        kept: Whether a run may still read the message after the response; the reservation then ends with the call.
    """

    __slots__ = ("_answered", "kept", "reservation")

    def __init__(self, answered: Answered, reservation: Reservation) -> None:
        self._answered: Answered | None = answered
        self.reservation = reservation
        self.kept = False

    @property
    def given(self) -> bool:
        """Whether the response was given or dropped."""
        return self._answered is None

    def give(self, outcome: Outcome) -> None:
        """Give the outcome to the transport."""
        answered, self._answered = self._answered, None
        if answered is not None:
            if not self.kept:
                self.reservation.release()
            answered(outcome)

    def succeed(self, _: int, headers: HeaderList, message: Any) -> None:
        """Give a success, see ``Respond``; the message is of ``GrpcForm`` and so always bytes."""
        self.give((None, headers, message))

    def drop(self) -> None:
        """Drop the response."""
        self._answered = None


class GrpcCall(InferenceCall):
    """One inference request over gRPC; see ``app.grpc.call.Pending``.

    Args:
        inference: The method that serves it.
        headers: Headers of the request.
        time_remaining: Returns the seconds until the deadline, see ``TimeRemaining``.
        answered: Takes the outcome.
    """

    __slots__ = ("_answer", "_inference", "_time_remaining")

    def __init__(
        self, inference: "Inference", headers: Headers, time_remaining: TimeRemaining, answered: Answered
    ) -> None:
        service = inference.service
        self._inference = inference
        self._time_remaining = time_remaining
        self._answer = _Answer(answered, Reservation(service.admission))
        super().__init__(service.context, headers, self._answer.succeed, GRPC)

    @property
    def answered(self) -> bool:
        """Whether the call is answered or withdrawn."""
        return self._answer.given

    def reserve(self, nbytes: int) -> None:
        """Count the bytes that have been received so far, see ``Reservation.reserve``."""
        reservation = self._answer.reservation
        reservation.reserve(nbytes - reservation.nbytes)

    def receive(self, message: Body | None) -> None:
        """Decode the message now, or in a later turn of the event loop if this one has decoded for too long."""
        admission = self._inference.service.admission
        if admission.may_start():
            self._start(message)
            admission.started()
        else:
            admission.later(partial(self._start, message))

    def fail(self, error: AppError) -> None:
        """End the request with an error, wherever it is."""
        self._answer.kept = True
        super().fail(error)

    def withdraw(self) -> None:
        """End a call after its client disconnected or its deadline passed."""
        if self._answer.given:
            return
        self._answer.drop()
        left_s = self._time_remaining()
        if left_s is not None and left_s < DEADLINE_SLACK_S:
            self.fail(DeadlineExceededError("the call's deadline has passed"))
        else:
            self.cancel()
        self._inference.calls.discard(self)

    def completed(self, result: InferenceResult) -> None:
        """Answer with the result of the model, see ``InferenceCall``."""
        super().completed(result)
        self._inference.calls.discard(self)

    def _refuse(self, error: AppError, headers: HeaderList) -> None:
        self._inference.calls.discard(self)
        self._answer.give((error, headers, b""))

    def _start(self, message: Body | None) -> None:
        if self._answer.given:
            return
        self.timings.began_ns = time.perf_counter_ns()  # arrival of the message, not of the call
        left_s = self._time_remaining()
        # A deadline that has passed is still a deadline.
        deadline_us = 0 if left_s is None else max(1, int(1e6 * left_s))
        self._inference.start(self, message, deadline_us)


class Inference(Direct):
    """Serves inference requests over gRPC.

    Args:
        service: The inference service.

    Attributes:
        service: The inference service.
        calls: The calls in flight.
    """

    def __init__(self, service: InferenceService) -> None:
        self.service = service
        self.calls: set[GrpcCall] = set()
        self._reader = Reader()
        self._targets: dict[tuple[str, str], Target] = {}

    def begin(self, headers: Headers, time_remaining: TimeRemaining, answered: Answered) -> GrpcCall:
        """Begin a call; if its key is wrong, respond at once."""
        call = GrpcCall(self, headers, time_remaining, answered)
        self.calls.add(call)
        access = self.service.access
        if access is not None:
            try:
                access.check_predict(headers)
            except AppError as error:
                call.failed(error)
        return call

    def start(self, call: GrpcCall, message: Body | None, deadline_us: int) -> None:
        """Decode the message of a call and queue its request.

        Args:
            call: The call, made by ``begin``.
            message: Serialized ``ModelInferRequest``; None if the call ended without a message.
            deadline_us: Time until the client's deadline; 0 without one.
        """
        try:
            if message is None:
                raise InvalidRequestError("the call ended without a message; expected one ModelInferRequest")
            call.reserve(len(message))
            opened = self._reader.open(message)
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
            return
        nbytes = len(message)
        self.service.start_read(
            call,
            self._target(*opened.envelope.target),
            lambda model: None if is_heavy(nbytes, model) else opened.read(model, deadline_us),
            partial(GrpcJob, deadline_us=deadline_us),
            message,
        )

    def _target(self, name: str, version: str) -> Target:
        """The target of a call, made once: a frozen dataclass is slow to make."""
        target = self._targets.get((name, version))
        if target is None:
            target = Target(name or None, version or None, "oip")
            if len(self._targets) < _MAX_TARGETS and len(name) + len(version) <= _MAX_NAMES:
                self._targets[name, version] = target
        return target
