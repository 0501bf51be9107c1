import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.batching import BATCHED
from helpers.engine import Recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batch_runner import BatchRunner
from app.engine.queue import QueueEntry
from app.engine.request import InferenceRequest, Timings
from app.engine.results import InferenceResult
from app.errors import InferenceFailedError, OverloadedError
from app.runtime.runner import RunResult


class Model:
    """Adds one; raises what is given for the row that holds 666."""

    optional_inputs = ()
    name = "m"
    batched, batching = True, BATCHED
    gathers = False
    labelled = None
    output_by_name = {}  # noqa: RUF012 - never changed

    def __init__(self, error=None):
        self.error = error or InferenceFailedError("no")
        self.runs = []

    def run(self, feeds, output_names, options=None, meanwhile=None):
        x = feeds["x"]
        self.runs.append(len(x))
        if (x == 666).any():
            raise self.error
        return RunResult([x + 1])


def entry(x):
    made = QueueEntry(InferenceRequest({"x": x}, ("y",), len(x), "k"), Recorded([]), Timings())
    made.timings.queued_ns = time.perf_counter_ns()
    return made


def poisoned(rows=1):
    return np.full((rows, 2), 666, np.float32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=8), st.integers(1, 8))
def test_each_request_gets_its_rows_and_the_poisoned_ones_fail_alone(drawn, max_rows):
    model = Model()
    xs = [poisoned(rows) if bad else np.full((rows, 2), number, np.float32) for number, (rows, bad) in enumerate(drawn)]
    batch = [entry(x) for x in xs]
    found = BatchRunner(model, max_rows).run(batch)
    assert len(found.outcomes) == len(batch)
    for x, (_, bad), outcome in zip(xs, drawn, found.outcomes, strict=True):
        if bad:
            assert isinstance(outcome, InferenceFailedError)
        else:
            np.testing.assert_array_equal(outcome.array(0), x + 1)
    good = sum(rows for rows, bad in drawn if not bad)
    assert sum(rows for rows, _, _ in found.runs) == good
    assert len(found.runs) == (1 if good and not any(bad for _, bad in drawn) else sum(not bad for _, bad in drawn))
    assert all(each.timings.queue_ns > 0 for each in batch)
    assert all(rows <= max_rows for rows in model.runs)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (InferenceFailedError("model 'm' failed on this input: no"), InferenceFailedError, "failed on this input: no"),
        (MemoryError(), OverloadedError, "model 'm' has not enough memory for this request"),
        (ZeroDivisionError(), InferenceFailedError, "model 'm' failed"),
    ],
)
def test_a_failure_is_an_outcome_that_refers_to_no_frame(error, kind, message):
    (outcome,) = BatchRunner(Model(error), 8).run([entry(poisoned())]).outcomes
    assert type(outcome) is kind
    assert message in str(outcome)
    assert outcome.__traceback__ is None
    assert outcome.__cause__ is None
    assert outcome.__context__ is None


@pytest.mark.parametrize("error", [InferenceFailedError("no"), MemoryError()])
def test_a_run_that_was_stopped_is_not_tried_one_by_one(error):
    model = Model(error)
    batch = [entry(poisoned()), entry(np.zeros((1, 2), np.float32))]
    outcomes = BatchRunner(model, 8).run(batch, SimpleNamespace(terminate=True)).outcomes
    assert model.runs == [2]
    assert not any(isinstance(outcome, InferenceResult) for outcome in outcomes)


def test_a_defect_is_not_tried_again(caplog):
    model = Model(ZeroDivisionError())
    found = BatchRunner(model, 8).run([entry(poisoned()), entry(np.zeros((1, 2), np.float32))])
    assert model.runs == [2]
    assert [str(outcome) for outcome in found.outcomes] == ["model 'm' failed"] * 2
    assert "a batch of model m failed" in caplog.text


def test_a_large_request_runs_in_pieces_and_their_copies_add_up():
    class Copying(Model):
        def run(self, feeds, output_names, options=None, meanwhile=None):
            return RunResult(super().run(feeds, output_names).arrays, 10, 100)

    model = Copying()
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    large = entry(x)
    (outcome,) = BatchRunner(model, 3).run([large]).outcomes
    np.testing.assert_array_equal(outcome.array(0), x + 1)
    assert model.runs == [3, 3, 1]
    assert large.timings.output_ns == 300
    assert large.timings.input_ns >= 30


def test_outputs_whose_shape_depends_on_all_rows_come_of_one_run():
    class Largest(Model):
        """As many columns as the largest number says."""

        def run(self, feeds, output_names, options=None, meanwhile=None):
            x = feeds["x"]
            self.runs.append(len(x))
            return RunResult([np.zeros((len(x), int(x.max())))])

    model = Largest()
    x = np.array([[1], [2], [3]], np.float32)
    (outcome,) = BatchRunner(model, 2).run([entry(x)]).outcomes
    assert outcome.array(0).shape == (3, 3)
    assert model.runs == [2, 1, 3]


def test_work_meanwhile_is_not_time_of_the_model():
    class Device(Model):
        gathers = True

        def run(self, feeds, output_names, options=None, meanwhile=None):
            meanwhile()
            return RunResult([np.zeros((2, 2))], meanwhile_ns=5_000_000)

    one = entry(np.zeros((2, 2), np.float32))
    found = BatchRunner(Device(), 8).run([one], None, lambda: time.sleep(0.005))
    assert one.timings.infer_ns == found.runs[0][1]
    began = time.perf_counter_ns()
    BatchRunner(Device(), 8).run([one], None, lambda: time.sleep(0.005))
    assert one.timings.infer_ns <= time.perf_counter_ns() - began - 5_000_000
