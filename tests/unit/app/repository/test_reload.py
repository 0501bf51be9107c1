"""One load of a model: what is loaded, what is kept, what becomes of versions that fail."""

from types import SimpleNamespace

import pytest

from app.errors import LoadError
from app.repository.reload import Load
from app.repository.versions import Entry, State, Version, make_entry


def serving(label):
    return SimpleNamespace(label=label)


def entry(served=(), failed=(), idle=()):
    versions = {version: Version(version, State.READY, "", serving(f"old {version}")) for version in served}
    versions |= {version: Version(version, reason="it was broken", failed=True) for version in failed}
    versions |= {version: Version(version) for version in idle}
    return make_entry("m", versions)


def run(before, wanted, on_disk, broken=(), changed=None, fall_back=True):
    """What is served, by version; the versions that were loaded; the error."""
    tried = []

    def load_version(version):
        tried.append(version)
        if version in broken:
            raise LoadError(f"version {version} is broken")
        return serving(f"new {version}")

    load = Load(before, load_version, changed)
    after = load.run(wanted, on_disk, fall_back=fall_back)
    return after, tried, None if load.failure is None else str(load.failure)


def labels(after):
    return {item.version: item.serving.label for item in after.ready()}


@pytest.mark.parametrize(
    ("served", "wanted", "on_disk", "broken", "changed", "expected", "tried"),
    [
        # Nothing was known: the newest, and where it is broken the newest that is not.
        ([], ["3"], ["1", "2", "3"], [], None, {"3": "new 3"}, ["3"]),
        ([], ["3"], ["1", "2", "3"], ["3"], None, {"2": "new 2"}, ["3", "2"]),
        ([], ["3"], ["1", "2", "3"], ["3", "2", "1"], None, {}, ["3", "2", "1"]),
        # A new version takes over; a broken one leaves the old one, which is not loaded again.
        (["1"], ["2"], ["1", "2"], [], None, {"2": "new 2"}, ["2"]),
        (["1"], ["2"], ["1", "2"], ["2"], None, {"1": "old 1"}, ["2"]),
        # The old one's folder is gone already: it goes on all the same.
        (["1"], ["2"], ["2"], ["2"], None, {"1": "old 1"}, ["2"]),
        # Going back.
        (["2"], ["1"], ["1"], [], None, {"1": "new 1"}, ["1"]),
        (["2"], ["1"], ["1"], [], [], {"1": "new 1"}, ["1"]),
        # Only what changed is loaded again, where that is known.
        (["1", "2"], ["1", "2", "3"], ["1", "2", "3"], [], ["3"], {"1": "old 1", "2": "old 2", "3": "new 3"}, ["3"]),
        (["1", "2"], ["1", "2"], ["1", "2"], [], ["1"], {"1": "new 1", "2": "old 2"}, ["1"]),
        (["1", "2"], ["1", "2"], ["1", "2"], ["1"], ["1"], {"1": "old 1", "2": "old 2"}, ["1"]),
        (["1", "2"], ["1", "2"], ["1", "2"], [], None, {"1": "new 1", "2": "new 2"}, ["1", "2"]),
    ],
)
def test_what_is_served_after_a_load(served, wanted, on_disk, broken, changed, expected, tried):
    after, loaded, failure = run(entry(served), wanted, on_disk, broken, changed)
    assert labels(after) == expected
    assert loaded == tried
    assert failure == (f"version {broken[0]} is broken" if broken else None)
    assert set(after.versions) >= set(on_disk)


def test_other_policies_do_not_fall_back_to_versions_that_nobody_chose():
    after, tried, _ = run(entry(), ["3"], ["1", "2", "3"], ["3"], fall_back=False)
    assert (labels(after), tried) == ({}, ["3"])
    assert after.versions["2"].reason == "not selected by the version policy"


def test_a_failure_is_told_where_it_belongs():
    after, *_ = run(entry(["1"]), ["2"], ["1", "2"], ["2"])
    assert (after.versions["2"].state, after.versions["2"].reason) == (State.UNAVAILABLE, "version 2 is broken")
    assert after.versions["2"].failed
    assert not after.versions["1"].failed
    assert after.served == "1"
    again, *_ = run(entry(["1"]), ["1"], ["1"], ["1"])
    assert (again.versions["1"].state, again.versions["1"].reason) == (
        State.READY,
        "reload failed: version 1 is broken",
    )
    assert again.versions["1"].failed


def test_a_broken_file_that_did_not_change_is_not_tried_again():
    after, tried, failure = run(entry(["1"], failed=["2"]), ["2"], ["1", "2"], ["2"], changed=[])
    assert (tried, failure, labels(after)) == ([], None, {"1": "old 1"})
    assert after.versions["2"].reason == "it was broken"


def test_while_a_broken_version_is_the_newest_a_change_of_the_served_one_is_followed():
    after, tried, _ = run(entry(["1"], failed=["2"]), ["2"], ["1", "2"], ["2"], changed=["1"])
    assert (tried, labels(after)) == (["1"], {"1": "new 1"})


def test_new_versions_are_shown_as_being_loaded_beside_what_is_served():
    shown = Load(entry(["1"], idle=["2"]), serving, None).announced(["1", "2", "10"])
    assert {item.version: item.state for item in shown.versions.values()} == {
        "1": State.READY,
        "2": State.LOADING,
        "10": State.LOADING,
    }
    assert list(shown.versions) == ["1", "2", "10"]
    assert shown.served == "1"
    assert Entry("m").served is None
