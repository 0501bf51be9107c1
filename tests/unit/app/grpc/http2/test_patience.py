"""So many at once, and so many in the long run."""

from app.grpc.http2.patience import PER_ANSWER, Patience


def test_answers_allow_more():
    patience = Patience(burst=3, per_second=0)
    for _ in range(3):
        assert not patience.strain()
    for _ in range(100):
        patience.relax()
        assert [patience.strain() for _ in range(PER_ANSWER)] == [False] * PER_ANSWER
    assert patience.strain()


def test_no_more_is_allowed_than_a_burst():
    patience = Patience(burst=3, per_second=0)
    for _ in range(10):
        patience.relax()
    assert [patience.strain() for _ in range(4)] == [False, False, False, True]


def test_a_burst_and_then_a_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.grpc.http2.patience.time.monotonic", lambda: now[0])
    patience = Patience(burst=3, per_second=2)
    assert [patience.strain() for _ in range(4)] == [False, False, False, True]
    now[0] += 1.0  # two more, of which one is owed
    assert [patience.strain() for _ in range(2)] == [False, True]
    now[0] += 100.0  # no more than a burst is saved up
    assert [patience.strain() for _ in range(4)] == [False, False, False, True]
