"""Placement of a model's instances: the table ``[placement]`` of ``panther.toml`` and its devices.

See docs/decisions/0092-instances-behind-one-queue.md.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.errors import LoadError, shortened
from app.runtime.device import CPU, Device

MAX_INSTANCES = 64
_ON_CPU = Device("cpu", (CPU,))
_RULE = f'"all", "cpu", or a list of at most {MAX_INSTANCES} of "cpu" and numbers of CUDA devices, such as [0, 1]'

Place = int | Literal["cpu"]
"""Number of a CUDA device, or the CPU."""


class PlacementSettings(BaseModel):
    """The table ``[placement]``: devices of a model, and the number of instances on each.

    Attributes:
        devices: Numbers of CUDA devices among the visible ones, or ``cpu``; ``all`` for every CUDA device; None for the
            device of the worker. A device that is listed twice gets twice as many instances.
        instances: Number of instances on each device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    devices: Literal["all"] | tuple[Place, ...] | None = None
    instances: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 1

    @field_validator("devices", mode="before")
    @classmethod
    def _known_devices(cls, value: Any) -> Any:
        if value is None or value == "all":
            return value
        places = [value] if value == "cpu" else value
        if not isinstance(places, list | tuple) or not 0 < len(places) <= MAX_INSTANCES:
            raise ValueError(f"must be {_RULE}")
        for place in places:
            if place != "cpu" and (type(place) is not int or place < 0):
                raise ValueError(f"must be {_RULE}; {shortened(repr(place))} is neither")
        return tuple(places)


def devices_of(placement: PlacementSettings, device: Device) -> list[Device]:
    """The device of each instance, CUDA devices first.

    Args:
        placement: Placement of the model.
        device: Device of the worker.

    Raises:
        LoadError: A device does not exist; the message has the number of devices.
    """
    places = placement.devices
    if places is None:
        found = [device]
    else:
        if places == "all":
            _require_cuda(device, "all")
            places = tuple(range(device.count or 1))
        found = [_ON_CPU if place == "cpu" else _on_cuda(device, place) for place in places]
    # Alternate the devices, so that the instances that are used first are spread over all of them.
    found = [each for _ in range(placement.instances) for each in found]
    if len(found) > MAX_INSTANCES:
        raise LoadError(f"placement: {len(found)} instances exceed the maximum of {MAX_INSTANCES} per model")
    return sorted(found, key=lambda each: not each.has_cuda)


def _on_cuda(device: Device, number: int) -> Device:
    _require_cuda(device, str(number))
    if device.count is not None and number >= device.count:
        there = f"{device.count} CUDA device{'' if device.count == 1 else 's'}, counted from 0"
        raise LoadError(f"placement.devices: there is no device {number}; this server sees {there}")
    return device.on_cuda(number)


def _require_cuda(device: Device, what: str) -> None:
    if not device.has_cuda:
        why = device.reason or f"it was started with device={device.requested}"
        raise LoadError(f"placement.devices: {what} requires CUDA, which is not available: {why}")
