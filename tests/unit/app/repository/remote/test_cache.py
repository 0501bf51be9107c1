import os
import threading
from pathlib import Path

import pytest

from app.config.model_url import ModelUrl
from app.repository.remote.cache import Cache, State, default_base
from app.repository.remote.errors import MirrorStoppedError, RemoteError

URL = ModelUrl("s3://bucket/models")


def test_each_url_has_a_folder_which_secrets_do_not_change(tmp_path):
    assert Cache(URL, tmp_path).folder != Cache(ModelUrl("s3://bucket/other"), tmp_path).folder
    signed = [Cache(ModelUrl(f"https://example.org/m?sig={number}"), tmp_path).folder for number in range(2)]
    assert signed[0] == signed[1]


def test_the_default_lies_in_the_users_cache_folder_or_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_base() == tmp_path / "caches" / "panther" / "models"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary = tmp_path / f"panther-models-{os.geteuid()}"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert default_base() == temporary
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert default_base() == temporary


def test_what_is_known_survives_and_damage_is_as_nothing(tmp_path):
    cache = Cache(URL, tmp_path)
    cache.make()
    assert cache.state() == State()
    cache.save(State({"a": "1"}, 2.0, 3.0, "why"))
    assert cache.state() == State({"a": "1"}, 2.0, 3.0, "why")
    for damaged in ("", "{}", "[]", '{"tokens": 5, "problem": null, "synced_at": 0, "tried_at": 0}'):
        (cache.folder / "state.json").write_text(damaged)
        assert cache.state() == State()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    cache = Cache(URL, tmp_path)
    cache.make()
    cache.folder.chmod(0o777)
    with pytest.raises(RemoteError, match="is writable by users other than"):
        cache.make()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RemoteError, match=r"can't be written: .*set PANTHER_MODEL_CACHE"):
        Cache(URL, tmp_path / "file").make()


def test_the_lock_is_waited_for_until_the_end(tmp_path):
    cache, stop = Cache(URL, tmp_path), threading.Event()
    cache.make()
    with cache.locked(stop):
        threading.Timer(0.05, stop.set).start()
        with pytest.raises(MirrorStoppedError), Cache(URL, tmp_path).locked(stop):
            pass
    with cache.locked(stop):
        assert Path(cache.folder / "lock").exists()
