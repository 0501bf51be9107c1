import pytest
import torch

from panther.convert import memory
from panther.convert.memory import allowed, available_memory, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (12, 12),
        ("8GB", 8 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("512mb", 512 * 10**6),
        ("7", 7),
        (" 2 kB ", 2000),
        (None, None),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("wrong", ["8 Gigs", "", "-1GB", 0, -5, 2.0, True, "0GB", [1]])
def test_wrong_sizes_are_named(wrong):
    with pytest.raises(ValueError, match=r"memory \(.*\) must be"):
        parse_size(wrong)


def test_half_of_what_is_free_is_allowed(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert allowed(torch.device("cpu"), None) == 500
    assert allowed(torch.device("cpu"), 7) == 7
    assert allowed(torch.device("meta"), None) == float("inf")


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99 kB\nMemAvailable:    50 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("20000\n")
    (tmp_path / "memory.current").write_text("15000\n")
    (tmp_path / "memory.stat").write_text("anon 3\ninactive_file 4000\n")
    assert available_memory() == 9000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 50 * 1024


def test_nothing_is_known_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory() is None
    assert allowed(torch.device("cpu"), None) == float("inf")
