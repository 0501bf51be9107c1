"""Graphs that are not what was planned must be caught; the proof that the guard sees anything at all."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from panther.export.errors import ExportError
from panther.export.graph.lower import DENSE, TWO_PRODUCTS, find_sites, lower
from panther.export.graph.trace import trace
from panther.export.ort import Target, optimized_graph
from panther.export.verify import guard
from panther.nn import SKLinear


def sites_of(model, x):
    graph = trace(model, {"x": x}, by_name=False, output_names=["y"], dynamic_axes={"x": {0: "b"}})
    return graph, find_sites(graph)


@pytest.fixture
def layer():
    return sites_of(SKLinear(64, 48, 1, 8), torch.randn(4, 64))


def product_graph(*shapes, extra=(), constants=()):
    """x @ W₁ @ W₂ …, as onnxruntime would have it."""
    nodes, value = [], "x"
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), f"w{i}") for i, shape in enumerate(shapes)]
    for index, weight in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [value, weight.name], [f"h{index}"]))
        value = f"h{index}"
    elem = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [*nodes, *extra],
        "g",
        [helper.make_tensor_value_info("x", elem, ["b", shapes[0][0]])],
        [helper.make_tensor_value_info(value, elem, ["b", shapes[-1][1]])],
        [*weights, *constants],
    )
    return helper.make_model(graph)


def test_what_was_planned_passes(layer):
    _, sites = layer
    guard.check_graph(product_graph((64, 16), (16, 48)), sites, {"SKLinear": TWO_PRODUCTS}, Counter())
    guard.check_graph(product_graph((64, 48)), sites, {"SKLinear": DENSE}, Counter())


def test_a_densified_weight_is_caught(layer):
    _, sites = layer
    with pytest.raises(ExportError, match=r"layer 'SKLinear': .* has 0 products by constants of shape \(64, 16\)"):
        guard.check_graph(product_graph((64, 48)), sites, {"SKLinear": TWO_PRODUCTS}, Counter())


def test_a_dense_matrix_beside_the_factors_is_caught_unless_the_model_has_its_own():
    model = nn.Sequential(SKLinear(64, 64, 1, 8), nn.ReLU())
    _, sites = sites_of(model, torch.randn(4, 64))
    doctored = product_graph((64, 16), (16, 64), (64, 64))
    with pytest.raises(ExportError, match="folded its factors into a dense 64x64 matrix; nothing was written"):
        guard.check_graph(doctored, sites, {"0": TWO_PRODUCTS}, Counter())
    guard.check_graph(doctored, sites, {"0": TWO_PRODUCTS}, Counter({(64, 64): 1}))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_product_is_caught(missing, layer):
    _, sites = layer
    shape = [(64, 16), (16, 48)][1 - missing]
    gone = r"\(64, 16\)" if missing == 0 else r"\(16, 48\)"
    with pytest.raises(ExportError, match=f"has 0 products by constants of shape {gone}, but 1 were planned"):
        guard.check_graph(product_graph(shape), sites, {"SKLinear": TWO_PRODUCTS}, Counter())


def test_unpacking_at_every_run_is_caught(layer):
    _, sites = layer
    bits = numpy_helper.from_array(np.zeros((4, 1), np.uint8), "bits")
    masks = numpy_helper.from_array(np.zeros(8, np.uint8), "masks")
    unpack = helper.make_node("BitwiseAnd", ["bits", "masks"], ["u"], name="unpack")
    graph = product_graph((64, 16), (16, 48), extra=[unpack], constants=[bits, masks])
    with pytest.raises(ExportError, match="computes constants again at every run: BitwiseAnd 'unpack'"):
        guard.check_graph(graph, sites, {"SKLinear": TWO_PRODUCTS}, Counter())


def test_the_trap_itself_is_caught(layer, tmp_path):
    """A graph that multiplies the constants first: onnxruntime folds it into the dense W, and the guard sees it."""
    graph, sites = layer
    plans = {"SKLinear": TWO_PRODUCTS}
    lower(graph, sites, plans, fold=True)
    x_A, h_B = (node for node in graph.model.graph if node.op_type == "MatMul")
    A, B = x_A.inputs[1], h_B.inputs[1]
    x_A.replace_input_with(0, A)
    x_A.replace_input_with(1, B)
    h_B.replace_input_with(0, graph.model.graph.inputs[0])
    h_B.replace_input_with(1, x_A.outputs[0])
    x_A.outputs[0].shape = None
    ir.save(graph.model, tmp_path / "trap.onnx")
    optimized = optimized_graph(tmp_path / "trap.onnx", Target())
    assert guard.product_shapes(optimized.graph) == {(64, 48): 1}
    with pytest.raises(ExportError, match="layer 'SKLinear'"):
        guard.check_graph(optimized, sites, plans, Counter())


class Other(nn.Module):
    """Linear layers of its own beside a sketched one, of the same and of the transposed shape."""

    def __init__(self):
        super().__init__()
        self.sketched, self.same, self.back = SKLinear(64, 48, 1, 8), nn.Linear(64, 48), nn.Linear(48, 64)

    def forward(self, x):
        return self.sketched(x) + self.same(x) + self.same(self.back(self.same(x)).relu())


def test_the_models_own_products_are_known_with_their_orientation(tmp_path):
    graph, sites = sites_of(Other(), torch.randn(4, 64))
    others = guard.constant_products(graph.model.graph)
    assert others == {(64, 48): 1, (48, 64): 1}
    plans = {"sketched": TWO_PRODUCTS}
    lower(graph, sites, plans, fold=True)
    ir.save(graph.model, tmp_path / "m.onnx")
    guard.check_graph(optimized_graph(tmp_path / "m.onnx", Target()), sites, plans, others)


def test_products_in_branches_and_of_eight_bits_are_counted():
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "then", [], [])
    attributes = {"K": 64, "N": 48}
    graph = helper.make_graph(
        [
            helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
            helper.make_node("MatMulNBits", ["x", "q", "s"], ["v"], domain="com.microsoft", **attributes),
            helper.make_node("Gemm", ["x", "t"], ["u"], transB=1),
        ],
        "g",
        [],
        [],
        [
            numpy_helper.from_array(np.ones((3, 5), np.float32), "w"),
            numpy_helper.from_array(np.ones((7, 2), np.float32), "t"),
        ],
    )
    assert guard.product_shapes(graph) == {(3, 5): 1, (64, 48): 1, (2, 7): 1}
