"""If, Scan and Loop for ``random_operations``."""

import numpy as np
import onnx
from onnx import TensorProto, helper


def branch(make):
    name = make.value()
    test = make.draw.choice(["shared", "rows", "size", "known"])
    if test == "rows":
        total = make.add("ReduceSum", [name], keepdims=0)
        condition = make.add("Greater", [total, make.constant(np.float32(0))])
    elif test == "size":
        size = make.add("Size", [name])
        condition = make.add("Greater", [size, make.constant(np.int64(30))])
    elif test == "shared":
        total = make.add("ReduceSum", [make.floats(3)], keepdims=0)
        condition = make.add("Greater", [total, make.constant(np.float32(0))])
    else:
        condition = make.constant(np.bool_(make.draw.random() < 0.5))
    other = make.draw.choice([name, make.value()])
    graphs = {}
    for key, op_type, source in (
        ("then_branch", "Neg", name),
        ("else_branch", make.draw.choice(["Relu", "Identity"]), other),
    ):
        out = make.name()
        graphs[key] = helper.make_graph(
            [helper.make_node(op_type, [source], [out])], key, [], [onnx.ValueInfoProto(name=out)]
        )
    make.add("If", [condition], captured=[name, other], **graphs)


def scan(make):
    """A sum over an axis, or a combination of each element with a constant."""
    name = make.value(least=2)
    axis = make.draw.randrange(len(make.shape(name)))
    shape = [size for place, size in enumerate(make.shape(name)) if place != axis]
    state_in, part, state_out, given = (make.name() for _ in range(4))
    carries = make.draw.random() < 0.5
    body = helper.make_graph(
        [
            helper.make_node(
                "Add" if carries else "Identity", [state_in, part] if carries else [state_in], [state_out]
            ),
            helper.make_node("Add", [state_in, part], [given]),
        ],
        "body",
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in (state_in, part)],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in (state_out, given)],
    )
    first = make.floats(*shape) if make.draw.random() < 0.5 else make.add("ReduceMax", [name], axes=[axis], keepdims=0)
    make.add("Scan", [first, name], outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[axis],
             scan_output_axes=[make.draw.choice([0, axis])])  # fmt: skip


def loop(make):
    name = make.value()
    number, going, state, going_out, state_out, given = (make.name() for _ in range(6))
    other = make.draw.choice([name, make.value(), make.floats()])
    body = helper.make_graph(
        [
            helper.make_node("Identity", [going], [going_out]),
            helper.make_node(make.draw.choice(["Add", "Mul"]), [state, other], [state_out]),
            helper.make_node("Tanh", [state_out], [given]),
        ],
        "body",
        [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info(going_out, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state_out, TensorProto.FLOAT, None),
            helper.make_tensor_value_info(given, TensorProto.FLOAT, None),
        ],
    )
    if make.draw.random() < 0.3:
        trips = make.add("Squeeze", [make.add("Shape", [make.value(least=1)], start=0, end=1)])
    else:
        trips = make.constant(np.int64(2))
    make.add("Loop", [trips, make.constant(np.bool_(1)), name], outputs=2, captured=[other], body=body)
