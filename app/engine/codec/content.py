"""The body of a response: bytes, or a long one in pieces that are written as they lie."""

from typing import final

import numpy as np

from app.runtime.tensors import Array

LONG_BYTES = 128 * 1024
"""A tensor from here on is not copied into the body."""
_MOST_HELD = 8
"""How many times its own bytes a response may keep of its batch, until its client has read it."""


@final
class LongContent:
    """A body whose tensors are views of the outputs of the run, which they keep.

    Args:
        head: what comes first.
        tensors: of bytes, contiguous.
    """

    __slots__ = ("_length", "head", "tensors")

    def __init__(self, head: bytes, tensors: tuple[memoryview, ...]) -> None:
        self.head = head
        self.tensors = tensors
        self._length = len(head) + sum(map(len, tensors))

    def __len__(self) -> int:
        return self._length

    def reads(self, buffer: bytearray) -> bool:
        """Whether a tensor may lie in a buffer, as an output that is an input would."""
        return any(np.may_share_memory(np.frombuffer(tensor, np.uint8), buffer) for tensor in self.tensors)

    def __bytes__(self) -> bytes:
        return b"".join((self.head, *self.tensors))


Content = bytes | LongContent


def long_view(array: Array, batch_bytes: int) -> memoryview | None:
    """The bytes of a long tensor without a copy; None if it is short, not contiguous, or a small part of a batch.

    Args:
        array: rows of an output.
        batch_bytes: of the output of the whole batch, which the view keeps.
    """
    if array.nbytes < LONG_BYTES or batch_bytes > _MOST_HELD * array.nbytes or not array.flags.c_contiguous:
        return None
    return array.reshape(-1).view(np.uint8).data
