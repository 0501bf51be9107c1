"""Both packages count alike the cores that a process may use: a latency measured at export holds where it is served."""

import pytest

from app.system import cpus
from panther.export import ort


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000\n"},
        {"cpu.max": "150000 100000\n"},
        {"cpu.max": "50000 100000\n"},
        {"cpu.max": "rubbish\n"},
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        {"cpu.max": "rubbish\n", "cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
    ],
)
@pytest.mark.parametrize("mask", [1, 3, 64])
def test_cores_of_a_process(monkeypatch, tmp_path, files, mask):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpus, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cpus, "_CGROUP_V1", tmp_path / "cpu")
    monkeypatch.setattr(ort, "_CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(mask)))
    assert cpus.available_cores() == ort.available_cores()
