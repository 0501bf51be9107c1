"""Exceptions that end the analysis of a node: its rows mix, or its rule does not cover it."""

from typing import Literal

Verdict = Literal["independent", "mixed", "unknown"]
Finding = Literal["mixed", "unknown", "impossible"]


class Decision(Exception):  # noqa: N818 - a verdict on the model, not an error of the program
    """The outputs of a node do not consist of one block per row.

    Attributes:
        finding: "mixed" if this is proven, "unknown" if it cannot be excluded, "impossible" if the runtime
            refuses the inputs of the node, so the graph has no result.
        reason: A predicate of the node, such as "reduces over the batch axis".
        ragged: Whether the shape of the outputs depends on the data of the rows.
    """

    def __init__(self, finding: Finding, reason: str, *, ragged: bool = False) -> None:
        super().__init__(reason)
        self.finding: Finding = finding
        self.reason = reason
        self.ragged = ragged


def mixes(reason: str, *, ragged: bool = False) -> Decision:
    """Return the exception for a node that mixes rows."""
    return Decision("mixed", reason, ragged=ragged)


def unproven(reason: str) -> Decision:
    """Return the exception for a node that the analysis does not support."""
    return Decision("unknown", reason)


def impossible(reason: str) -> Decision:
    """Return the exception for a node with inputs that the runtime refuses."""
    return Decision("impossible", reason)


class Fork(Exception):  # noqa: N818 - a question, not an error
    """A condition to analyse separately for true and false.

    Attributes:
        atom: Number of the condition's symbol.
    """

    def __init__(self, atom: int) -> None:
        super().__init__(atom)
        self.atom = atom
