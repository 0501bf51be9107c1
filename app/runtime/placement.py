"""Which execution provider runs which node of a loaded graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RECORD = "session.record_ep_graph_assignment_info"
"""Session configuration entry that makes the session record its placement."""

_CONTROL_FLOW = {"If", "Loop", "Scan"}
_FEW = 3


@dataclass(frozen=True)
class Node:
    """A node of the executed graph."""

    name: str
    op_type: str
    provider: str

    def __str__(self) -> str:
        return f"{self.name or '(unnamed)'} ({self.op_type})"


def find_placement(session: Any) -> tuple[Node, ...] | None:
    """The nodes of a session with their providers; None if the runtime is too old to report them."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    return tuple(Node(node.name, node.op_type, part.ep_name) for part in tell() for node in part.get_nodes())


def elsewhere(nodes: Sequence[Node], provider: str) -> list[Node]:
    """The nodes that run on a different provider."""
    return [node for node in nodes if node.provider != provider]


def why_not_captured(nodes: Sequence[Node] | None, provider: str) -> str | None:
    """The reason why a graph cannot be captured as one CUDA graph; None if its nodes allow it."""
    if nodes is None:
        return "this version of onnxruntime does not report the provider of each node"
    others = elsewhere(nodes, provider)
    if others:
        many = "1 node runs" if len(others) == 1 else f"{len(others)} nodes run"
        return f"{many} on {_listed(sorted({node.provider for node in others}))}: {_listed(others)}"
    control = [node for node in nodes if node.op_type in _CONTROL_FLOW]
    if control:
        return f"control flow: {_listed(control)}"
    return None


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - _FEW} more" if len(items) > _FEW else ""
    return ", ".join(str(item) for item in items[:_FEW]) + more
