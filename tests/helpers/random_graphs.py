"""Random graphs of many operators, some of them mixing rows. Each node is run once, so the graph is valid."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from helpers.random_operations import OPERATIONS, ROWS

_ELEMENT = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64,
            np.dtype(np.bool_): TensorProto.BOOL, np.dtype(np.uint8): TensorProto.UINT8}  # fmt: skip


class Maker:
    """A graph that grows node by node."""

    def __init__(self, draw, opset=17):
        self.draw, self.opset = draw, opset
        self.nodes, self.constants = [], {}
        self.values, self.inputs = {}, {}
        self.count = 0
        self.numbers = np.random.default_rng(draw.randrange(1 << 30))
        batch_axis = 1 if draw.random() < 0.15 else 0
        for name in ["x", "z"][: draw.choice([1, 1, 2])]:
            shape = [draw.choice([2, 3, 4]) for _ in range(draw.choice([1, 2, 2, 3]))]
            dims = [size if draw.random() < 0.7 else f"{name}{axis}" for axis, size in enumerate(shape)]
            place = min(batch_axis, len(shape))
            shape.insert(place, ROWS)
            dims.insert(place, "n")
            self.inputs[name] = dims
            self.values[name] = self.numbers.standard_normal(shape).astype(np.float32)

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def floats(self, *shape):
        return self.constant(self.numbers.standard_normal(shape).astype(np.float32))

    def ints(self, *values):
        return self.constant(np.array(values, np.int64))

    def value(self, kind="f", rank=None, least=0):
        found = [name for name, array in self.values.items()
                 if array.dtype.kind == kind and array.ndim >= least and rank in {None, array.ndim}]  # fmt: skip
        if not found:
            raise LookupError(kind)
        return self.draw.choice(found[-4:] if self.draw.random() < 0.7 else found)

    def shape(self, name):
        return self.values[name].shape if name in self.values else self.constants[name].shape

    def add(self, op_type, inputs, outputs=1, captured=(), **attributes):
        """Add a node, run it, and return the names of its outputs.

        Raises:
            ValueError: onnxruntime cannot run it.
        """
        domain = attributes.pop("domain", "")
        names = [self.name() for _ in range(outputs)]
        node = helper.make_node(op_type, inputs, names, name=f"{op_type}_{names[0]}", domain=domain, **attributes)
        used = [name for name in dict.fromkeys([*inputs, *captured]) if name]
        arrays = {name: self.values.get(name, self.constants.get(name)) for name in used}
        if any(array.size == 0 for array in arrays.values()):
            raise ValueError("onnxruntime's Scan crashes the process on empty inputs")
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(name, _ELEMENT[array.dtype], array.shape) for name, array in arrays.items()
             if name in self.values],
            [onnx.ValueInfoProto(name=name) for name in names],
            [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in self.constants],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=self.imports(), ir_version=9)
        try:
            session = ort.InferenceSession(model.SerializeToString(), _OPTIONS)
            found = session.run(None, {name: array for name, array in arrays.items() if name in self.values})
        except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds
            raise ValueError(str(error)) from None
        for array in found:
            if not isinstance(array, np.ndarray) or array.size > 3000 or array.ndim > 5 or array.dtype not in _ELEMENT:
                raise ValueError("not supported")
        self.nodes.append(node)
        self.values.update(zip(names, found, strict=True))
        return names[0] if outputs == 1 else names

    def imports(self):
        return [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]

    def model(self, outputs):
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node.input)
                for attribute in node.attribute:
                    for inner in attribute.g.node:
                        needed.update(inner.input)
        graph = helper.make_graph(
            kept[::-1],
            "random",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in self.inputs.items()],
            [
                helper.make_tensor_value_info(name, _ELEMENT[self.values[name].dtype], [None] * self.values[name].ndim)
                for name in outputs
            ],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in needed],
        )
        return helper.make_model(graph, opset_imports=self.imports(), ir_version=9).SerializeToString()


_OPTIONS = ort.SessionOptions()
_OPTIONS.intra_op_num_threads = _OPTIONS.inter_op_num_threads = 1
_OPTIONS.log_severity_level = 4


def random_graph(draw, steps):
    """A model as bytes, and the sizes of its inputs by (name, axis)."""
    make = Maker(draw)
    for _ in range(steps):
        before = len(make.nodes), dict(make.values)
        try:
            draw.choice(OPERATIONS)(make)
        except (ValueError, LookupError):
            del make.nodes[before[0] :]
            make.values = before[1]
    made = [name for name in make.values if name not in make.inputs]
    if not made:
        made = [make.add("Identity", ["x"])]
    outputs = list(dict.fromkeys([made[-1], *([draw.choice(made)] if draw.random() < 0.3 else [])]))
    sizes = {(name, axis): size for name in make.inputs for axis, size in enumerate(make.values[name].shape)}
    return make.model(outputs), sizes
