"""The proof itself: which inputs carry the batch, and whether every output has one block for each row."""

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
_PROVEN = "each row of the outputs depends on the same row of the inputs alone"


@dataclass(frozen=True)
class Proof:
    """Result of the analysis of a graph: are its rows independent?

    Attributes:
        verdict: "independent" where every row of the outputs is proven to depend on its row of the inputs alone,
            "mixed" where the rows are proven to meet or their number to change, "unknown" otherwise.
        input_axes: for each input the axis of the rows; None for one that all rows share.
        output_axes: for each output the axis of the rows, 0 for a sequence of maps; None for one that is the same
            whatever the rows are, and where nothing is proven.
        reason: a sentence that names the node that decides.
        node, op_type: that node, or two empty texts.
        nodes_walked: how many nodes were examined.
        defaults: inputs that are initializers too; the proof takes their values from the file.
        ragged_outputs: outputs whose shape, the rows apart, is proven to depend on the data of the rows.
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
        model: the file, or its bytes.
        shapes: shapes to take instead of the file's, by input; needed for inputs of unknown rank. A size is an
            integer, or a name or None where it is not known.

    Returns:
        The proof. A file that can't be read gives the verdict "unknown"; nothing is raised.
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
    """What is found where it is not likely that the axes carry the rows: then nothing is proven."""
    if 0 in found.input_axes.values() or found.verdict != "mixed":
        return found
    return replace(
        found,
        verdict="unknown",
        reason=f"no input has a first axis of any size; were its rows on another axis, {found.reason}",
    )


@dataclass
class _Case:
    """The graph under one assumption about the axes that carry the rows.

    Attributes:
        visits: how many nodes may still be walked.
    """

    model: ModelFile
    inputs: list[ValueInfo]
    axes: Axes
    defaults: frozenset[str]
    visits: int

    def prove(self, assumed: dict[int, bool]) -> Proof | None:
        """The proof where some conditions are assumed to hold or not; None where no run is possible then."""
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
                kind = "rank that is not known" if value.is_tensor else "type that is not followed"
                found[value.name] = Failure("unknown", "", "", f"input {value.name!r} is of a {kind}")
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
    """What holds in both cases of a condition that all rows share."""
    if first is None or second is None:
        return first or second
    if first.verdict != second.verdict:
        return min(first, second, key=lambda proof: _SEVERITY.index(proof.verdict))
    if first.output_axes != second.output_axes and first.verdict == "independent":
        return replace(first, verdict="unknown", reason="the batch is on one axis or another of an output")
    return replace(first, nodes_walked=first.nodes_walked + second.nodes_walked)


def _axis(value: Value) -> int | None:
    if isinstance(value, Maps):
        return 0
    return value.batch.axis if isinstance(value, Tensor) and value.batch is not None else None


def _is_ragged(value: Value) -> bool:
    return isinstance(value, Tensor) and not (value.padding is None and value.picked is None)


def _failure(scope: Scope, name: str, value: Value) -> Failure | None:
    """Why an output is not one row for each row of the inputs, or None."""
    if isinstance(value, Failure):
        return value
    verdict: Finding = "mixed"
    if isinstance(value, Maps) or (isinstance(value, Tensor) and (value.is_shared or value.is_plain)):
        return None
    if not isinstance(value, Tensor):
        verdict, reason = "unknown", f"gives the output {name!r} as a sequence"
    elif value.counted:
        reason = f"gives the number of rows as the output {name!r}"
    elif value.places is not None:
        reason = f"gives the output {name!r} by the position of each row in the batch"
    elif value.picked is not None:
        reason = f"gives the output {name!r} as many elements as the data of the rows say"
    elif value.padding is not None:
        reason = f"pads the output {name!r} to the longest row"
    elif value.batch is not None and is_known(value.batch.outer) and is_known(value.batch.inner):
        reason = f"gives the output {name!r} several rows for each row of the inputs"
    else:
        verdict, reason = "unknown", f"may give the output {name!r} several rows for each row of the inputs"
    maker = scope.makers.get(name)
    node, op_type = ("", "") if maker is None else (maker.name or name, maker.op_type)
    return Failure(verdict, node, op_type, reason, _is_ragged(value))
