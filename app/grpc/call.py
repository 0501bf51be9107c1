"""Interface between methods and transports: methods answer calls without knowing the transport."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from app.engine.codec import Body, HeaderList, Headers
from app.errors import AppError

Outcome = tuple[AppError | None, HeaderList, bytes]
"""The error or None, headers for the trailing metadata, and the response message."""

Answered = Callable[[Outcome], None]
"""Takes the outcome of a call, once."""

TimeRemaining = Callable[[], float | None]
"""Seconds until the deadline of a call, negative after it; None without one."""


class Pending(Protocol):
    """A call of a ``Direct`` method, which is answered by a callback."""

    @property
    def answered(self) -> bool:
        """Whether the call is answered or withdrawn."""

    def receive(self, message: Body | None) -> None:
        """Take the message, once; None if the call ended without one."""

    def reserve(self, nbytes: int) -> None:
        """Count the bytes that have been received against the byte budget.

        Raises:
            OverloadedError: The bytes would exceed the budget.
        """

    def fail(self, error: AppError) -> None:
        """Answer with an error."""

    def withdraw(self) -> None:
        """End the call without a response: the client disconnected or the deadline passed."""


@dataclass(frozen=True)
class Unary:
    """A method with one message each way, answered by a coroutine.

    Attributes:
        answer: Takes the message (None if the call ended without one) and the headers; returns the outcome.
    """

    answer: Callable[[bytes | None, Headers], Awaitable[Outcome]]


@dataclass(frozen=True)
class Streaming:
    """A method with any number of messages each way.

    Attributes:
        answer: Takes the messages, yields those of the response; raises ``AppError`` to end with a status.
    """

    answer: Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


class Direct(ABC):
    """A method with one message each way, answered by a callback: without a task for each call."""

    @abstractmethod
    def begin(self, headers: Headers, time_remaining: TimeRemaining, answered: Answered) -> Pending:
        """Begin a call. A call that is refused by its headers gets its response before the message is received."""


class Refused(Direct):
    """A method that is not served: it refuses calls before their messages are received.

    Args:
        error: Error of the response.
    """

    def __init__(self, error: AppError) -> None:
        self._error = error

    def begin(self, headers: Headers, time_remaining: TimeRemaining, answered: Answered) -> Pending:  # noqa: ARG002
        """Refuse a call."""
        answered((self._error, [], b""))
        return _Ended()


class _Ended:
    """An answered call; see ``Pending``."""

    answered = True

    def receive(self, message: Body | None) -> None:
        pass

    def reserve(self, nbytes: int) -> None:
        pass

    def fail(self, error: AppError) -> None:
        pass

    def withdraw(self) -> None:
        pass


Method = Unary | Streaming | Direct
"""A method of a service."""
