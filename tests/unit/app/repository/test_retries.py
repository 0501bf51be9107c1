"""What memory or time was short for is loaded again, at a clock that the tests turn on."""

import asyncio

import pytest
from helpers import build

from app.application import create_app
from app.config.settings import Settings
from app.errors import InferenceFailedError, LoadError, LoadTimeoutError
from app.repository.retries import Retries
from app.repository.watcher import Change, Watcher

SHORT = {"m": frozenset({"2"})}


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def retries(clock):
    return Retries(clock)


def test_pauses_grow_to_ten_minutes_and_begin_after_the_try(clock, retries, caplog):
    pauses = []
    for _ in range(7):
        began = clock.now
        while not (due := retries.due(SHORT)):
            clock.now += 1
        assert due == [Change("m", frozenset({"2"}))]
        pauses.append(clock.now - began)
        clock.now += 45  # the load
    assert pauses == [30, 60, 120, 240, 480, 600, 600]
    assert caplog.messages[:2] == [
        f"retrying the load of model m in {pause} s: memory or time was short" for pause in (30, 60)
    ]


def test_what_is_short_no_more_is_forgotten(clock, retries):
    for _ in range(2):
        assert retries.due(SHORT) == []
        clock.now += 29
        assert retries.due({}) == []
        clock.now += 1
    assert retries.due(SHORT) == []
    clock.now += 30
    assert retries.due(SHORT | {"n": frozenset({"1"})}) == [Change("m", SHORT["m"])]
    retries.due({})
    assert retries.due(SHORT) == []
    clock.now += 30
    assert retries.due(SHORT) == [Change("m", SHORT["m"])]


TRIAL = "model 'm' version 2 is not loaded: a trial exceeded the available memory (1000 bytes): "


@pytest.fixture
def watched(tmp_path):
    """A server's state that serves version 1 while version 2 comes, and what loading that raises."""
    build.put(tmp_path, build.Tiny(seed=1).graph(), "m", "1")
    state = create_app(Settings(model_dir=tmp_path, device="cpu", model_control="watch", trial_load_s=0)).state.panther
    asyncio.run(state.control.load_all())
    load, raised = state.repository._loader, []

    def try_to_load(name, version, path, own):
        if raised:
            raise raised.pop(0)
        return load(name, version, path, own)

    state.repository._loader = try_to_load
    watcher = Watcher(tmp_path)
    build.put(tmp_path, build.Tiny(seed=2).graph(), "m", "2")
    watcher.poll()
    return state, watcher, raised


@pytest.mark.parametrize(
    "error",
    [
        LoadError(TRIAL + "MemoryError: std::bad_alloc"),
        LoadError("model 'm' version 2: CUDA failure 2: out of memory ; GPU=0"),
        LoadTimeoutError("model 'm' version 2 is not loaded: a trial took longer than trial_load_s (60)"),
        MemoryError(),
        InferenceFailedError("model 'm' failed: BFCArena::AllocateRawInternal Failed to allocate memory"),
    ],
    ids=["trial", "session", "time", "python", "warm-up"],
)
def test_a_version_that_memory_was_short_for_is_loaded_later(watched, clock, retries, error):
    state, watcher, raised = watched
    raised += [error, error]

    async def run():
        for seconds, served in ((0, "1"), (29, "1"), (1, "1"), (0, "1"), (59, "1"), (1, "2"), (600, "2")):
            clock.now += seconds
            for _ in range(2):  # what one look's loads come to the next one sees
                await asyncio.gather(*await state.control.poll(watcher, retries))
            assert state.repository.entry("m").served == served

    asyncio.run(run())
    assert raised == []
    assert state.repository.loads == {("m", "success"): 2, ("m", "failure"): 2}


def test_a_broken_file_waits_for_another(watched, clock, retries):
    state, watcher, raised = watched
    raised += [LoadError("model 'm' version 2: Protobuf parsing failed")]

    async def run():
        for _ in range(5):
            await asyncio.gather(*await state.control.poll(watcher, retries))
            clock.now += 1000

    asyncio.run(run())
    assert state.repository.to_retry() == {}
    assert state.repository.entry("m").served == "1"
    assert state.repository.loads == {("m", "success"): 1, ("m", "failure"): 1}
