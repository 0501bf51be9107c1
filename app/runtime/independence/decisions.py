"""Exceptions that end the walk of a node: its rows mix, or its rule does not cover it."""

from typing import Literal

Verdict = Literal["independent", "mixed", "unknown"]
Finding = Literal["mixed", "unknown", "impossible"]


class Decision(Exception):  # noqa: N818 - a verdict on the model and no error of this program
    """A node's outputs are not one block for each row.

    Attributes:
        finding: "mixed" where that is proven, "unknown" where it is only not excluded, "impossible" where the runtime
            refuses the node's inputs, so that there is no answer.
        reason: a predicate of the node, such as "reduces over the batch axis".
        ragged: whether the shape of the outputs depends on the data of the rows.
    """

    def __init__(self, finding: Finding, reason: str, *, ragged: bool = False) -> None:
        super().__init__(reason)
        self.finding: Finding = finding
        self.reason = reason
        self.ragged = ragged


def mixes(reason: str, *, ragged: bool = False) -> Decision:
    """The decision that a node mixes rows, to be raised."""
    return Decision("mixed", reason, ragged=ragged)


def unproven(reason: str) -> Decision:
    """The decision that nothing is known of a node, to be raised."""
    return Decision("unknown", reason)


def impossible(reason: str) -> Decision:
    """The decision that the runtime refuses the inputs of a node, to be raised."""
    return Decision("impossible", reason)


class Fork(Exception):  # noqa: N818 - a question and no error
    """A condition with two cases to analyse.

    Attributes:
        atom: the number of the condition's symbol.
    """

    def __init__(self, atom: int) -> None:
        super().__init__(atom)
        self.atom = atom
