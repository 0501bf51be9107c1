import numpy as np
import pytest
from helpers.engine import Recorded
from hypothesis import given
from hypothesis import strategies as st

from app.engine.queue import QueueEntry, RequestQueue
from app.engine.request import InferenceRequest, Timings


def entry(rows=1, key="k", priority=0, timeout_us=0, nbytes=0, began_ns=0):
    request = InferenceRequest({"x": np.zeros((rows, 2), np.float32)}, ("y",), rows, key, priority, timeout_us)
    made = QueueEntry(request, Recorded([]), Timings(began_ns))
    made.nbytes = nbytes
    return made


def test_a_request_larger_than_the_queue_has_room_where_the_queue_is_empty():
    queue = RequestQueue(max_rows=4, max_bytes=16)
    large = entry(100, nbytes=800)
    assert queue.why_full(100, 800) is None
    queue.append(large)
    assert queue.why_full(1) == "101 rows would be queued, more than max_queue_rows (4)"
    assert queue.discard(large)
    assert not queue.discard(large)
    assert (len(queue), queue.rows, queue.nbytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, None),
        ({"max_rows": 5}, None),
        ({"max_rows": 4}, "5 rows would be queued, more than max_queue_rows (4)"),
        ({"max_bytes": 30}, None),
        ({"max_bytes": 29}, "30 bytes would be queued, more than max_queue_bytes (29)"),
    ],
)
def test_rows_and_bytes_are_bounded(limits, reason):
    queue = RequestQueue(**limits)
    queue.append(entry(3, nbytes=20))
    assert queue.why_full(2, 10) == reason


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(1, 10),
)
def test_every_request_is_taken_once_with_its_like_and_in_order(drawn, limit):
    queue = RequestQueue()
    entries = [entry(rows, key, priority, nbytes=8 * rows) for rows, key, priority in drawn]
    for each in entries:
        queue.append(each)
    taken = []
    while queue:
        waiting = list(queue)
        batch, rows = queue.take(limit)
        assert rows == sum(each.request.rows for each in batch)
        assert rows <= limit or len(batch) == 1
        assert len({each.request.key for each in batch}) == 1
        urgency = min(each.request.priority or 99 for each in waiting)
        # The first of the most urgent ones is in the next batch.
        assert next(each for each in waiting if (each.request.priority or 99) == urgency) is batch[0]
        taken += batch
    assert sorted(map(id, taken)) == sorted(map(id, entries))
    assert (queue.rows, queue.nbytes) == (0, 0)
    for key in "ab":
        for priority in range(4):
            mine = [each for each in entries if (each.request.key, each.request.priority) == (key, priority)]
            if len({each.request.rows for each in mine}) == 1:
                assert [each for each in taken if each in mine] == mine


def test_late_entries_are_those_whose_deadline_has_passed():
    queue = RequestQueue()
    assert not queue.timed
    first, second, third = entry(timeout_us=1, began_ns=1000), entry(), entry(timeout_us=5, began_ns=1000)
    for each in (first, second, third):
        queue.append(each)
    assert queue.timed
    assert queue.late(1999) == []
    assert queue.late(2000) == [first]
    queue.discard(first)
    queue.discard(third)
    assert queue.late(10**9) == []
    assert not queue.timed


def test_an_entry_is_found_by_its_completion():
    queue = RequestQueue()
    first, second = entry(), entry()
    queue.append(first)
    queue.append(second)
    assert queue.find(second.completion) is second
    assert queue.find(Recorded([])) is None
