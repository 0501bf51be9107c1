"""Operations of the clients without input or output: generators that yield calls to send and pauses.

``Client`` and ``AsyncClient`` run the same generators.
See docs/decisions/0077-client-without-io.md.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from panther_client.calls import Call, Calls, InferOptions, Reply
from panther_client.errors import ClientError, DeadlineExceededError, InvalidRequestError
from panther_client.retries import Retries
from panther_client.wire import InferResult, PredictResult


@dataclass(frozen=True)
class Send:
    """Send a call; its reply is sent back into the generator.

    Attributes:
        timeout_s: Time limit of the call.
    """

    call: Call
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


Result = TypeVar("Result")
Steps = Generator[Send | Pause, Reply | None, Result]


class Operations:
    """The operations of a client.

    Args:
        calls: Calls of the protocol.
        retries: Retry policy.
        timeout_s: Time limit of one operation, including retries.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, calls: Calls, retries: Retries, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not timeout_s > 0:
            raise InvalidRequestError(f"timeout_s ({timeout_s}) must be above 0")
        self._calls = calls
        self._retries = retries
        self._timeout_s = timeout_s
        self._clock = clock
        self._metadata: dict[tuple[str, str | None], Any] = {}

    def _send(self, call: Call, end: float) -> Steps[Any]:
        """Send a call, and retry it where that makes sense, until ``end``."""
        attempt = 0
        while True:
            left_s = end - self._clock()
            if left_s <= 0:
                raise DeadlineExceededError(f"the request got no response within timeout_s ({self._timeout_s:g})")
            reply = yield Send(call, left_s)
            if reply is None or reply.error is None:
                return call.read(reply or Reply(None))
            pause_s = None
            if call.repeatable or not reply.maybe_done:
                pause_s = self._retries.pause_s(attempt, reply.status, reply.headers.get("retry-after"))
            if isinstance(reply.error, DeadlineExceededError) or pause_s is None or self._clock() + pause_s >= end:
                raise reply.error
            yield Pause(pause_s)
            attempt += 1

    def _end(self) -> float:
        return self._clock() + self._timeout_s

    def metadata(self, model: str, version: str | int | None) -> Steps[Any]:
        """See ``Client.metadata``."""
        return self._send(self._calls.metadata(model, _text(version)), self._end())

    def infer(self, model: str, inputs: Any, version: str | int | None, options: InferOptions) -> Steps[InferResult]:
        """See ``Client.infer``."""
        if options.timeout_us is None:
            options = replace(options, timeout_us=min(round(1e6 * self._timeout_s), 2**63 - 1))

        def make(metadata: Any) -> Call:
            return self._calls.infer(metadata, model, _text(version), inputs, options)

        return self._by_metadata(model, version, make)

    def predict(
        self, inputs: Any, model: str | None, version: str | int | None, top_k: int | None
    ) -> Steps[PredictResult]:
        """See ``Client.predict``."""

        def make(metadata: Any) -> Call:
            return self._calls.predict(metadata, model, _text(version), inputs, top_k)

        if not self._calls.needs_metadata():
            return self._send(make(None), self._end())
        if model is None:
            raise InvalidRequestError("over gRPC, predict requires the name of a model")
        return self._by_metadata(model, version, make)

    def _by_metadata(self, model: str, version: str | int | None, make: Callable[[Any], Call]) -> Steps[Any]:
        """Send a call that requires the metadata of its model, which is cached."""
        end, name = self._end(), _text(version)
        key = (model, name)
        known = self._metadata.get(key)
        if known is not None:
            try:
                return (yield from self._send(make(known), end))
            except InvalidRequestError:
                # The model may have been replaced by one with different tensors.
                metadata = yield from self._send(self._calls.metadata(model, name), end)
                if metadata == known:
                    raise
        else:
            metadata = yield from self._send(self._calls.metadata(model, name), end)
        self._metadata[key] = metadata
        return (yield from self._send(make(metadata), end))

    def is_ready(self) -> Steps[bool]:
        """See ``Client.is_ready``."""
        try:
            return bool((yield from self._send(self._calls.ready(), self._end())))
        except ClientError:
            return False

    def models(self) -> Steps[list[dict[str, Any]]]:
        """See ``Client.models``."""
        return self._send(self._calls.models(), self._end())

    def stats(self, model: str | None) -> Steps[dict[str, Any]]:
        """See ``Client.stats``."""
        return self._send(self._calls.stats(model), self._end())

    def control(self, action: str, model: str) -> Steps[None]:
        """See ``Client.load`` and ``Client.unload``."""
        self._metadata.clear()
        return self._send(self._calls.control(action, model), self._end())


def _text(version: str | int | None) -> str | None:
    return None if version is None else str(version)
