"""``[placement]`` of ``panther.toml``: the devices that it means, and what it refuses."""

import pytest

from app.errors import LoadError
from app.repository.model_settings import read_model_settings
from app.repository.placement import PlacementSettings, devices_of
from app.runtime.device import CPU, CUDA, Device

FOUR = Device("auto", (CUDA, CPU), count=4)


def numbers(placement, device=FOUR):
    found = devices_of(PlacementSettings.model_validate(placement), device)
    return [each.cuda.device_id if each.has_cuda else "cpu" for each in found]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ({}, [0]),
        ({"instances": 3}, [0, 0, 0]),
        ({"devices": [1, 3]}, [1, 3]),
        ({"devices": [0, 2], "instances": 2}, [0, 2, 0, 2]),
        ({"devices": "all"}, [0, 1, 2, 3]),
        ({"devices": [2, 2, 1]}, [2, 2, 1]),
        ({"devices": "cpu", "instances": 2}, ["cpu", "cpu"]),
        ({"devices": ["cpu", 1]}, [1, "cpu"]),
    ],
)
def test_each_device_gets_its_instances(placement, expected):
    assert numbers(placement) == expected


def test_a_device_that_is_named_is_asked_for_strictly():
    assert [each.requested for each in devices_of(PlacementSettings(devices=(1,)), FOUR)] == ["cuda"]
    assert devices_of(PlacementSettings(), FOUR) == [FOUR]


@pytest.mark.parametrize(
    ("placement", "device", "message"),
    [
        ({"devices": [0, 4]}, FOUR, r"there is no device 4; this server sees 4 CUDA devices, counted from 0$"),
        (
            {"devices": [1]},
            Device("cuda", (CUDA, CPU), count=1),
            r"no device 1; this server sees 1 CUDA device, ",
        ),
        (
            {"devices": [0]},
            Device("cpu", (CPU,)),
            r"0 requires CUDA, which is not available: it ",
        ),
        (
            {"devices": "all"},
            Device("auto", (CPU,), "no driver"),
            r"all requires CUDA, which is not available: no driver$",
        ),
        ({"devices": [0, 1, 2], "instances": 22}, FOUR, r"66 instances exceed the maximum of 64 per model"),
    ],
)
def test_a_device_that_is_not_there_is_named_with_what_there_is(placement, device, message):
    with pytest.raises(LoadError, match=message):
        numbers(placement, device)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instances = 0", "placement.instances: 0 is not valid: input should be greater than or equal to 1"),
        ("instances = 65", "placement.instances: 65 is not valid: input should be less than or equal to 64"),
        ("devices = [-1]", r"placement.devices: \[-1\] is not valid: must be .*; -1 is neither"),
        ("devices = [true]", r"must be .*; True is neither"),
        ('devices = ["gpu"]', r"must be .*; 'gpu' is neither"),
        ('devices = "0"', r"placement.devices: '0' is not valid: must be "),
        ("devices = []", r"placement.devices: \[\] is not valid: must be "),
        ("device = [0]", "placement.device is not a setting of a model; known settings: devices, instances"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    (tmp_path / "panther.toml").write_text(f"[placement]\n{text}")
    with pytest.raises(LoadError, match=rf"^model 'm': panther.toml.*{message}"):
        read_model_settings("m", tmp_path)
