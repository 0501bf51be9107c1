"""The method ModelInfer: one inference request from message to response."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from app.engine.codec import HeaderList, Headers
from app.errors import AppError, DeadlineExceededError, InvalidRequestError
from app.grpc.decoding import GrpcJob, Reader, is_heavy
from app.grpc.gathering import Gathering
from app.grpc.messages import ModelInferRequest, parse
from app.service.admission import Reservation
from app.service.inference import InferenceService, Target
from app.service.inference_call import CallContext, InferenceCall
from app.telemetry.statistics import GRPC

Receive = Callable[[], Awaitable[object]]

_DEADLINE_SLACK_S = 0.1
"""A client ends its call at its own deadline, which precedes the server's by the network delay of the call."""

Outcome = tuple[AppError | None, HeaderList, bytes]
"""The error or None, the headers, and the response message."""


class GrpcCall(InferenceCall):
    """One inference request over gRPC.

    Args:
        context: Context shared by all calls of the service.
        headers: Headers of the request.
        reservation: Reserved bytes of the message; kept until no run reads it any more.

    Attributes:
        answered: Future of the outcome.
        reservation: Reserved bytes of the message.
    """

    __slots__ = ("answered", "reservation")

    def __init__(self, context: CallContext, headers: Headers, reservation: Reservation) -> None:
        self.answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.reservation = reservation
        super().__init__(context, headers, partial(_succeed, self.answered), GRPC)

    def _refuse(self, error: AppError, headers: HeaderList) -> None:
        if not self.answered.done():
            self.answered.set_result((error, headers, b""))


def _succeed(answered: "asyncio.Future[Outcome]", _: int, headers: HeaderList, message: bytes) -> None:
    if not answered.done():
        answered.set_result((None, headers, message))


class Inference:
    """Serves inference requests over gRPC.

    Args:
        service: The inference service.

    Attributes:
        calls: The calls in flight.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self.calls: set[GrpcCall] = set()
        self._reader = Reader()
        self._gathering = Gathering(service.admission)

    async def infer(self, receive: Receive, headers: Headers, time_remaining: Any) -> Outcome:
        """Serve a request; cancelling the task cancels the request.

        Args:
            receive: Returns the serialized ``ModelInferRequest``; another type if the call ended without a message.
            headers: Headers of the call.
            time_remaining: Returns the seconds until the call's deadline, None without one.
        """
        service = self._service
        call = GrpcCall(service.context, headers, Reservation(service.admission))
        left_s = time_remaining()
        # A deadline that has passed is still a deadline.
        deadline_us = 0 if left_s is None else max(1, int(1e6 * left_s))
        self.calls.add(call)
        try:
            if self._admits(call, headers):
                message = await receive()
                self._gathering.add(partial(self._start, call, message, deadline_us))
                del message
            return await call.answered
        except asyncio.CancelledError:
            if not call.answered.done() or call.answered.cancelled():
                self._withdraw(call, time_remaining())
            raise
        finally:
            self.calls.discard(call)
            if call.answered.done() and not call.answered.cancelled():
                call.reservation.release()

    def _withdraw(self, call: GrpcCall, left_s: float | None) -> None:
        """End a call after its client disconnected or its deadline passed."""
        if left_s is not None and left_s < _DEADLINE_SLACK_S:
            call.fail(DeadlineExceededError("the call's deadline has passed"))
        else:
            call.cancel()

    def _admits(self, call: GrpcCall, headers: Headers) -> bool:
        """Check the key of a call; if it is wrong, respond without receiving the message."""
        try:
            if self._service.access is not None:
                self._service.access.check_predict(headers)
        except AppError as error:
            call.failed(error)
            return False
        return True

    def _start(self, call: GrpcCall, message: object, deadline_us: int) -> None:
        if call.answered.done():
            return
        service = self._service
        call.timings.began_ns = time.perf_counter_ns()  # arrival of the message, not of the call
        try:
            if not isinstance(message, bytes):
                raise InvalidRequestError("the call ended without a message; expected one ModelInferRequest")
            call.reservation.reserve(len(message))
            request = parse(ModelInferRequest, message)
        except Exception as error:  # noqa: BLE001 - the client gets a response to every error
            call.end_with(error)
            return
        target = Target(request.model_name or None, request.model_version or None, "oip")
        nbytes = len(message)
        service.start_read(
            call,
            target,
            lambda model: None if is_heavy(nbytes, model) else self._reader.read(request, model, deadline_us),
            partial(GrpcJob, deadline_us=deadline_us),
            message,
        )
