"""ONNX models from text: `graph("float[n,4] x", "y = MatMul(x, w)", w=(4, 3))`."""

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper


def graph(inputs, body, *, outputs="y", opset=17, **constants):
    """A model of nodes in the syntax of onnx.parser.

    Constants: a tuple is the shape of random numbers, a list the values of an int64 tensor, an array itself.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for name, value in constants.items():
        if isinstance(value, tuple):
            arrays[name] = rng.standard_normal(value).astype(np.float32)
        else:
            arrays[name] = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
    parsed = onnx.parser.parse_graph(f"g ({inputs}) => () {{ {body} }}")
    made = helper.make_graph(
        parsed.node,
        "g",
        parsed.input,
        [onnx.ValueInfoProto(name=name.strip()) for name in outputs.split(",")],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    return helper.make_model(made, opset_imports=imports, ir_version=9)
