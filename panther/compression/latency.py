"""Measured latency of products and convolutions in onnxruntime on this machine, each kind and shape once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from panther.compression.options import INT4, INT8, Convolved, Option, Product
from panther.export import ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner

_BUDGET_S = 0.06
_MEASURED: dict[tuple[Product | Convolved, tuple[int, ...], int], float] = {}


@dataclass(frozen=True)
class Stopwatch:
    """Measures products; results are cached within the process.

    Attributes:
        threads: of the CPU.
        calls: by the name of a layer, the shape of x in each of its calls in one run of the model.
    """

    threads: int
    calls: Mapping[str, list[tuple[int, ...]]]

    def option_us(self, name: str, option: Option) -> float:
        """Microseconds that an option of a layer takes in one run of the model."""
        return sum(self.product_us(product, shape) for shape in self.calls.get(name, []) for product in option.products)

    def product_us(self, product: Product | Convolved, shape: tuple[int, ...]) -> float:
        """Median microseconds of one product, or of the convolutions of a layer, for an input of the layer."""
        if isinstance(product, Product):
            shape = (math.prod(shape[:-1]), product.in_features)
        key = (product, shape, self.threads)
        if key not in _MEASURED:
            target = Target("cpu", self.threads)
            random = np.random.default_rng(0)
            feeds = {"x": random.standard_normal(shape).astype(np.float32)}
            made = graph(product, random) if isinstance(product, Product) else convolutions(product, random)
            session = ort.load(made.SerializeToString(), target)
            run = runner(session, feeds, target)
            _MEASURED[key] = median_us({"product": run}, budget_s=_BUDGET_S, clock=clock_of(target))["product"]
        return _MEASURED[key]


def graph(product: Product, random: np.random.Generator) -> onnx.ModelProto:
    """A model of one product with a bias, as an export writes it, of random weights."""
    d_in, d_out = product.in_features, product.out_features
    bias = numpy_helper.from_array(np.zeros(d_out, np.float32), "bias")
    if product.kind == INT8:
        constants: dict[str, Any] = {
            "weight": random.integers(-60, 60, (d_in, d_out), dtype=np.int8),
            "scale": np.float32(0.02),
            "zero_point": np.uint8(128),
            "columns": np.full(d_out, 0.01, np.float32),
            "zeros": np.zeros(d_out, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["s" if product.smoothed else "x", "scale", "zero_point"], ["q"]),
            helper.make_node(
                "MatMulIntegerToFloat",
                ["q", "weight", "scale", "columns", "zero_point", "zeros", "bias"],
                ["y"],
                domain="com.microsoft",
            ),
        ]
        if product.smoothed:
            constants["smoothing"] = np.ones(d_in, np.float32)
            nodes.insert(0, helper.make_node("Mul", ["x", "smoothing"], ["s"]))
    elif product.block_size:
        constants, nodes = _in_blocks(product, random)
    else:
        constants = {"weight": random.standard_normal((d_in, d_out)).astype(np.float32)}
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("Add", ["h", "bias"], ["y"])]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    return _model(nodes, [*initializers, bias], {"x": ["rows", d_in], "y": ["rows", d_out]})


def convolutions(layer: Convolved, random: np.random.Generator) -> onnx.ModelProto:
    """A model of convolutions in sequence with a bias, of random weights."""
    nodes, initializers, value = [], [], "x"
    for i, step in enumerate(layer.steps):
        weight = random.standard_normal(step.weight).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"weight{i}"))
        inputs, output = [value, f"weight{i}"], "y" if i == len(layer.steps) - 1 else f"h{i}"
        if output == "y":
            initializers.append(numpy_helper.from_array(np.zeros(step.weight[0], np.float32), "bias"))
            inputs.append("bias")
        attributes: dict[str, Any] = {
            "strides": step.stride,
            "dilations": step.dilation,
            "pads": step.pads,
            "group": step.groups,
            "kernel_shape": step.weight[2:],
        }
        nodes.append(helper.make_node("Conv", inputs, [output], **attributes))
        value = output
    sizes = [f"size{axis}" for axis in range(len(layer.steps[0].stride))]
    d_in = layer.steps[0].weight[1] * layer.steps[0].groups
    ends = {"x": ["rows", d_in, *sizes], "y": ["rows", layer.steps[-1].weight[0], *(f"out_{name}" for name in sizes)]}
    return _model(nodes, initializers, ends)


def _model(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[onnx.TensorProto], shapes: Mapping[str, list[Any]]
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    made = helper.make_graph(nodes, "product", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _in_blocks(product: Product, random: np.random.Generator) -> tuple[dict[str, Any], list[onnx.NodeProto]]:
    """Constants and node of a product by a weight in blocks with zero points."""
    bits, size, d_out = 4 if product.kind == INT4 else 8, product.block_size, product.out_features
    blocks = -(-product.in_features // size)
    constants = {
        "weight": random.integers(0, 255, (d_out, blocks, size * bits // 8), dtype=np.uint8),
        "scales": np.full((d_out, blocks), 0.01, np.float32),
        "zero_points": random.integers(0, 255, (d_out, -(-blocks * bits // 8)), dtype=np.uint8),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weight", "scales", "zero_points", "", "bias"],
        ["y"],
        domain="com.microsoft",
        K=product.in_features,
        N=d_out,
        bits=bits,
        block_size=size,
        accuracy_level=4 if product.rounded else 1,
    )
    return constants, [node]
