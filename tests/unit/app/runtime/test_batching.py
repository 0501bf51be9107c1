import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InferenceFailedError
from app.runtime.batching import find_batching
from app.runtime.independence import Proof
from app.runtime.random_feeds import random_feeds
from app.runtime.tensors import TensorSpec, bfloat16_bits, bfloat16_values


def spec(name="x", shape=("n", 4), datatype="FP32"):
    dtypes = {"FP32": np.float32, "INT64": np.int64, "BYTES": object, "BF16": np.uint16}
    sizes = tuple(size if isinstance(size, int) else None for size in shape)
    names = tuple(size if isinstance(size, str) else None for size in shape)
    return TensorSpec(name, datatype, np.dtype(dtypes[datatype]), sizes, names)


X, Y = spec(), spec("y")
INDEPENDENT = Proof("independent", {"x": 0}, {"y": 0})


def decide(run, inputs=(X,), outputs=(Y,), proof=INDEPENDENT, wanted="auto"):
    return find_batching(proof, inputs, outputs, wanted, lambda rows, axes: random_feeds(inputs, rows, axes), run)


def never(feeds):
    raise AssertionError("no run is needed")


@pytest.mark.parametrize("verdict", ["mixed", "unknown"])
def test_what_is_not_proven_is_not_batched_and_costs_no_run(verdict):
    proof = Proof(verdict, reason="node 'n' takes the mean of all rows", node="n", op_type="ReduceMean")
    found = decide(never, proof=proof)
    assert (found.batched, found.decided_by, found.verdict) == (False, "proof", verdict)
    assert (found.reason, found.node, found.op_type) == (proof.reason, "n", "ReduceMean")


def test_a_person_may_forbid_what_is_proven():
    found = decide(never, wanted="off")
    assert (found.batched, found.decided_by, found.verdict) == (False, "settings", "independent")
    assert found.reason == "batching is off in panther.toml"


def test_a_person_may_allow_what_is_not_proven_and_that_is_said():
    proof = Proof("unknown", reason="operator 'x.y::Z' is not known")
    found = decide(never, proof=proof, wanted="on")
    assert (found.batched, found.decided_by, found.verdict) == (True, "settings", "unknown")
    assert found.reason == "batching is on in panther.toml; operator 'x.y::Z' is not known"
    assert (found.input_axes, found.output_axes, found.rows_first) == ({"x": 0}, {"y": 0}, True)


def test_nobody_can_batch_what_has_no_dynamic_axis():
    found = decide(never, inputs=(spec(shape=(2, 4)),), proof=Proof("unknown"), wanted="on")
    assert not found.batched
    assert found.reason == "batching is on in panther.toml, but the first axis of 'x' (2, 4) is fixed"


ROWWISE = {
    "doubles": lambda x: 2 * x,
    "softmax of a row": lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True),
    "rounding by the number of rows": lambda x: x * np.float32(1 + 1e-6 * len(x)),
    "NaN in each row": lambda x: np.where(x > 0, np.nan, x),
    "small numbers": lambda x: x * 1e-12,
}
MIXED = {
    "the mean of all rows": lambda x: x - x.mean(axis=0),
    "softmax over rows": lambda x: np.exp(x) / np.exp(x).sum(axis=0),
    "rows in reverse": lambda x: x[::-1],
    "small numbers, mixed": lambda x: 1e-4 * (x - x.mean(axis=0)),
    "scaled by the largest of all": lambda x: x / np.abs(x).max(),
}


@pytest.mark.parametrize("kind", ROWWISE)
def test_what_is_proven_is_batched(kind):
    found = decide(lambda feeds: [ROWWISE[kind](feeds["x"])])
    assert (found.batched, found.decided_by, found.rows_first) == (True, "proof", True)


@pytest.mark.parametrize("kind", MIXED)
def test_a_trial_that_says_otherwise_forbids_it(kind):
    found = decide(lambda feeds: [MIXED[kind](feeds["x"])])
    assert (found.batched, found.decided_by) == (False, "trial")
    assert found.reason == "random rows gave a different output 'y' together than one by one"


def test_a_trial_that_returns_other_rows_forbids_it():
    found = decide(lambda feeds: [feeds["x"][:1]])
    assert (found.batched, found.reason) == (False, "3 random rows gave output 'y' of shape [1, 4]")


@pytest.mark.parametrize("datatype", ["INT64", "BYTES", "BF16"])
@pytest.mark.parametrize("mixed", [False, True])
def test_other_types_than_floats_are_tried_too(datatype, mixed):
    def run(feeds):
        x = feeds["x"]
        if not mixed:
            return [x]
        if datatype == "BF16":
            values = bfloat16_values(x)
            return [bfloat16_bits(np.ascontiguousarray(values - values.mean(axis=0), np.float32))]
        return [x[::-1]]

    found = decide(run, (spec(datatype=datatype),), (spec("y", datatype=datatype),))
    assert found.batched is not mixed


def test_a_model_that_fails_on_random_input_is_batched_where_it_is_proven():
    def run(feeds):
        raise InferenceFailedError("model 'm' failed on this input: no")

    assert decide(run).batched


def test_the_rows_may_be_another_axis_and_inputs_may_be_shared():
    inputs = (spec("x", ("time", "n", 4)), spec("scale", ()))
    proof = Proof("independent", {"x": 1, "scale": None}, {"y": 1})
    seen = []

    def run(feeds):
        seen.append(feeds["x"].shape)
        return [feeds["x"] * feeds["scale"]]

    found = decide(run, inputs, (spec("y", ("time", "n", 4)),), proof)
    assert (found.batched, found.rows_first) == (True, False)
    assert seen == [(2, 3, 4), *[(2, 1, 4)] * 3]
    assert found.rows_of({"x": np.zeros((2, 7, 4)), "scale": np.zeros(())}) == 7
    assert found.cut(["y"]) == (1,)


@given(st.integers(1, 5), st.sampled_from(["FP32", "INT64", "BYTES", "BF16"]))
def test_random_feeds_have_the_shape_and_type_of_the_inputs_and_differ_between_rows(rows, datatype):
    inputs = [spec(shape=("n", 8, "m"), datatype=datatype), spec("fixed", (3, 1)), spec("scalar", ())]
    feeds = random_feeds(inputs, rows)
    assert feeds["x"].shape == (rows, 8, 2)
    assert feeds["x"].dtype == inputs[0].dtype
    assert (feeds["fixed"].shape, feeds["scalar"].shape) == ((3, 1), ())
    if rows > 1:
        assert not np.array_equal(feeds["x"][0], feeds["x"][1])
    again = random_feeds(inputs, rows)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
