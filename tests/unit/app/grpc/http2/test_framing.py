"""Messages come out as they went in, however their bytes are cut, and what is none is told."""

import numpy as np
import pytest

from app.errors import BodyTooLargeError, InvalidRequestError
from app.grpc.http2.framing import MessageBuffer, framed
from app.grpc.status import StatusError

MESSAGES = [b"", b"a", b"b" * 5, b"c" * 300, b"", b"d" * 70_000]
WHOLE = b"".join(piece for message in MESSAGES for piece in framed(message))


def buffer(limit=100_000):
    return MessageBuffer(limit, "max_body_bytes")


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7, 1000, len(WHOLE)])
def test_messages_come_out_whole(size):
    found, joined = buffer(), []
    for start in range(0, len(WHOLE), size):
        found.add(WHOLE[start : start + size])
        while (item := found.take()) is not None:
            joined.append((item[0], bytes(item[1])))
    assert joined == [(False, message) for message in MESSAGES]
    assert len(found) == 0
    found.check_end()


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_lengths_make_the_same_messages(seed):
    rng, found, joined, start = np.random.default_rng(seed), buffer(), [], 0
    while start < len(WHOLE):
        size = int(rng.choice([1, 3, 1000, 1024, 5000, 40_000]))
        found.add(WHOLE[start : start + size])
        start += size
        assert len(found) + sum(5 + len(message) for _, message in joined) == min(start, len(WHOLE))
        while (item := found.take()) is not None:
            joined.append((item[0], bytes(item[1])))
    assert joined == [(False, message) for message in MESSAGES]


def test_small_pieces_between_long_ones_are_not_kept_apart():
    made = buffer(10**9)
    made.add(b"\0" + (10**8).to_bytes(4))
    for _ in range(100):
        made.add(bytes(2000))
        for _ in range(100):
            made.add(b"x")
    assert made.take() is None
    assert len(made._pieces) <= 201


def test_a_long_message_is_not_copied():
    made = buffer()
    for piece in np.array_split(np.frombuffer(framed(bytes(90_000))[1], np.uint8), 7):
        if not len(made):
            made.add(framed(bytes(90_000))[0])
        made.add(piece.tobytes())
    assert isinstance(made.take()[1], memoryview)


def test_the_flag_says_that_a_message_is_compressed():
    made = buffer()
    made.add(b"\1\0\0\0\2xy")
    assert made.take() == (True, b"xy")


def test_a_flag_without_a_meaning_is_told():
    made = buffer()
    made.add(b"\2\0\0\0\2xy")
    with pytest.raises(StatusError, match="the flag of a message is 2; expected 0 or 1") as found:
        made.take()
    assert found.value.code.name == "INTERNAL"


def test_a_message_over_the_limit_is_refused_by_its_prefix():
    made = buffer(10)
    made.add(b"\0\0\0\0\x0b")
    with pytest.raises(BodyTooLargeError, match=r"the message has 11 bytes, more than max_body_bytes \(10\)"):
        made.take()


@pytest.mark.parametrize(
    ("data", "said"), [(b"\0\0", "after 2 of the 5 bytes"), (b"\0\0\0\0\3x", "after 6 of the 8 bytes")]
)
def test_a_stream_that_ends_within_a_message_is_told(data, said):
    made = buffer()
    made.add(data)
    assert made.take() is None
    with pytest.raises(InvalidRequestError, match=f"the call ended {said} of its message"):
        made.check_end()


def test_many_messages_in_one_piece_take_no_time_each_for_the_rest():
    """Four million bytes of empty messages: copied for each of them, the rest would be four terabytes."""
    made, count = buffer(), 800_000
    made.add(bytes(5 * count))
    found = 0
    while made.take() is not None:
        found += 1
    assert found == count
