"""One operator call, as its rule sees it, and the table of rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.graph import Array, Attribute, Graph, Node
from app.runtime.independence.sizes import Algebra, Element, Number, Size, counts
from app.runtime.independence.values import Batch, Failure, Listed, Tensor, Value, tensor_of


class Scope(Protocol):
    """Services of the walker for the rules of control-flow operators."""

    def body(self, graph: Graph, inputs: Sequence[Value], *, isolated: bool = False) -> list[Value]:
        """Return the outputs of a subgraph."""


Result = Value | Sequence[Value]
Rule = Callable[["Call"], Result]
AnyRule = TypeVar("AnyRule", bound=Rule)


@dataclass(frozen=True)
class Call:
    """An operator call: the node, its inputs and attributes.

    Attributes:
        node: The node.
        inputs: Known facts about the inputs; None for an omitted input.
        version: Version of the operator set of the node's domain.
        algebra: Arithmetic on sizes.
        scope: Analysis of subgraphs.
        attributes: Attributes of the function that contains the node; the node refers to them by name.
    """

    node: Node
    inputs: Sequence[Value | None]
    version: int
    algebra: Algebra
    scope: Scope
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def attribute(self, name: str) -> Attribute | None:
        """An attribute, or None if it is not given."""
        found = self.node.attribute(name)
        if found is not None and found.reference:
            return self.attributes.get(found.reference)
        return found

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.attribute(name)
        return default if found is None else found.integer()

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, or None."""
        found = self.attribute(name)
        return None if found is None else found.integers()

    def string(self, name: str, default: str = "") -> str:
        """A string attribute."""
        found = self.attribute(name)
        return default if found is None else found.string()

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        """A tensor input.

        Raises:
            Decision: The input is not a tensor.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Tensor):
            raise unproven(f"has an input {index} that the analysis does not support")
        return value

    def data(self, index: int) -> Tensor:
        """A tensor input that does not depend on the number of rows.

        Raises:
            Decision: The input is not a tensor or depends on the number of rows.
        """
        value = self.tensor(index)
        if value.counted:
            raise mixes("computes with the number of rows")
        return value

    def tensors(self, first: int = 0, last: int | None = None) -> list[Tensor]:
        """The given inputs of a range."""
        return [self.data(index) for index in range(first, len(self.inputs))[:last] if self.has(index)]

    def shared(self, *indices: int) -> None:
        """Check that inputs are the same for all rows.

        Raises:
            Decision: An input depends on the rows.
        """
        for index in indices:
            if self.has(index) and self.data(index).batch is not None:
                raise unproven(f"requires input {index} to be the same for all rows")

    def elements(self, index: int) -> Array | None:
        """Symbolic elements of an input that holds shapes or positions; None if unknown.

        Raises:
            Decision: The elements depend on the data of rows.
        """
        value = self.tensor(index)
        if value.batch is not None:
            raise mixes("reads a size from the data of the rows", ragged=True)
        return value.elements

    def listed(self, index: int, attribute: str) -> list[Element] | None:
        """A list of sizes or axes: an input in newer operator sets, an attribute in older ones.

        Returns:
            The list, or None if neither is given.

        Raises:
            Decision: The list is unknown.
        """
        if self.has(index):
            found = self.elements(index)
            if found is None:
                raise unproven(f"reads {attribute} from an input with unknown values")
            return listed(found)
        return None if (given := self.integers(attribute)) is None else list(given)

    def axes(self, index: int, rank: int, attribute: str = "axes") -> list[int] | None:
        """The axes that a node names, as non-negative numbers; None if it names none."""
        given = self.listed(index, attribute)
        return None if given is None else [self.axis_of(value, rank) for value in given]

    @staticmethod
    def axis_of(value: Element, rank: int) -> int:
        """An axis as a non-negative number.

        Raises:
            Decision: The tensor has no such axis.
        """
        if isinstance(value, Size | float) or not -rank <= value < rank:
            raise unproven(f"names axis {value if isinstance(value, int) else '?'} of a tensor of rank {rank}")
        return int(value) % rank

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """The axis of an attribute, as a non-negative number."""
        return self.axis_of(self.integer(name, default), rank)

    def make(self, shape: Sequence[Number], batch: Batch | None = None) -> Tensor:
        """Make a tensor, see ``tensor_of``."""
        return tensor_of(self.algebra, shape, batch)

    def all_shared(self) -> bool:
        """Whether no input depends on the rows."""
        return all(
            value is None
            or (isinstance(value, Tensor) and value.is_shared)
            or (isinstance(value, Listed) and all(item.is_shared for item in value.items))
            for value in self.inputs
        )

    @property
    def output_count(self) -> int:
        """Number of outputs of the node."""
        return len(self.node.outputs)


@dataclass(frozen=True, slots=True)
class Registered:
    """A rule and the kinds of values it supports besides plain tensors.

    Attributes:
        rule: Maps inputs to outputs.
        counts: Whether it supports sizes that depend on the number of rows.
        places: Whether it supports the index of a row.
        padded: Whether it supports rows padded to the longest row.
        failures: Whether it supports values on which another node has failed.
    """

    rule: Rule
    counts: bool
    places: bool
    padded: bool
    failures: bool


_GRAVITY = ["impossible", "mixed", "unknown"]
RULES: dict[tuple[str, str], Registered] = {}


def operator(
    *names: str,
    domain: str = "",
    counts: bool = False,
    places: bool = False,
    padded: bool = False,
    failures: bool = False,
) -> Callable[[AnyRule], AnyRule]:
    """Register a rule for operators."""

    def register(rule: AnyRule) -> AnyRule:
        for name in names:
            RULES[domain, name] = Registered(rule, counts, places, padded, failures)
        return rule

    return register


def unplain(call: Call, found: Registered) -> str:
    """The reason why a rule does not support an input, or an empty string."""
    for value in call.inputs:
        for tensor in value.items if isinstance(value, Listed) else (value,):
            if not isinstance(tensor, Tensor):
                continue
            if tensor.counted and not found.counts:
                return "computes with the number of rows"
            if tensor.places is not None and not found.places:
                return "computes with the position of a row in the batch"
            if tensor.padding is not None and not found.padded:
                return "uses rows padded to the longest row of the batch"
    return ""


def failure_of(values: Sequence[Value | None]) -> Failure | None:
    """The most severe failure among values: "impossible" first, then "mixed", then any other."""
    found = [value for value in values if isinstance(value, Failure)]
    return min(found, key=lambda value: _GRAVITY.index(value.finding), default=None)


def listed(elements: Array) -> list[Element]:
    """Elements as a flat list."""
    found: list[Element] = elements.ravel().tolist()
    return found


def any_counts(sizes: Sequence[object]) -> bool:
    """Whether one of the sizes depends on the number of rows."""
    return any(counts(size) for size in sizes)
