"""A mirror of a repository in memory, which fails as it is told."""

import logging
import threading

import pytest
from helpers.remote import MemoryStore

from app.repository.remote.cache import now
from app.repository.remote.errors import MirrorStoppedError, RemoteError
from app.repository.remote.mirror import Mirror, MirrorOptions

FILES = {"a/1/model.onnx": b"one", "a/1/weights.bin": b"weights", "a/panther.toml": b"x", "b/3/model.onnx": b"three"}


@pytest.fixture
def store():
    return MemoryStore(FILES)


@pytest.fixture
def mirror(store, tmp_path):
    return Mirror(store.url, MirrorOptions(tmp_path), store)


def sync(mirror):
    mirror.sync(now())


def found(mirror):
    paths = [path for path in mirror.folder.rglob("*") if path.is_file()]
    return {path.relative_to(mirror.folder).as_posix(): path.read_bytes() for path in paths}


def test_the_folder_becomes_like_the_remote_one(mirror, store):
    assert not mirror.has_copy
    sync(mirror)
    assert mirror.has_copy
    assert found(mirror) == FILES
    del store.contents["b/3/model.onnx"]
    store.contents |= {"a/1/model.onnx": b"changed", "a/2/model.onnx": b"two", "c/x.so": b"library"}
    store.downloads.clear()
    sync(mirror)
    assert found(mirror) == store.contents
    assert sorted(store.downloads) == ["a/1/model.onnx", "a/2/model.onnx", "c/x.so"]
    assert not (mirror.folder / "b").exists()


def test_what_has_not_changed_is_not_touched(mirror, store):
    sync(mirror)
    before = {path: path.stat().st_ino for path in mirror.folder.rglob("*")}
    store.downloads.clear()
    sync(mirror)
    assert store.downloads == []
    assert {path: path.stat().st_ino for path in mirror.folder.rglob("*")} == before


def test_what_was_changed_here_is_put_right(mirror, store):
    sync(mirror)
    (mirror.folder / "a/1/model.onnx").write_bytes(b"damaged")
    (mirror.folder / "a/1/more").write_bytes(b"more")
    (mirror.folder / "a/2").mkdir()
    (mirror.folder / "a/panther.toml").unlink()
    (mirror.folder / "b/3/model.onnx").unlink()
    (mirror.folder / "b/3/model.onnx").symlink_to("/etc/passwd")
    sync(mirror)
    assert found(mirror) == FILES
    assert not (mirror.folder / "a/2").exists()
    assert not (mirror.folder / "b/3/model.onnx").is_symlink()


def test_a_listing_that_fails_or_is_empty_removes_nothing(mirror, store):
    sync(mirror)
    store.fails[""] = OSError("no route")
    with pytest.raises(RemoteError, match=r"the models at s3://bucket/models can't be mirrored: no route"):
        sync(mirror)
    del store.fails[""]
    for listed in ({}, {"a/panther.toml": b"x"}, {"a/1/weights.bin": b""}):
        store.contents = listed
        with pytest.raises(RemoteError, match=r"it has no model NAME/VERSION/model\.onnx; mirrored files stay"):
            sync(mirror)
    assert found(mirror) == FILES


def test_a_version_that_fails_stays_as_it_was_and_keeps_no_other_out(mirror, store):
    sync(mirror)
    store.contents |= {"a/1/model.onnx": b"fresh", "a/1/weights.bin": b"fresh", "b/4/model.onnx": b"four"}
    store.fails["a/1/weights.bin"] = ConnectionResetError("reset")
    with pytest.raises(RemoteError, match="a/1: ConnectionResetError: reset"):
        sync(mirror)
    assert found(mirror) == {**FILES, "b/4/model.onnx": b"four"}
    store.fails.clear()
    sync(mirror)
    assert found(mirror) == store.contents


@pytest.mark.parametrize(
    ("sent", "checksums", "message"),
    [
        (b"oNe", True, "a/1/model.onnx was downloaded with md5 .*; the listing has"),
        (b"on", False, "was downloaded with 2 bytes; its size in the listing is 3"),
        (b"onetwo", False, "has more than 3 bytes, its size in the listing"),
    ],
)
def test_content_that_is_not_what_the_listing_says_is_refused(tmp_path, sent, checksums, message):
    store = MemoryStore(FILES, checksums=checksums)
    mirror = Mirror(store.url, MirrorOptions(tmp_path), store)
    store.sent["a/1/model.onnx"] = sent
    with pytest.raises(RemoteError, match=message):
        sync(mirror)
    assert set(found(mirror)) == {"a/panther.toml", "b/3/model.onnx"}
    assert not mirror.has_copy


def test_no_reader_sees_half_a_version(mirror, store):
    """All through a pass a reader finds the old files, or the new ones, and never a version without its model."""
    sync(mirror)
    seen = []
    store.contents |= {"a/1/model.onnx": b"fresh", "a/1/weights.bin": b"fresher"}
    store.before_download = lambda _: seen.append(found(mirror))
    sync(mirror)
    assert seen == [FILES, FILES]
    assert found(mirror) == store.contents


def test_limits(store, tmp_path):
    with pytest.raises(RemoteError, match=r"it has 4 files, above model_cache_max_files \(3\)"):
        sync(Mirror(store.url, MirrorOptions(tmp_path, max_files=3), store))
    with pytest.raises(RemoteError, match=r"its files have 16 bytes, above model_cache_max_bytes \(15\)"):
        sync(Mirror(store.url, MirrorOptions(tmp_path, max_bytes=15), store))
    sync(Mirror(store.url, MirrorOptions(tmp_path, max_files=4, max_bytes=16), store))


def test_names_that_lead_elsewhere_are_logged_once(mirror, store, caplog):
    store.contents |= {"../evil/1/model.onnx": b"x", "a/../../x": b"x", "flat.onnx": b"x"}
    with caplog.at_level(logging.WARNING):
        sync(mirror)
        sync(mirror)
    assert found(mirror) == FILES
    assert len(caplog.records) == 3
    assert "s3://bucket/models: 'flat.onnx' is not mirrored: a model requires folders" in caplog.text


def test_one_pass_serves_all_who_asked_before_it(mirror, store):
    asked = now()
    sync(mirror)
    store.downloads.clear()
    store.contents["a/1/model.onnx"] = b"changed"
    mirror.sync(asked)
    assert store.downloads == []
    store.fails[""] = OSError("no route")
    asked = now()
    for _ in range(2):
        with pytest.raises(RemoteError, match="no route"):
            mirror.sync(asked)
        store.fails.clear()


def test_processes_take_turns(store, tmp_path):
    """While one is at it, another waits, and then finds all done."""
    began, go_on = threading.Event(), threading.Event()

    def hold(_):
        began.set()
        assert go_on.wait(60)

    store.before_download = hold
    other = MemoryStore(FILES)
    asked = now()
    threads = [
        threading.Thread(target=Mirror(each.url, MirrorOptions(tmp_path), each).sync, args=(asked,))
        for each in (store, other)
    ]
    threads[0].start()
    assert began.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert (len(store.downloads), other.downloads) == (4, [])


def test_the_end_of_the_server_ends_a_pass(mirror, store):
    store.before_download = lambda _: mirror.stop()
    with pytest.raises(MirrorStoppedError):
        sync(mirror)
    assert len(store.downloads) == 1
    assert found(mirror) == {}


def test_a_secret_of_the_url_is_in_no_message(tmp_path):
    from app.config.model_url import ModelUrl

    store = MemoryStore(FILES)
    store.fails[""] = OSError("GET https://me:secret@example.org failed")
    with pytest.raises(RemoteError, match=r"https://\*\*\*@example.org can't be mirrored: GET https://\*\*\*@ex"):
        sync(Mirror(ModelUrl("https://me:secret@example.org"), MirrorOptions(tmp_path), store))
