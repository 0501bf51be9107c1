"""Items that the data choose, as experts take them: proven where each goes back to its place, and nowhere else."""

import random

import numpy as np
import pytest
from graph_text import graph
from row_oracle import difference, open_session, random_feeds

from app.runtime.independence import prove

I64 = np.int64
# x (n, 4): the rows whose first entry is above 0, and those whose second is
CHOICE = """
    first = Gather<axis = 1>(x, i0) \n c1 = Greater(first, zero) \n p1 = NonZero(c1)
    t1 = Transpose<perm = [1, 0]>(p1) \n j1 = Squeeze(t1, a1) \n k1 = Unsqueeze(j1, a1) \n g1 = GatherND(x, k1)
    second = Gather<axis = 1>(x, i1) \n c2 = Greater(second, zero) \n p2 = NonZero(c2)
    k2 = Transpose<perm = [1, 0]>(p2) \n j2 = Squeeze(k2, a1) \n g2 = GatherND(x, k2)
    empty = Mul(x, none)
"""
CONSTANTS = {
    "i0": I64(0), "i1": I64(1), "i2": I64(2), "zero": np.float32(0), "none": np.float32(0), "a1": [1], "a0": [0],
    "one": [1], "far": [1 << 40], "least": [-(1 << 40)], "step": [2], "back": [-1],
    "w": (4, 4), "b": (4,), "up": (4, 6), "down": (3, 4), "table": (7, 4), "half": np.float32(0.1), "low": np.uint8(0),
    "two": [2, -1],
}  # fmt: skip


def made(body, inputs="float[n,4] x", **options):
    text = CHOICE + body
    constants = {name: value for name, value in CONSTANTS.items() if name in text} | options
    return graph(inputs, text, **constants)


PROVEN = {
    "two experts": "h1 = MatMul(g1, w) \n s1 = ScatterND<reduction = \"add\">(empty, k1, h1)"
    "\n h2 = Gemm(g2, w, b) \n y = ScatterND<reduction = \"add\">(s1, k2, h2)",
    "a gate": "h = MatMul(g1, up) \n u, v = Split<axis = 1>(h) \n s = Sigmoid(u) \n a = Mul(u, s) \n m = Mul(a, v)"
    "\n d = MatMul(m, down) \n y = ScatterND<reduction = \"add\">(x, k1, d)",
    "shares": "share = GatherND(second, k1) \n wide = Unsqueeze(share, a1) \n h = Mul(g1, wide)"
    "\n y = ScatterND(x, k1, h)",
    "places of one axis": "g = Gather<axis = 0>(x, j2) \n h = Relu(g) \n y = ScatterND(x, k2, h)",
    "columns of the chosen": "g = Gather<axis = 1>(g1, one) \n h = Add(g, g1) \n y = ScatterND(x, k1, h)",
    "integers of a fixed scale": "q = QuantizeLinear(g1, half, low) \n h = DequantizeLinear(q, half, low)"
    "\n y = ScatterND(x, k1, h)",
    "places cast and back": "n = Cast<to = 6>(k1) \n k = Cast<to = 7>(n) \n h = Neg(g1) \n y = ScatterND(x, k, h)",
    "two tables of the same items": "h = GatherND(empty, k1) \n s = Sub(h, g1) \n y = ScatterND(x, k1, s)",
    "every other column": "h = Slice(g1, a0, far, a1, step) \n e = Slice(x, a0, far, a1, step)"
    "\n y = ScatterND(e, k1, h)",
    "transposed and back": "t = Transpose(g1) \n h = Exp(t) \n u = Transpose(h) \n y = ScatterND(x, k1, u)",
}  # fmt: skip
REFUSED = {
    "the chosen as an output": "y = Relu(g1)",
    "their places as an output": "y = Squeeze(k1, a1)",
    "their number": "s = Shape(g1) \n f = Cast<to = 1>(s) \n y = Add(x, f)",
    "their size": "s = Size(g1) \n f = Cast<to = 1>(s) \n y = Add(x, f)",
    "a sum over them": "m = ReduceSum<keepdims = 1>(g1, a0) \n y = Add(x, m)",
    "a mean over them": "m = ReduceMean<axes = [0]>(g1) \n y = Add(x, m)",
    "a softmax over them": "h = Softmax<axis = 0>(g1) \n y = ScatterND(x, k1, h)",
    "sums along them": "h = CumSum(g1, i0) \n y = ScatterND(x, k1, h)",
    "the first of them": "m = Gather<axis = 0>(g1, a0) \n y = Add(x, m)",
    "the order turned": "h = Slice(g1, far, least, a0, back) \n y = ScatterND(x, k1, h)",
    "some of them": "h = Slice(g1, a0, a1, a0) \n y = Add(x, h)",
    "items by items": "t = Transpose(g1) \n m = MatMul(t, g1) \n y = MatMul(x, m)",
    "all by all": "t = Transpose(g1) \n m = MatMul(g1, t) \n h = MatMul(m, g1) \n y = ScatterND(x, k1, h)",
    "another choice added": "h = Add(g1, g2) \n y = ScatterND(x, k1, h)",
    "the rows added": "h = Add(g1, x) \n y = ScatterND(x, k1, h)",
    "written to the places of another choice": "y = ScatterND(x, k2, g1)",
    "places plus one": "k = Add(k1, one) \n y = ScatterND(x, k, g1)",
    "places times one": "k = Mul(k1, one) \n y = ScatterND(x, k, g1)",
    "places rounded": "n = Cast<to = 10>(k1) \n k = Cast<to = 7>(n) \n y = ScatterND(x, k, g1)",
    "places as data": "f = Cast<to = 1>(k1) \n h = Add(g1, f) \n y = ScatterND(x, k1, h)",
    "places written": "f = Cast<to = 1>(k1) \n e = Expand(f, four) \n y = ScatterND(x, k1, e)",
    "taken from a table": "h = GatherND(table, k1) \n y = ScatterND(x, k1, h)",
    "written to a table": "s = ScatterND(table, k1, g1) \n m = ReduceMean<axes = [0]>(s) \n y = Add(x, m)",
    "chosen among the chosen": "f = Gather<axis = 1>(g1, i2) \n c = Greater(f, zero) \n p = NonZero(c)"
    "\n k = Transpose(p) \n h = GatherND(g1, k) \n y = ScatterND(x, k, h)",
    "entries of every axis": "p = NonZero(x) \n k = Transpose(p) \n h = GatherND(x, k) \n y = ScatterND(x, k, h)",
    "columns by the places": "h = Gather<axis = 1>(x, j1) \n m = ReduceSum<keepdims = 1>(h, a1) \n y = Add(x, m)",
    "put in one shape": "h = Reshape(g1, two) \n m = ReduceMax<keepdims = 1>(h, a0)"
    "\n f = ReduceMax<keepdims = 1>(m, a1) \n y = Add(x, f)",
    "joined": "h = Concat<axis = 0>(g1, g1) \n m = ReduceMax<axes = [0]>(h) \n y = Add(x, m)",
    "one scale for all of them": "q, s, z = DynamicQuantizeLinear(g1) \n h = DequantizeLinear(q, s, z)"
    "\n y = ScatterND(x, k1, h)",
    "all axes of size one dropped": "h = Squeeze(g1) \n y = ScatterND(x, k1, h)",
    "a branch that leaves them": "y = If(yes) <then_branch = g1 () => (float[m,4] a) { a = Relu(g1) },"
    " else_branch = g2 () => (float[m,4] c) { c = Relu(g1) }>",
    "the largest of them": "h, n = TopK<axis = 0>(g1, one) \n y = Add(x, h)",
    "taken from twice as many": "xx = Concat<axis = 0>(x, x) \n h = GatherND(xx, k1) \n y = ScatterND(x, k1, h)",
    "written into twice as many": "xx = Concat<axis = 0>(x, x) \n s = ScatterND(xx, k1, g1)"
    "\n u, v = Split<axis = 0>(s) \n y = Add(u, v)",
    "split along the items": "u, v = Split<axis = 0>(g1) \n y = ScatterND(x, k1, u)",
    "as many as they are": "s = Shape(g1) \n e = Expand(half, s) \n y = ScatterND(x, k1, e)",
}  # fmt: skip


@pytest.mark.parametrize("body", PROVEN.values(), ids=PROVEN)
def test_items_that_go_back_to_their_places(judge, body):
    assert judge(made(body)).verdict == "independent"


def test_items_of_rows_that_were_merged_with_a_length(judge):
    """(n, t, 4) as (n · t, 4), and back: what every transformer with experts does."""
    text = (
        "shape = Shape(x3) \n x = Reshape(x3, flat) \n" + CHOICE + "h = MatMul(g1, w) \n"
        's = ScatterND<reduction = "add">(empty, k1, h) \n z = ScatterND<reduction = "add">(s, k2, g2) \n'
        "y = Reshape(z, shape)"
    )
    constants = {name: value for name, value in CONSTANTS.items() if name in text}
    proof = judge(graph("float[n,t,4] x3", text, **constants, flat=[-1, 4]), sizes={"t": 5})
    assert (proof.verdict, proof.output_axes) == ("independent", {"y": 0})


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_brings_items_together_is_not_proven(body):
    extra = {"four": [1, 4]} if "four" in body else {}
    extra |= {"yes": np.array(1, bool)} if "yes" in body else {}
    proof = prove(made(body, **extra).SerializeToString())
    assert proof.verdict in ("mixed", "unknown")
    assert proof.reason
    assert "can't be read" not in proof.reason


def test_an_output_of_the_chosen_is_ragged():
    proof = prove(made("y = Relu(g1) \n z = Neg(x)", outputs="y, z").SerializeToString())
    assert (proof.verdict, proof.ragged_outputs, proof.output_axes) == ("mixed", {"y"}, {"y": None, "z": 0})
    assert "number of elements" in proof.reason


# steps of one value, (m, 4) unless it says so; what mixes is among them
STEPS = (
    "{o} = Relu({a})", "{o} = MatMul({a}, w)", "{o} = Add({a}, {b})", "{o} = Mul({a}, b)",
    "{o} = Softmax<axis = 0>({a})",
    "{o} = Gemm({a}, w, b)", "{o} = Sub({a}, {b})", "{o} = ScatterND<reduction = \"add\">({a}, {k}, {b})",
    "{o} = GatherND({a}, {k})", "{o} = Gather<axis = 0>({a}, {j})", "{o} = Gather<axis = 0>({a}, a0)",
    "{o}s = ReduceMax<axes = [0]>({a}) \n {o} = Add({b}, {o}s)", "{o} = Max({a}, {b})", "{o} = Identity({a})",
    "{o}t = Transpose({a}) \n {o}u = Tanh({o}t) \n {o} = Transpose({o}u)", "{o} = Concat<axis = 0>({a}, {b})",
)  # fmt: skip


def test_random_routes_that_are_proven_answer_each_row_as_alone():
    """Against onnxruntime: any order of steps over two choices; those that mix must not be proven."""
    verdicts = []
    for seed in range(600):
        draw = random.Random(seed)
        own = draw.choice("12")
        values, lines, last = ["x", "g1", "g2", "empty"], [], f"g{own}"
        for step in range(draw.randrange(1, 5)):
            which, other = draw.choice("12"), draw.choice([last, last, last, *values])
            line = draw.choice(STEPS).format(o=f"o{step}", a=last, b=other, k=f"k{which}", j=f"j{which}")
            lines.append(line)
            last = f"o{step}"
            values.append(last)
        end = 'y = ScatterND<reduction = "add">(x, k{}, {})' if draw.random() < 0.7 else "y = Neg({1})"
        lines.append(end.format(draw.choice([own, own, "1", "2"]), last))
        data = made("\n".join(lines)).SerializeToString()
        proof = prove(data)
        verdicts.append(proof.verdict)
        if proof.verdict != "independent":
            continue
        session = open_session(data)
        for rows in (2, 3, 6):
            feeds = random_feeds(session, proof.input_axes, rows, np.random.default_rng(seed + rows))
            found = difference(session, proof.input_axes, proof.output_axes, feeds)
            # a graph that one row alone can't be run on says nothing
            assert found in (None, "alone"), (found, lines, rows)
    assert verdicts.count("independent") > 15
    assert verdicts.count("mixed") > 100
