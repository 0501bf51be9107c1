"""Files that others put there: what is no regular file is refused by name, and never waited for."""

import os
import socket
from pathlib import Path

import pytest

from app.system import files
from app.system.files import read_regular, require_regular


@pytest.fixture
def special(tmp_path):
    """A file of each kind, by what it is called in a message."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        (tmp_path / "device").symlink_to("/dev/zero")
        (tmp_path / "folder").mkdir()
        yield tmp_path


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
@pytest.mark.parametrize("read", [read_regular, require_regular])
def test_what_is_no_regular_file_is_named(special, kind, read):
    with pytest.raises(OSError, match=rf"it is a {'FIFO' if kind == 'fifo' else kind}, not a regular file"):
        read(special / kind)


def test_a_regular_file_is_read_whole_by_its_name_or_a_link_to_it(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_regular(tmp_path / name) == content
        assert read_regular(tmp_path / name, len(content)) == content
    with pytest.raises(OSError, match="it has 256000 bytes; the maximum is 255999"):
        read_regular(tmp_path / "link", len(content) - 1)


def test_a_file_that_grows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"1")

    fstat = os.fstat

    def stat_and_grow(descriptor):
        found = fstat(descriptor)
        with path.open("ab") as more:
            more.write(b"2")
        return found

    monkeypatch.setattr(files.os, "fstat", stat_and_grow)
    with pytest.raises(OSError, match="it grows while it is read"):
        read_regular(path)


def test_a_file_that_is_replaced_by_a_fifo_between_two_looks_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"1")
    require = files.require_regular

    def look_and_replace(path: Path):
        require(path)
        path.unlink()
        os.mkfifo(path)

    monkeypatch.setattr(files, "require_regular", look_and_replace)
    with pytest.raises(OSError, match="it is a FIFO"):
        read_regular(path)
