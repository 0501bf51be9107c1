"""Triton's ``instance_group`` as a placement: kinds, counts and GPUs of a model's instances."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.errors import InvalidRequestError, shortened
from app.repository.placement import MAX_INSTANCES, Place, PlacementSettings

_KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU")
_READ = {"name", "kind", "count", "gpus"}


@dataclass(frozen=True)
class _Group:
    """One group: ``count`` instances on each place; ``places`` is None for the device of the worker."""

    places: tuple[Place, ...] | str | None
    count: int


def read_groups(value: Any) -> tuple[PlacementSettings | None, tuple[str, ...]]:
    """Read an ``instance_group``.

    Returns:
        The placement (None if no group has one), and the members that have no effect.

    Raises:
        InvalidRequestError: The value is not a list of groups, or a member is out of range.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequestError("'instance_group' must be a list of objects with 'kind', 'count' and 'gpus'")
    ignored = {f"instance_group.{name}" for item in value for name in item if name not in _READ}
    groups = []
    for item in value:
        kind = item.get("kind", "KIND_AUTO")
        if kind == "KIND_MODEL":  # the model chooses its devices, which ONNX can't express
            ignored.add("instance_group.kind KIND_MODEL")
        else:
            groups.append(_group(kind, item))
    if not groups:
        return None, tuple(sorted(ignored))
    if len(groups) == 1:
        return _placement(groups[0].places, groups[0].count), tuple(sorted(ignored))
    listed: list[Place] = []
    for group in groups:
        if isinstance(group.places, tuple):
            listed += [place for place in group.places for _ in range(group.count)]
        else:
            ignored.add("instance_group without devices, beside other groups")
    return (_placement(tuple(listed), 1) if listed else None), tuple(sorted(ignored))


def _group(kind: Any, item: dict[str, Any]) -> _Group:
    if kind not in _KINDS:
        raise InvalidRequestError(f"instance_group: kind is {shortened(repr(kind))}; expected {', '.join(_KINDS)}")
    count = item.get("count", 1)
    if type(count) is not int or not 0 <= count <= MAX_INSTANCES:
        shown = shortened(repr(count))
        raise InvalidRequestError(
            f"instance_group: count is {shown}; expected a whole number from 1 to {MAX_INSTANCES}"
        )
    gpus = item.get("gpus") or []
    if not isinstance(gpus, list) or any(type(gpu) is not int or gpu < 0 for gpu in gpus):
        raise InvalidRequestError(f"instance_group: gpus is {shortened(repr(gpus))}; expected a list of device numbers")
    places: tuple[Place, ...] | str | None = tuple(gpus) or ("all" if kind == "KIND_GPU" else None)
    return _Group(("cpu",) if kind == "KIND_CPU" else places, count or 1)  # protocol buffers write 0 if unset


def _placement(places: tuple[Place, ...] | str | None, count: int) -> PlacementSettings:
    try:
        return PlacementSettings.model_validate({"devices": places, "instances": count})
    except ValidationError as error:
        raise InvalidRequestError(f"instance_group: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
