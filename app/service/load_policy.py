"""The versions that a client may ask to load: by the version policy in Triton's parameter ``config``.

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
        policy: the versions to load; None where it asks for none in particular.
        placement: of the model's instances; None for that of ``panther.toml``.
        ignored: members of ``config`` that have no effect: what they say is set in ``panther.toml``.
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
        return f"these members of 'config' have no effect, and are set in panther.toml: {names}"


def load_request(document: dict[str, Any]) -> LoadRequest:
    """Read a request to load; of Triton's model configuration the version policy and the instances are applied.

    Raises:
        InvalidRequestError: another parameter than ``config``, or that is no model configuration.
    """
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"config"}:
        raise InvalidRequestError("load takes no parameter but 'config': models come from the folder alone")
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
        # Protocol buffers write whole numbers as texts, too.
        if isinstance(version, bool) or (isinstance(version, float) and not version.is_integer()):
            raise ValueError(version)
    return ",".join(str(int(version)) for version in versions)
