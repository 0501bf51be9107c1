import pytest

from app.repository.remote import swap
from app.repository.remote.swap import discard, put_in_place


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_renameat2", lambda: None)


def folder(path, content):
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.usefixtures("way")
def test_a_folder_takes_the_place_of_another(tmp_path):
    target, trash = tmp_path / "a" / "1", tmp_path / "trash"
    put_in_place(folder(tmp_path / "new", "one"), target, trash)
    assert (target / "file").read_text() == "one"
    assert not trash.exists()
    put_in_place(folder(tmp_path / "new", "two"), target, trash)
    assert ((target / "file").read_text(), (trash / "file").read_text()) == ("two", "one")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("way")
def test_a_file_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "new").write_text("one")
    put_in_place(tmp_path / "new", folder(tmp_path / "target", "old"), tmp_path / "trash")
    assert (tmp_path / "target").read_text() == "one"
    discard(tmp_path / "trash")
    discard(tmp_path / "target")
    discard(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
