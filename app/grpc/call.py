"""Interface between methods and transports: methods answer calls without knowing the transport."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from app.engine.codec import Body, HeaderList, Headers
from app.errors import AppError

Outcome = tuple[AppError | None, HeaderList, bytes]
"""The error or None, headers for the trailing metadata, and the message of the response."""

Answered = Callable[[Outcome], None]
"""Takes the outcome of a call, once."""

TimeRemaining = Callable[[], float | None]
"""Seconds until the deadline of a call, negative after it; None where it has none."""


class Pending(Protocol):
    """A call of a ``Direct`` method, which is answered by a callback."""

    @property
    def answered(self) -> bool:
        """Whether it is answered, or withdrawn."""

    def receive(self, message: Body | None) -> None:
        """Take the message, once; None where the call ended without one."""

    def reserve(self, nbytes: int) -> None:
        """Count the bytes that have been received against the byte budget.

        Raises:
            OverloadedError: they would exceed it.
        """

    def fail(self, error: AppError) -> None:
        """Answer with an error."""

    def withdraw(self) -> None:
        """End it without an answer: the client has left, or the deadline has passed."""


@dataclass(frozen=True)
class Unary:
    """A method with one message each way, answered by a coroutine.

    Attributes:
        answer: takes the message (None where the call ended without one) and the headers.
    """

    answer: Callable[[bytes | None, Headers], Awaitable[Outcome]]


@dataclass(frozen=True)
class Streaming:
    """A method with any number of messages each way.

    Attributes:
        answer: takes the messages, gives those of the response; raises ``AppError`` to end with a status.
    """

    answer: Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]


class Direct(ABC):
    """A method with one message each way, answered by a callback: without a task for each call."""

    @abstractmethod
    def begin(self, headers: Headers, time_remaining: TimeRemaining, answered: Answered) -> Pending:
        """Begin a call; one that is refused by its headers is answered before its message is received."""


class Refused(Direct):
    """A method that is not served: its calls are refused before their messages are received.

    Args:
        error: that they get.
    """

    def __init__(self, error: AppError) -> None:
        self._error = error

    def begin(self, headers: Headers, time_remaining: TimeRemaining, answered: Answered) -> Pending:  # noqa: ARG002
        """Refuse a call."""
        answered((self._error, [], b""))
        return _Ended()


class _Ended:
    """A call that is answered; see ``Pending``."""

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
