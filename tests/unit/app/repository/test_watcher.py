"""What counts as a change of the folder, and when."""

import os
import shutil

import pytest

from app.repository.watcher import Change, Watcher


def put(root, name, version, content=b"model"):
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    return folder


def changed(name, *versions):
    return Change(name, frozenset(versions))


@pytest.fixture
def watched(tmp_path):
    put(tmp_path, "m", 1)
    return tmp_path, Watcher(tmp_path)


def test_what_was_there_at_the_start_is_no_change(watched):
    _, watcher = watched
    assert [watcher.poll() for _ in range(3)] == [[], [], []]


def test_a_change_is_told_once_when_two_looks_saw_it_alike(watched):
    root, watcher = watched
    put(root, "m", 2)
    assert watcher.poll() == []
    assert watcher.poll() == [changed("m", "2")]
    assert watcher.poll() == []


def test_a_file_that_grows_is_left_alone_until_it_rests(watched):
    root, watcher = watched
    for size in range(1, 6):
        put(root, "m", 2, b"x" * size)
        assert watcher.poll() == []
    assert watcher.poll() == [changed("m", "2")]


def test_a_file_that_only_paused_is_told_again(watched):
    root, watcher = watched
    put(root, "m", 2, b"half")
    assert [watcher.poll(), watcher.poll()] == [[], [changed("m", "2")]]
    put(root, "m", 2, b"the whole")
    assert [watcher.poll(), watcher.poll()] == [[], [changed("m", "2")]]


def test_only_what_changed_is_told(watched):
    root, watcher = watched
    put(root, "m", 1, b"another model")
    put(root, "n", 7)
    (root / "m" / "2").mkdir()  # no model in it
    (root / ".hidden" / "1").mkdir(parents=True)
    (root / "m" / "notes.txt").write_text("not the server's")
    watcher.poll()
    assert watcher.poll() == [changed("m", "1"), changed("n", "7")]


def test_data_beside_the_model_belongs_to_it(watched):
    root, watcher = watched
    (root / "m" / "1" / "model.onnx.data").write_bytes(b"weights")
    watcher.poll()
    assert watcher.poll() == [changed("m", "1")]


def test_the_same_bytes_by_another_file_are_a_change(watched):
    root, watcher = watched
    file = root / "m" / "1" / "model.onnx"
    times = file.stat()
    fresh = root / "fresh"
    fresh.write_bytes(b"ledom")
    os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
    fresh.rename(file)
    watcher.poll()
    assert watcher.poll() == [changed("m", "1")]


def test_settings_of_a_model_change_all_its_versions(watched):
    root, watcher = watched
    put(root, "m", 2)
    watcher.poll()
    watcher.poll()
    (root / "m" / "panther.toml").write_text("batching = false")
    watcher.poll()
    assert watcher.poll() == [changed("m", "1", "2")]


def test_a_version_that_went_changes_its_model_and_a_folder_that_went_ends_it(watched):
    root, watcher = watched
    put(root, "m", 2)
    watcher.poll()
    watcher.poll()
    shutil.rmtree(root / "m" / "2")
    watcher.poll()
    assert watcher.poll() == [changed("m")]
    shutil.rmtree(root / "m")
    assert watcher.poll() == []
    assert watcher.poll() == [Change("m", gone=True)]
    assert watcher.poll() == []


def test_a_link_to_another_folder_may_be_swapped(tmp_path):
    for release, version in (("a", 1), ("b", 2)):
        put(tmp_path / release, "m", version)
    link = tmp_path / "now"
    link.symlink_to(tmp_path / "a")
    watcher = Watcher(link)
    (tmp_path / "next").symlink_to(tmp_path / "b")
    (tmp_path / "next").rename(link)
    watcher.poll()
    assert watcher.poll() == [changed("m", "2")]


def test_a_folder_that_cannot_be_read_changes_nothing(watched, caplog):
    root, watcher = watched
    root.rename(root.with_name("away"))
    assert [watcher.poll() for _ in range(3)] == [[], [], []]
    assert [record.message for record in caplog.records] == [
        "the model folder can't be read (No such file or directory); served models stay"
    ]
    root.with_name("away").rename(root)
    put(root, "m", 2)
    watcher.poll()
    assert watcher.poll() == [changed("m", "2")]
