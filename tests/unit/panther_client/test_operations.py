"""The clients' generators, run without a network and without a clock."""

import pytest

from panther_client.calls import Call, Reply
from panther_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
)
from panther_client.operations import Operations, Pause, Send
from panther_client.retries import Retries

BUSY = Reply(503, error=OverloadedError("busy", 503))
LOST = Reply(None, error=ConnectionFailedError("gone"), maybe_done=True)
REFUSED = Reply(400, error=InvalidRequestError("wrong", 400))


class Calls:
    """Calls whose result is the body of the reply."""

    def __init__(self, needs_metadata=False):
        self._needs_metadata = needs_metadata

    def needs_metadata(self):
        return self._needs_metadata

    def metadata(self, model, version):
        return Call("GET", f"metadata {model} {version}", lambda reply: reply.body)

    def infer(self, metadata, model, version, inputs, options):
        return Call("POST", f"infer by {metadata.decode()} {options.timeout_us}", lambda reply: reply.body)

    def predict(self, metadata, model, version, inputs, top_k):
        return Call("POST", f"predict by {metadata}", lambda reply: reply.body)

    def control(self, action, model):
        return Call("POST", action, lambda _: None, repeatable=False)

    def ready(self):
        return Call("GET", "ready", lambda _: True)


class Run:
    """Runs a generator with these replies; ``took`` says how long each takes."""

    def __init__(self, *replies, took=1.0, timeout_s=60.0, retries=None, calls=None):
        self.now, self.took, self.rest = 100.0, took, list(replies)
        self.sent, self.timeouts, self.pauses = [], [], []
        self.operations = Operations(calls or Calls(), retries or Retries(), timeout_s, lambda: self.now)

    def __call__(self, steps):
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                self.now += step.seconds
                self.pauses.append(step.seconds)
                reply = None
            else:
                assert isinstance(step, Send)
                self.now += self.took
                self.sent.append(step.call.path)
                self.timeouts.append(step.timeout_s)
                reply = self.rest.pop(0)


def fine(body=b"fine"):
    return Reply(200, body=body)


def test_pauses_grow_and_what_the_server_says_counts():
    run = Run(BUSY, LOST, Reply(429, {"retry-after": "7"}, error=OverloadedError("busy", 429)), fine())
    assert run(run.operations.metadata("m", None)) == b"fine"
    assert run.pauses == [0.1, 0.2, 7.0]
    assert run.timeouts == pytest.approx([60, 58.9, 57.7, 49.7])


def test_no_more_tries_than_are_allowed():
    run = Run(*[BUSY] * 3, retries=Retries(2))
    with pytest.raises(OverloadedError, match="busy"):
        run(run.operations.metadata("m", None))
    assert len(run.sent) == 3


def test_the_time_is_for_all_tries_together():
    run = Run(*[BUSY] * 9, took=2.0, timeout_s=4.05, retries=Retries(9))
    with pytest.raises(OverloadedError):  # a pause that would end too late is not begun
        run(run.operations.metadata("m", None))
    assert (len(run.sent), len(run.pauses)) == (2, 1)
    run = Run(fine(), took=5.0, timeout_s=4.0)
    with pytest.raises(DeadlineExceededError, match=r"no response within timeout_s \(4\)"):
        run(run.operations.infer("m", None, None, options()))


def test_a_load_that_may_be_under_way_is_not_begun_again():
    run = Run(LOST)
    with pytest.raises(ConnectionFailedError):
        run(run.operations.control("load", "m"))
    run = Run(BUSY, Reply(None, error=ConnectionFailedError("no route")), fine())
    run(run.operations.control("load", "m"))
    assert run.sent == ["load"] * 3


def options(**more):
    from panther_client.calls import InferOptions

    return InferOptions(**more)


def test_metadata_is_remembered_until_it_no_longer_fits():
    run = Run(fine(b"old"), fine(), fine(), REFUSED, fine(b"new"), fine())
    for _ in range(3):
        assert run(run.operations.infer("m", None, 2, options(timeout_us=5))) == b"fine"
    assert run.sent == [
        "metadata m 2",
        *["infer by old 5"] * 3,
        "metadata m 2",
        "infer by new 5",
    ]
    run = Run(fine(b"old"), fine(), REFUSED, fine(b"old"))
    run(run.operations.infer("m", None, None, options()))
    with pytest.raises(InvalidRequestError, match="wrong"):
        run(run.operations.infer("m", None, None, options()))
    assert run.sent[1] == "infer by old 60000000"  # the server is told the time


def test_a_protocol_without_a_plain_api_needs_a_name():
    run = Run(fine(b"m"), fine(), calls=Calls(needs_metadata=True))
    with pytest.raises(InvalidRequestError, match="predict requires the name of a model"):
        run(run.operations.predict([], None, None, None))
    assert run(run.operations.predict([], "m", None, None)) == b"fine"


def test_ready_or_not():
    for reply, expected in ((fine(), True), (REFUSED, False)):
        run = Run(reply)
        assert run(run.operations.is_ready()) is expected


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_time_that_can_be_none_is_refused(timeout_s):
    with pytest.raises(InvalidRequestError, match=r"timeout_s \(.*\) must be above 0"):
        Operations(Calls(), Retries(), timeout_s)
