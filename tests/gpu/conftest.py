"""What needs a CUDA device: deselected, and told of, where there is none."""

from __future__ import annotations

import pytest


def has_cuda() -> bool:
    """Whether a CUDA device answers; asked of the driver, since not every environment here has torch."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not here or has_cuda():
        return
    if "gpu" in (config.option.markexpr or ""):
        raise pytest.UsageError("tests marked gpu were asked for, and no CUDA device answers")
    config.hook.pytest_deselected(items=here)
    items[:] = [item for item in items if item not in here]
