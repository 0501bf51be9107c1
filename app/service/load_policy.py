"""Versions in a load request: the version policy in Triton's parameter ``config``.

See docs/decisions/0018-roll-back-through-load.md.
"""

import json
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequestError, shortened
from app.repository.placement import PlacementSettings
from app.service.instance_groups import read_groups


@dataclass(frozen=True)
class LoadRequest:
    """Options of a load request.

    Attributes:
        policy: Version policy to load; None if the request has none.
        placement: Placement of the model's instances; None for the one of ``panther.toml``.
        ignored: Members of ``config`` without effect, because ``panther.toml`` defines them.
    """

    policy: str | None = None
    placement: PlacementSettings | None = None
    ignored: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """A warning for the client, or None."""
        if not self.ignored:
            return None
        names = shortened(", ".join(self.ignored), 300)
        return f"these members of 'config' have no effect; set them in panther.toml: {names}"


def load_request(document: dict[str, Any]) -> LoadRequest:
    """Parse a load request; of Triton's model configuration, the version policy and the instances are used.

    Raises:
        InvalidRequestError: A parameter is not ``config``, or its value is not a model configuration.
    """
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"config"}:
        raise InvalidRequestError("the only parameter of load is 'config'; models come from the model folder")
    if not parameters:
        return LoadRequest()
    rule = """must be JSON such as {"version_policy": {"specific": {"versions": [1]}}}"""
    try:
        config = json.loads(parameters["config"])
        policy, groups = config.pop("version_policy", None), config.pop("instance_group", None)
        chosen = None
        if policy is not None:
            (item,) = policy.items()
            chosen = _policies(*item)
        unknown = tuple(name for name in config if name != "name")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise InvalidRequestError(f"parameter 'config' {rule}") from None
    placement, ignored = (None, ()) if groups is None else read_groups(groups)
    return LoadRequest(chosen, placement, (*unknown, *ignored))


def _policies(kind: str, value: dict[str, Any]) -> str:
    if kind == "all" or (kind == "latest" and value.get("num_versions", 1) == 1):
        return kind
    versions = value["versions"] if kind == "specific" else None
    if not isinstance(versions, list) or not versions:
        raise ValueError(kind)
    for version in versions:
        # JSON of protocol buffers may contain whole numbers as strings.
        if isinstance(version, bool) or (isinstance(version, float) and not version.is_integer()):
            raise ValueError(version)
    return ",".join(str(int(version)) for version in versions)
