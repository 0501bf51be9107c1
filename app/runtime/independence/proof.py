"""The proof: which inputs carry the batch, and whether every output has one block per row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.runtime.independence.assumptions import Axes, assumptions, no_axis, refusal
from app.runtime.independence.call import failure_of
from app.runtime.independence.decisions import Finding, Fork, Verdict
from app.runtime.independence.graph import ModelFile, ValueInfo, read_model
from app.runtime.independence.reader import whole
from app.runtime.independence.sizes import Algebra, Number, is_known
from app.runtime.independence.values import Batch, Failure, Maps, Tensor, Value
from app.runtime.independence.walk import Scope, TooLargeError, Walker

Shape = tuple[int | str | None, ...]
_MAX_VISITS = 100_000
_SEVERITY: list[Verdict] = ["mixed", "unknown", "independent"]
_PROVEN = "each row of the outputs depends only on the same row of the inputs"


@dataclass(frozen=True)
class Proof:
    """Result of the analysis of a graph.

    Attributes:
        verdict: "independent" if every output row is proven to depend only on its input row,
            "mixed" if rows are proven to be combined or their number to change, "unknown" otherwise.
        input_axes: The axis of the rows for each input; None for an input that all rows share.
        output_axes: The axis of the rows for each output, 0 for a sequence of maps; None for an output that is the same
            for all rows, and if nothing is proven.
        reason: A sentence that names the deciding node, or an output.
        node, op_type: The deciding node, or two empty strings.
        nodes_walked: Number of examined nodes.
        defaults: Inputs that are also initializers; the proof takes their values from the file.
        ragged_outputs: Outputs with a shape that is proven to depend on the data of the rows.
    """

    verdict: Verdict
    input_axes: dict[str, int | None] = field(default_factory=dict)
    output_axes: dict[str, int | None] = field(default_factory=dict)
    reason: str = _PROVEN
    node: str = ""
    op_type: str = ""
    nodes_walked: int = 0
    defaults: frozenset[str] = frozenset()
    ragged_outputs: frozenset[str] = frozenset()


def prove(model: str | Path | bytes, shapes: Mapping[str, Shape] | None = None) -> Proof:
    """Prove from the graph of an ONNX file that its rows are independent, or find the node that mixes them.

    Args:
        model: The file, or its bytes.
        shapes: Shapes that override those of the file, by input; required for inputs of unknown rank. A size is an
            integer, or a name or None if it is unknown.

    Returns:
        The proof. An unreadable file gives the verdict "unknown"; nothing is raised.
    """
    try:
        if isinstance(model, bytes):
            return _prove(read_model(whole(model)), shapes or {})
        with Path(model).open("rb", buffering=0) as file:
            return _prove(read_model(whole(file)), shapes or {})
    except OSError as error:
        return Proof("unknown", reason=f"the graph can't be read: {error.strerror}")
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        return Proof("unknown", reason=f"the graph can't be read: {error}")


def _prove(model: ModelFile, shapes: Mapping[str, Shape]) -> Proof:
    constants = {constant.name for constant in model.graph.constants}
    inputs = [
        ValueInfo(value.name, shapes.get(value.name, value.shape), value.is_tensor)
        for value in model.graph.inputs
        if value.name not in constants
    ]
    defaults = frozenset(value.name for value in model.graph.inputs if value.name in constants)
    first: Proof | None = None
    visits, refused = _MAX_VISITS, ""
    for axes in assumptions(inputs):
        refused = refusal(inputs, axes)
        if refused:
            continue
        case = _Case(model, inputs, axes, defaults, visits)
        found = case.prove({}) or Proof("unknown", axes, reason="no run of the graph is possible", defaults=defaults)
        if found.verdict == "independent":
            return found
        first = first or _tempered(found)
        visits = case.visits
        if visits < 0:
            break
    return first or Proof(
        "unknown", {value.name: None for value in inputs}, reason=refused or no_axis(inputs), defaults=defaults
    )


def _tempered(found: Proof) -> Proof:
    """Weaken a "mixed" result to "unknown" if the assumed row axes are not plausible."""
    if 0 in found.input_axes.values() or found.verdict != "mixed":
        return found
    return replace(
        found,
        verdict="unknown",
        reason=f"no input has a first axis of variable size; with the rows on another axis, {found.reason}",
    )


@dataclass
class _Case:
    """The graph under one assumption about the axes that carry the rows.

    Attributes:
        visits: Number of nodes that may still be walked.
    """

    model: ModelFile
    inputs: list[ValueInfo]
    axes: Axes
    defaults: frozenset[str]
    visits: int

    def prove(self, assumed: dict[int, bool]) -> Proof | None:
        """The proof under the given truth values of conditions; None if no run is possible under them."""
        algebra = Algebra(assumed=assumed)
        walker = Walker(self.model, algebra, self.visits)
        try:
            scope = walker.graph(self._given(algebra))
        except TooLargeError as error:
            return Proof("unknown", self.axes, reason=str(error), nodes_walked=walker.visited, defaults=self.defaults)
        except Fork as fork:
            cases = [self.prove({**assumed, fork.atom: holds}) for holds in (True, False)]
            return _both(*cases)
        finally:
            self.visits -= walker.visited
        return self._judge(scope, walker)

    def _given(self, algebra: Algebra) -> dict[str, Value]:
        names: dict[str, Number] = {}
        found: dict[str, Value] = {}
        for value in self.inputs:
            if value.shape is None:
                kind = "unknown rank" if value.is_tensor else "an unsupported type"
                found[value.name] = Failure("unknown", "", "", f"input {value.name!r} has {kind}")
                continue
            axis = self.axes[value.name]
            shape: list[Number] = []
            for place, size in enumerate(value.shape):
                if place == axis:
                    shape.append(algebra.rows)
                elif isinstance(size, str):
                    shape.append(names.setdefault(size, algebra.fresh()))
                else:
                    shape.append(algebra.fresh() if size is None else size)
            found[value.name] = Tensor(tuple(shape), None if axis is None else Batch(axis))
        return found

    def _judge(self, scope: Scope, walker: Walker) -> Proof | None:
        values = {output.name: scope.result(output.name) for output in self.model.graph.outputs}
        failures = {name: _failure(scope, name, value) for name, value in values.items()}
        worst = failure_of([*failures.values()])
        if worst is not None and worst.finding == "impossible":
            return None
        output_axes = {name: None if failures[name] is not None else _axis(value) for name, value in values.items()}
        found = Proof("independent", self.axes, output_axes, nodes_walked=walker.visited, defaults=self.defaults)
        if not values:
            return replace(found, verdict="unknown", reason="the graph has no outputs")
        if worst is None:
            return found
        what = f"node {worst.node!r} " if worst.node else f"a node of type {worst.op_type} " if worst.op_type else ""
        return replace(
            found,
            verdict="mixed" if worst.finding == "mixed" else "unknown",
            reason=what + worst.reason,
            node=worst.node,
            op_type=worst.op_type,
            ragged_outputs=frozenset(
                name for name, failure in failures.items() if failure is not None and failure.ragged
            ),
        )


def _both(first: Proof | None, second: Proof | None) -> Proof | None:
    """Combine the proofs of both cases of a condition that all rows share."""
    if first is None or second is None:
        return first or second
    if first.verdict != second.verdict:
        return min(first, second, key=lambda proof: _SEVERITY.index(proof.verdict))
    if first.output_axes != second.output_axes and first.verdict == "independent":
        name = next(name for name, axis in first.output_axes.items() if axis != second.output_axes.get(name))
        return replace(first, verdict="unknown", reason=f"the batch axis of output {name!r} depends on a condition")
    return replace(first, nodes_walked=first.nodes_walked + second.nodes_walked)


def _axis(value: Value) -> int | None:
    if isinstance(value, Maps):
        return 0
    return value.batch.axis if isinstance(value, Tensor) and value.batch is not None else None


def _is_ragged(value: Value) -> bool:
    return isinstance(value, Tensor) and not (value.padding is None and value.picked is None)


def _failure(scope: Scope, name: str, value: Value) -> Failure | None:
    """The reason why an output does not have one row per input row, or None."""
    if isinstance(value, Failure):
        return value
    verdict: Finding = "mixed"
    if isinstance(value, Maps) or (isinstance(value, Tensor) and (value.is_shared or value.is_plain)):
        return None
    if not isinstance(value, Tensor):
        verdict, reason = "unknown", f"returns the output {name!r} as a sequence"
    elif value.counted:
        reason = f"returns the number of rows as the output {name!r}"
    elif value.places is not None:
        reason = f"computes the output {name!r} by the position of each row in the batch"
    elif value.picked is not None:
        reason = f"computes an output {name!r} whose number of elements depends on the data of the rows"
    elif value.padding is not None:
        reason = f"pads the output {name!r} to the longest row"
    elif value.batch is not None and is_known(value.batch.outer) and is_known(value.batch.inner):
        reason = f"returns several rows in the output {name!r} for each row of the inputs"
    else:
        verdict, reason = "unknown", f"may return several rows in the output {name!r} for each row of the inputs"
    maker = scope.makers.get(name)
    node, op_type = ("", "") if maker is None else (maker.name or name, maker.op_type)
    return Failure(verdict, node, op_type, reason, _is_ragged(value))
