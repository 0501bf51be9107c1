"""Body of a response: bytes, or a JSON header and long tensors that are written without a copy."""

from typing import final

import numpy as np

from app.runtime.tensors import Array

LONG_BYTES = 128 * 1024
"""A tensor of at least this size is not copied into the body."""
_MOST_HELD = 8
"""Maximum ratio of the batch output that a response keeps in memory to its own tensor."""


@final
class LongContent:
    """A body with views of the outputs of the run; the views keep the outputs in memory.

    Args:
        json_header: Bytes before the tensors.
        tensors: Contiguous views of bytes.
    """

    __slots__ = ("_length", "json_header", "tensors")

    def __init__(self, json_header: bytes, tensors: tuple[memoryview, ...]) -> None:
        self.json_header = json_header
        self.tensors = tensors
        self._length = len(json_header) + sum(map(len, tensors))

    def __len__(self) -> int:
        return self._length

    def reads(self, buffer: bytearray) -> bool:
        """Whether a tensor may share memory with a buffer; an output that returns an input does."""
        return any(np.may_share_memory(np.frombuffer(tensor, np.uint8), buffer) for tensor in self.tensors)

    def __bytes__(self) -> bytes:
        return b"".join((self.json_header, *self.tensors))


Content = bytes | LongContent


def long_view(array: Array, batch_bytes: int) -> memoryview | None:
    """The bytes of a long tensor without a copy; None if it is short, not contiguous, or a small part of a batch.

    Args:
        array: Rows of an output.
        batch_bytes: Size of the output of the whole batch, which the view keeps in memory.
    """
    if array.nbytes < LONG_BYTES or batch_bytes > _MOST_HELD * array.nbytes or not array.flags.c_contiguous:
        return None
    return array.reshape(-1).view(np.uint8).data
