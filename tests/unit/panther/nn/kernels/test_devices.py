from types import SimpleNamespace

import pytest
import torch

from panther.nn.kernels import devices
from panther.nn.kernels.devices import Device


@pytest.fixture
def present(monkeypatch):
    """Have a CUDA device of given properties."""

    def be_there(major: int, shared_bytes: int | None) -> None:
        properties = SimpleNamespace(major=major, multi_processor_count=72)
        if shared_bytes is not None:
            properties.shared_memory_per_block_optin = shared_bytes
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    devices.device.cache_clear()
    yield be_there
    devices.device.cache_clear()


@pytest.mark.parametrize(
    ("major", "shared_kib", "measured"),
    [(8, 163, False), (8, 99, False), (9, 227, True), (10, 227, True), (12, 99, False)],
)
def test_devices_that_the_kernels_run_on(present, major, shared_kib, measured):
    present(major, shared_kib << 10)
    found = devices.device(0)
    assert found == Device(72, shared_kib << 10, major)
    assert found.is_measured is measured


@pytest.mark.parametrize(("major", "shared_bytes"), [(7, 96 << 10), (7, 227 << 10), (8, 98 << 10), (9, None)])
def test_devices_that_they_do_not_run_on(present, major, shared_bytes):
    present(major, shared_bytes)
    assert devices.device(0) is None


def test_torch_without_cuda_has_no_device(present, monkeypatch):
    present(9, 227 << 10)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.device(0) is None


@pytest.mark.parametrize("shared_kib", [99, 163, 227, 300])
def test_budgets_leave_room(shared_kib):
    found = Device(72, shared_kib << 10, 9)
    assert found.tiles_bytes <= 0.91 * found.shared_bytes
    # a multiprocessor has a KiB more than a block may take, and keeps one for each block
    assert 2 * (found.half_tiles_bytes + 1024) <= found.shared_bytes + 1024
    if shared_kib >= 227:
        assert (found.tiles_bytes, found.half_tiles_bytes) == (210_000, 100_000)
