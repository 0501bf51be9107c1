"""Measured latency of products in onnxruntime on this machine, each kind and shape once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from panther.compression.options import INT4, INT8, Option, Product
from panther.export import ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner

_BUDGET_S = 0.06
_MEASURED: dict[tuple[Product, int, int], float] = {}


@dataclass(frozen=True)
class Stopwatch:
    """Measures products; results are cached within the process.

    Attributes:
        threads: of the CPU.
        rows: by the name of a layer, of its calls in one run of the model.
    """

    threads: int
    rows: Mapping[str, list[int]]

    def option_us(self, name: str, option: Option) -> float:
        """Microseconds that an option of a layer takes in one run of the model."""
        return sum(self.product_us(product, rows) for rows in self.rows.get(name, []) for product in option.products)

    def product_us(self, product: Product, rows: int) -> float:
        """Median microseconds of one product."""
        key = (product, rows, self.threads)
        if key not in _MEASURED:
            target = Target("cpu", self.threads)
            random = np.random.default_rng(0)
            feeds = {"x": random.standard_normal((rows, product.in_features)).astype(np.float32)}
            session = ort.load(graph(product, random).SerializeToString(), target)
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
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in (("x", d_in), ("y", d_out))
    ]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "product", ends[:1], ends[1:], [*initializers, bias])
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
