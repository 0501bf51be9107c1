"""If, Loop, Scan and functions of the model: what their bodies take from around them, and what they carry."""

import numpy as np
import onnx
import pytest
from graph_text import graph
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def body(nodes, inputs=(), outputs=(), constants=()):
    return helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(name, kind, None if kind == FLOAT else []) for name, kind in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )


def model(nodes, inputs, outputs, opset=17, **constants):
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


X = ("x", FLOAT, ["n", 4])
NODE = helper.make_node


def if_node(condition, then, otherwise, **options):
    return NODE(
        "If",
        [condition],
        ["y"],
        then_branch=body(then, outputs=["a"], **options),
        else_branch=body(otherwise, outputs=["b"], **options),
    )


def test_if_by_a_shared_input(judge):
    nodes = [if_node("z", [NODE("Relu", ["x"], ["a"])], [NODE("Neg", ["x"], ["b"])])]
    proof = judge(model(nodes, [X, ("z", BOOL, [])], ["y"]))
    assert (proof.verdict, proof.input_axes) == ("independent", {"x": 0, "z": None})


def test_if_by_the_data_of_the_rows(judge):
    nodes = [
        NODE("ReduceMax", ["x"], ["m"], keepdims=0),
        NODE("Greater", ["m", "zero"], ["c"]),
        if_node("c", [NODE("Relu", ["x"], ["a"])], [NODE("Neg", ["x"], ["b"])]),
    ]
    proof = judge(model(nodes, [X], ["y"], zero=np.float32(0)))
    assert (proof.verdict, proof.op_type) == ("mixed", "If")
    assert "chooses by a value computed from all rows" in proof.reason


def test_if_by_the_number_of_rows(judge):
    nodes = [
        NODE("Size", ["x"], ["s"]),
        NODE("Greater", ["s", "four"], ["c"]),
        if_node("c", [NODE("Relu", ["x"], ["a"])], [NODE("Neg", ["x"], ["b"])]),
    ]
    proof = judge(model(nodes, [X], ["y"], four=np.int64(4)))
    assert proof.verdict == "mixed"
    assert "chooses by the number of rows" in proof.reason


def test_if_whose_branches_leave_the_rows_on_different_axes(judge):
    nodes = [if_node("z", [NODE("Relu", ["x"], ["a"])], [NODE("Transpose", ["x"], ["b"])])]
    proof = judge(model(nodes, [X, ("z", BOOL, [])], ["y"]))
    assert proof.verdict == "unknown"
    assert "different axes" in proof.reason


def test_if_of_which_only_one_branch_mixes(judge):
    nodes = [if_node("z", [NODE("Relu", ["x"], ["a"])], [NODE("Softmax", ["x"], ["b"], axis=0)])]
    proof = judge(model(nodes, [X, ("z", BOOL, [])], ["y"]))
    assert (proof.verdict, proof.op_type) == ("mixed", "Softmax")


def test_if_by_a_size_that_is_known(judge):
    nodes = [
        NODE("Shape", ["x"], ["s"], start=1),
        NODE("Squeeze", ["s"], ["d"]),
        NODE("Equal", ["d", "four"], ["c"]),
        if_node("c", [NODE("Relu", ["x"], ["a"])], [NODE("Softmax", ["x"], ["b"], axis=0)]),
    ]
    assert judge(model(nodes, [X], ["y"], four=np.int64(4))).verdict == "independent"


@pytest.mark.parametrize("steps", [1, 3])
def test_torch_squeeze_as_an_if_on_the_length(judge, steps):
    """Without squeeze() the LSTM gets four axes and is refused: the other case decides."""
    nodes = [
        NODE("Shape", ["x"], ["s"], start=2),
        NODE("Squeeze", ["s"], ["d"]),
        NODE("Equal", ["d", "one"], ["c"]),
        NODE(
            "If",
            ["c"],
            ["q"],
            then_branch=body([NODE("Squeeze", ["x", "axis"], ["a"])], outputs=["a"]),
            else_branch=body([NODE("Identity", ["x"], ["b"])], outputs=["b"]),
        ),
        NODE("Unsqueeze", ["q", "zero"], ["u"]),
        NODE("LSTM", ["u", "w", "r"], ["y", "h"], hidden_size=2),
    ]
    rng = np.random.default_rng(0)
    made = model(
        nodes,
        [("x", FLOAT, ["n", 3, "t"])],
        ["h"],
        one=np.int64(1),
        axis=np.array([2]),
        zero=np.array([0]),
        w=rng.standard_normal((1, 8, 3)).astype(np.float32),
        r=rng.standard_normal((1, 8, 2)).astype(np.float32),
    )
    proof = judge(made, sizes={"t": steps}, runs=steps == 1)
    assert (proof.verdict, proof.output_axes) == ("independent", {"h": 1})


def loop(step, trips="trips", going="true"):
    inner = body(
        [NODE("Identity", ["going"], ["going_on"]), *step],
        [("i", INT64), ("going", BOOL), ("state", FLOAT)],
        ["going_on", "after", "given"],
    )
    return NODE("Loop", [trips, going, "x"], ["y", "z"], body=inner)


LOOP = {"trips": np.int64(3), "true": np.ones((), bool)}


def test_loop_over_steps_that_all_rows_share(judge):
    nodes = [loop([NODE("Tanh", ["state"], ["after"]), NODE("Add", ["after", "x"], ["given"])])]
    proof = judge(model(nodes, [X], ["y", "z"], **LOOP))
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0, "z": 1})


def test_loop_that_mixes_in_its_second_round(judge):
    """The state is turned each round, so that the softmax comes over the rows at last."""
    nodes = [loop([NODE("Transpose", ["state"], ["after"]), NODE("Softmax", ["state"], ["given"], axis=1)])]
    assert judge(model(nodes, [X], ["y", "z"], **LOOP)).verdict != "independent"


def test_loop_that_carries_the_sum_of_the_rows(judge):
    nodes = [
        loop(
            [
                NODE("ReduceSum", ["state", "zero"], ["m"]),
                NODE("Sub", ["state", "m"], ["after"]),
                NODE("Neg", ["x"], ["given"]),
            ]
        )
    ]
    proof = judge(model(nodes, [X], ["y"], zero=np.array([0]), **LOOP))
    assert (proof.verdict, proof.op_type) == ("mixed", "ReduceSum")


def test_loop_as_often_as_there_are_rows(judge):
    nodes = [
        NODE("Shape", ["x"], ["s"], end=1),
        NODE("Squeeze", ["s"], ["count"]),
        loop([NODE("Tanh", ["state"], ["after"]), NODE("Neg", ["x"], ["given"])], trips="count"),
    ]
    proof = judge(model(nodes, [X], ["y"], **LOOP))
    assert proof.verdict == "mixed"
    assert "repeats by the number of rows" in proof.reason


def test_loop_that_grows_its_state(judge):
    nodes = [loop([NODE("Concat", ["state", "x"], ["after"], axis=1), NODE("Neg", ["x"], ["given"])])]
    assert judge(model(nodes, [X], ["y"], **LOOP)).verdict == "independent"


def test_loop_that_ends_by_the_data(judge):
    inner = body(
        [
            NODE("Tanh", ["state"], ["after"]),
            NODE("ReduceMax", ["after"], ["m"], keepdims=0),
            NODE("Less", ["m", "half"], ["going_on"]),
        ],
        [("i", INT64), ("going", BOOL), ("state", FLOAT)],
        ["going_on", "after"],
    )
    nodes = [NODE("Loop", ["trips", "true", "x"], ["y"], body=inner)]
    proof = judge(model(nodes, [X], ["y"], half=np.float32(0.5), **LOOP))
    assert (proof.verdict, proof.op_type) == ("mixed", "Loop")


def scan(step, axis, outer="", **options):
    inner = body(step, [("state", FLOAT), ("part", FLOAT)], ["after", "given"])
    return NODE("Scan", ["first", "x"], ["last", "y"], body=inner, num_scan_inputs=1, scan_input_axes=[axis], **options)


SUMS = [NODE("Add", ["state", "part"], ["after"]), NODE("Tanh", ["after"], ["given"])]
APART = [NODE("Identity", ["state"], ["after"]), NODE("Sub", ["part", "state"], ["given"])]


def test_scan_over_steps(judge):
    nodes = [
        NODE("Slice", ["x", "zero", "one", "one"], ["s"]),
        NODE("Squeeze", ["s", "one"], ["first"]),
        scan(SUMS, 1, scan_output_axes=[1]),
    ]
    proof = judge(
        model(nodes, [("x", FLOAT, ["n", "t"])], ["y"], zero=np.array([0]), one=np.array([1])), sizes={"t": 4}
    )
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 1}) or proof.output_axes == {"y": 0}


def test_scan_over_rows_that_carries_nothing(judge):
    """As sklearn-onnx computes the distance of each row to those of the training."""
    proof = judge(model([scan(APART, 0)], [X], ["y", "last"], first=np.ones((3, 4), np.float32)))
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0, "last": None})


def test_scan_over_rows_that_adds_up(judge):
    proof = judge(model([scan(SUMS, 0)], [X], ["y"], first=np.ones(4, np.float32)))
    assert (proof.verdict, proof.op_type) == ("mixed", "Scan")


def test_scan_over_rows_backwards(judge):
    proof = judge(model([scan(APART, 0, scan_input_directions=[1])], [X], ["y"], first=np.ones(4, np.float32)))
    assert "reverse order" in proof.reason
    assert proof.verdict == "mixed"


def test_scan_over_rows_that_takes_all_of_them_from_outside(judge):
    step = [NODE("Identity", ["state"], ["after"]), NODE("Add", ["part", "x"], ["given"])]
    proof = judge(model([scan(step, 0)], [X], ["y"], first=np.ones(4, np.float32)))
    assert proof.verdict == "mixed"
    assert "reads all rows at once" in proof.reason


def functions(nodes, output="y", **options):
    made = graph("float[n,4] x", "y = own.Twice(x)")
    function = helper.make_function("own", "Twice", ["a"], [output], nodes, [helper.make_opsetid("", 17)], **options)
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def test_function_bodies_are_walked(judge):
    assert judge(functions([NODE("Add", ["a", "a"], ["y"])])).verdict == "independent"
    proof = judge(functions([NODE("Softmax", ["a"], ["y"], axis=0)]))
    assert (proof.verdict, proof.op_type) == ("mixed", "Softmax")


def test_attributes_of_functions_are_handed_in(judge):
    softmax = NODE("Softmax", ["a"], ["y"])
    softmax.attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="over", type=onnx.AttributeProto.INT))
    made = functions([softmax], attributes=["over"])
    for axis, verdict in ((1, "independent"), (0, "mixed")):
        del made.graph.node[0].attribute[:]
        made.graph.node[0].attribute.append(helper.make_attribute("over", axis))
        assert judge(made).verdict == verdict


def test_functions_that_call_themselves_end(judge):
    made = functions([NODE("Twice", ["a"], ["y"], domain="own")])
    proof = judge(made)
    assert proof.verdict == "unknown"
    assert "deep" in proof.reason


def test_functions_that_double_each_time_end(judge):
    made = functions([NODE("F1", ["a"], ["y"], domain="own")])
    for level in range(1, 24):
        nodes = [NODE(f"F{level + 1}", ["a"], ["b"], domain="own"), NODE(f"F{level + 1}", ["b"], ["y"], domain="own")]
        nodes = [NODE("Relu", ["a"], ["y"])] if level == 23 else nodes
        made.functions.append(
            helper.make_function(
                "own", f"F{level}", ["a"], ["y"], nodes, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
            )
        )
    proof = judge(made)
    assert proof.verdict == "unknown"
    assert "stopped after" in proof.reason or "deep" in proof.reason


def test_a_function_in_place_of_an_operator_is_not_trusted(judge):
    made = graph("float[n,4] x", "y = com.microsoft.FastGelu(x)")
    made.functions.append(
        helper.make_function(
            "com.microsoft",
            "FastGelu",
            ["a"],
            ["b"],
            [NODE("Softmax", ["a"], ["b"], axis=0)],
            [helper.make_opsetid("", 17)],
        )
    )
    assert judge(made, runs=False).verdict == "unknown"
