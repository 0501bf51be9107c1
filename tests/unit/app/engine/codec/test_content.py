"""Bodies of responses whose tensors are not copied."""

import numpy as np
import pytest

from app.engine.codec.content import LONG_BYTES, LongContent, long_view

FLOATS = LONG_BYTES // 4


def test_a_long_body_is_its_pieces_in_order():
    array = np.arange(FLOATS, dtype=np.float32)
    content = LongContent(b"head", (long_view(array, array.nbytes), memoryview(b"tail")))
    assert len(content) == 4 + array.nbytes + 4
    assert bytes(content) == b"head" + array.tobytes() + b"tail"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.bool_, np.uint16])
def test_every_type_is_seen_as_bytes(dtype):
    array = (np.arange(4 * FLOATS) % 200).reshape(2, -1).astype(dtype)
    assert bytes(long_view(array, array.nbytes)) == array.tobytes()


def test_what_is_short_scattered_or_a_small_part_of_its_batch_has_no_view():
    array = np.zeros((8, 2 * FLOATS), np.float32)
    assert long_view(array[0, : FLOATS - 1], array.nbytes) is None
    assert long_view(array[:, ::2], array.nbytes) is None
    assert long_view(array[0], 8 * array[0].nbytes) is not None
    assert long_view(array[0], 8 * array[0].nbytes + 1) is None


def test_an_output_that_lies_in_the_body_of_its_request_is_noticed():
    body = bytearray(LONG_BYTES + 3)
    inside = np.frombuffer(body, np.float32, FLOATS, 0)
    other = np.zeros(FLOATS, np.float32)
    assert LongContent(b"", (long_view(inside, inside.nbytes),)).reads(body)
    assert not LongContent(b"", (long_view(other, other.nbytes),)).reads(body)
