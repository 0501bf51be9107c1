import asyncio
import logging

import pytest
from helpers.remote import MemoryStore

from app.config.settings import Settings
from app.repository.remote.errors import RemoteError
from app.repository.remote.mirror import Mirror, MirrorOptions
from app.service import mirroring as module
from app.service.mirroring import Mirroring

FILES = {"a/1/model.onnx": b"one"}


@pytest.fixture
def store():
    return MemoryStore(FILES)


@pytest.fixture
def mirroring(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    return Mirroring(Mirror(store.url, MirrorOptions(tmp_path), store), interval_s=0.01)


def fail(store, times):
    """Let the listing fail so many times, and say how often it was asked for."""
    asked = []
    listing = store.files

    def files(scratch):
        asked.append(None)
        if len(asked) <= times:
            raise OSError("no route")
        return listing(scratch)

    store.files = files
    return asked


def test_a_local_folder_has_none(tmp_path):
    assert Mirroring.of(Settings(model_dir=tmp_path)) is None
    found = Mirroring.of(Settings(model_dir="s3://bucket/m", model_cache=tmp_path))
    assert found.mirror.folder.is_relative_to(tmp_path)


def test_the_start_is_tried_until_there_are_models(mirroring, store):
    asked, reasons = fail(store, 2), []
    asyncio.run(mirroring.start(reasons.append))
    assert reasons == 2 * ["the models at s3://bucket/models can't be mirrored: no route"]
    assert (len(asked), mirroring.failures, mirroring.problem) == (3, 2, None)
    assert (mirroring.mirror.folder / "a/1/model.onnx").read_bytes() == b"one"


def test_a_start_without_the_store_takes_the_copy(mirroring, store, caplog):
    asyncio.run(mirroring.refresh())
    fail(store, 10)
    asyncio.run(mirroring.start(pytest.fail))
    assert "serving the cached copy" in caplog.text


def test_a_successor_begins_with_what_is_there(mirroring, store):
    asyncio.run(mirroring.start(pytest.fail, successor=True))
    asked = fail(store, 0)
    asyncio.run(mirroring.start(pytest.fail, successor=True))
    assert asked == []


def test_a_problem_is_logged_when_it_comes_and_when_it_goes(mirroring, store, caplog):
    asked = fail(store, 3)

    async def follow():
        task = asyncio.create_task(mirroring.follow())
        while len(asked) < 6:
            await asyncio.sleep(0.01)
        task.cancel()

    with caplog.at_level(logging.INFO):
        asyncio.run(follow())
    assert caplog.text.count("no route") == 1
    assert caplog.text.count("mirroring of s3://bucket/models works again") == 1
    assert mirroring.failures == 3


def test_a_request_is_told_what_is_wrong(mirroring, store):
    store.fails["a/1/model.onnx"] = ConnectionResetError("reset")
    with pytest.raises(RemoteError, match="a/1: ConnectionResetError: reset"):
        asyncio.run(mirroring.refresh())
