"""The walk over a graph: computes the outputs of each node by its rule, including subgraphs and functions."""

from collections.abc import Sequence

from app.runtime.independence import evaluate, operators
from app.runtime.independence.call import RULES, Call, Registered, failure_of, unplain
from app.runtime.independence.decisions import Decision, Finding
from app.runtime.independence.graph import Attribute, Function, Graph, ModelFile, Node
from app.runtime.independence.picked import any_picked, left_body
from app.runtime.independence.picked import outputs as outputs_of_picked
from app.runtime.independence.sizes import Algebra
from app.runtime.independence.values import SHARED, Failure, Listed, Maps, Tensor, Value, elements_of

_OLDEST = 7  # older operators broadcast by attributes; onnxruntime does not support them either
_MAX_DEPTH = 24
_BODY = 10
_MAX_VISITS = 100_000


class TooLargeError(ValueError):
    """The graph has more nodes, or deeper nesting, than the limit."""


class Walker:
    """Walks a model once, under one assumption about its inputs.

    Attributes:
        visited: Number of walked nodes; nodes of a loop body count once per walk.
    """

    def __init__(self, model: ModelFile, algebra: Algebra, visits: int = _MAX_VISITS) -> None:
        self._model = model
        self._algebra = algebra
        self._left = visits
        self.visited = 0

    def graph(self, inputs: dict[str, Value]) -> "Scope":
        """Walk the main graph."""
        scope = Scope(self, None, self._model.versions, {})
        scope.values.update(inputs)
        count = self._model.graph.node_count
        if count > self._left:
            raise TooLargeError(f"the graph has {count} nodes, above the limit of {self._left}")
        scope.constants(self._model.graph)
        scope.walk(self._model.graph.nodes)
        return scope

    def spend(self, cost: int, nodes: int = 1) -> None:
        """Count a node, or a body at the cost of several nodes.

        Raises:
            TooLargeError: The limit is exceeded.
        """
        self.visited += nodes
        self._left -= cost
        if self._left < 0:
            raise TooLargeError(f"the analysis stopped after {self.visited} nodes, its limit")

    def function(self, node: Node) -> Function | None:
        """The function that a node calls, if the model defines it."""
        if not self._model.functions:
            return None
        return self._model.functions.get((node.domain, node.op_type, node.overload)) or (
            self._model.functions.get(("ai.onnx", node.op_type, node.overload)) if not node.domain else None
        )

    @property
    def algebra(self) -> Algebra:
        """Arithmetic on the sizes of this walk."""
        return self._algebra


class Scope:
    """The values of a graph, a subgraph or a function's body."""

    def __init__(
        self,
        walker: Walker,
        outer: "Scope | None",
        versions: dict[str, int],
        attributes: dict[str, Attribute],
        *,
        depth: int = 0,
        isolated: bool = False,
    ) -> None:
        if depth > _MAX_DEPTH:
            raise TooLargeError(f"subgraphs or functions are nested more than {_MAX_DEPTH} deep")
        self.walker = walker
        self.values: dict[str, Value] = {}
        self.makers: dict[str, Node] = {}
        self._outer = outer
        self._versions = versions
        self._attributes = attributes
        self._depth = depth
        self._isolated = isolated
        self._absent: set[str] = set()

    def find(self, name: str) -> Value | None:
        """A value of this scope or of an enclosing one."""
        scope: Scope | None = self
        isolated = False
        while scope is not None:
            value = scope.values.get(name)
            if value is not None:
                return _from_outside(value) if isolated else value
            isolated = isolated or scope._isolated
            scope = scope._outer
        return None

    def constants(self, graph: Graph) -> None:
        """Add the initializers of a graph; existing values take precedence."""
        for constant in graph.constants:
            elements = constant.elements
            found = Tensor(constant.shape) if elements is None else elements_of(elements)
            self.values.setdefault(constant.name, found)

    def walk(self, nodes: Sequence[Node]) -> None:
        """Analyse nodes in order."""
        for node in nodes:
            self.walker.spend(1 + (len(node.inputs) + len(node.outputs)) // 4)
            results = self._outputs(node)
            for name, value in zip(node.outputs, results, strict=False):
                if not name:
                    continue
                taken = self.find(name) is not None
                self.values[name] = (
                    _failed(node, "unknown", f"makes {name!r}, which already exists") if taken else value
                )
                self.makers[name] = node

    def body(self, graph: Graph, inputs: Sequence[Value], *, isolated: bool = False) -> list[Value]:
        """The outputs of a subgraph. An isolated subgraph must not read rows from enclosing scopes."""
        self.walker.spend(_BODY, 0)
        scope = Scope(self.walker, self, self._versions, self._attributes, depth=self._depth + 1, isolated=isolated)
        names = [value.name for value in graph.inputs]
        if len(names) < len(inputs):
            raise ValueError(f"a subgraph has {len(names)} inputs, but gets {len(inputs)}")
        scope.values.update(zip(names, inputs, strict=False))
        scope.constants(graph)
        scope.walk(graph.nodes)
        return [left_body(scope.result(output.name)) for output in graph.outputs]

    def result(self, name: str) -> Value:
        """A value that must exist."""
        value = self.find(name)
        return (
            Failure("unknown", "", "", f"the value {name!r} is not made by any earlier node")
            if value is None
            else value
        )

    def _outputs(self, node: Node) -> list[Value]:
        inputs = [self.result(name) if name and name not in self._absent else None for name in node.inputs]
        function = self.walker.function(node)
        rule = RULES.get((node.domain, node.op_type))
        count = len(node.outputs)
        if function is not None:
            if rule is not None or not node.domain:
                return [_failed(node, "unknown", "is redefined by a function of the model")] * count
            return self._call(node, function, inputs)
        failed = failure_of(inputs)
        if rule is None:
            return [_failed(node, "unknown", "has an unknown operator")] * count
        if failed is not None and not rule.failures:
            return [failed] * count
        version = self._versions.get(node.domain, 1)
        if node.domain == "" and version < _OLDEST:
            return [_failed(node, "unknown", f"uses operator set {version}; at least {_OLDEST} is required")] * count
        call = Call(node, inputs, version, self.walker.algebra, self, self._attributes)
        return _outputs(call, rule)

    def _call(self, node: Node, function: Function, inputs: Sequence[Value | None]) -> list[Value]:
        attributes = dict(function.attributes)
        for name in function.attributes.keys() | set(function.names):
            given = node.attribute(name)
            if given is not None and given.reference:
                given = self._attributes.get(given.reference)
            if given is not None:
                attributes[name] = given
        scope = Scope(self.walker, None, function.versions or self._versions, attributes, depth=self._depth + 1)
        for name, value in zip(function.inputs, inputs, strict=False):
            if value is not None:
                scope.values[name] = value
        scope._absent = set(function.inputs) - set(scope.values)
        scope.walk(function.nodes)
        return [scope.result(name) for name in function.outputs]


def _outputs(call: Call, rule: Registered) -> list[Value]:
    node = call.node
    try:
        picked = any_picked(call.inputs)
        found = None if picked else evaluate.outputs(call)
        if found is not None:
            return [*found]
        refused = unplain(call, rule)
        if refused:
            return [_failed(node, "mixed", refused)] * len(node.outputs)
        result = outputs_of_picked(call, rule) if picked else rule.rule(call)
        values = [*result] if isinstance(result, Sequence) else [result]
        if len(values) < len(node.outputs):
            values += [_failed(node, "unknown", "has unknown outputs")] * (len(node.outputs) - len(values))
        return values
    except Decision as decision:
        if decision.finding == "unknown" and not rule.failures and call.all_shared():
            return [SHARED] * len(node.outputs)
        return [_failed(node, decision.finding, decision.reason, ragged=decision.ragged)] * len(node.outputs)
    except TooLargeError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return [_failed(node, "unknown", "has inputs or attributes that do not match its operator")] * len(node.outputs)


def _failed(node: Node, finding: Finding, reason: str, *, ragged: bool = False) -> Failure:
    return Failure(finding, node.name or (node.outputs[0] if node.outputs else ""), node.op_type, reason, ragged)


def _from_outside(value: Value) -> Value:
    """The view of an outer value from a body that runs once for each row."""
    if isinstance(value, Failure) or (isinstance(value, Tensor) and value.is_shared):
        return value
    if isinstance(value, Listed) and all(item.is_shared for item in value.items):
        return value
    return Failure("mixed", "", "Scan", "a loop over the rows reads all rows at once, or their number")


__all__ = ["Maps", "Scope", "TooLargeError", "Walker", "operators"]
