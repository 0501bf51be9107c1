"""Which models count for readiness: the required ones, those of the start, and those that were served once."""

import pytest

from app.repository.readiness import Readiness
from app.repository.versions import Entry, State, Version

SERVED = Version("1", State.READY, "", serving=object())
BROKEN = Version("1", State.UNAVAILABLE, "it is broken", failed=True)
LOADING = Version("1", State.LOADING, "loading")
UNLOADED = Version("1", State.UNAVAILABLE, "unloaded")


def entries(**versions: Version) -> dict[str, Entry]:
    return {name: Entry(name, {"1": version}) for name, version in versions.items()}


def started(readiness: Readiness, **versions: Version) -> list[str]:
    readiness.start(versions)
    readiness.update(entries(**versions), starting=False)
    return readiness.problems(entries(**versions))


def later(readiness: Readiness, **versions: Version) -> list[str]:
    readiness.update(entries(**versions), starting=False)
    return readiness.problems(entries(**versions))


@pytest.mark.parametrize("version", [BROKEN, LOADING])
def test_a_model_that_comes_later_does_not_count_until_it_is_served(version):
    readiness = Readiness()
    assert started(readiness, a=SERVED) == []
    assert later(readiness, a=SERVED, b=version) == []
    assert later(readiness, a=SERVED, b=SERVED) == []
    assert later(readiness, a=SERVED, b=version) == [f"b: {version.reason}"]


def test_a_model_that_is_broken_at_the_start_counts():
    readiness = Readiness()
    assert started(readiness, a=SERVED, b=BROKEN) == ["b: it is broken"]
    assert later(readiness, a=SERVED, b=SERVED) == []


def test_a_model_that_is_broken_at_the_start_counts_only_if_it_is_required():
    readiness = Readiness(["a"])
    assert started(readiness, a=SERVED, b=BROKEN) == []
    assert later(readiness, b=BROKEN) == ["a: it is not in the model folder"]
    assert started(Readiness(["b"]), a=SERVED, b=BROKEN) == ["b: it is broken"]


def test_a_required_model_that_is_not_there_is_named():
    assert started(Readiness(["c"]), a=SERVED) == ["c: it is not in the model folder"]


def test_what_is_unloaded_or_gone_no_longer_counts_unless_it_is_required():
    for readiness, said in ((Readiness(), []), (Readiness(["b"]), ["b: unloaded"])):
        assert started(readiness, a=SERVED, b=SERVED) == []
        assert later(readiness, a=SERVED, b=UNLOADED) == said
    readiness = Readiness()
    assert started(readiness, a=SERVED, b=SERVED) == []
    assert later(readiness, a=SERVED) == []
    assert later(readiness, a=SERVED, b=BROKEN) == []


def test_a_server_that_serves_nothing_is_not_ready():
    readiness = Readiness()
    assert started(readiness) == ["no model was found; the model folder must contain NAME/VERSION/model.onnx"]
    assert later(readiness, a=BROKEN) == ["a: it is broken"]
    assert later(readiness, a=SERVED) == []


def test_strict_readiness_counts_every_model():
    readiness = Readiness(strict=True)
    assert started(readiness, a=SERVED) == []
    assert later(readiness, a=SERVED, b=BROKEN) == ["b: it is broken"]
    assert later(readiness, a=SERVED, b=UNLOADED) == []


def test_each_change_is_logged_both_ways(caplog):
    caplog.set_level("INFO")
    readiness = Readiness()
    started(readiness, a=SERVED)
    later(readiness, a=BROKEN)
    later(readiness, a=BROKEN)
    later(readiness, a=SERVED)
    assert caplog.messages == ["not ready: a: it is broken", "ready again: serving a"]
