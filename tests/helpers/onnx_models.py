"""Hand-made ONNX models for tests of the server."""

import onnx
from onnx import helper


def onnx_model(
    nodes: list, inputs: list, outputs: list, constants: list | None = None, *, valid: bool = True
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        constants or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if valid:
        onnx.checker.check_model(model)
    return model
