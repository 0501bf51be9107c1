"""Random graphs against brute force: what is proven independent is answered alike alone and in a batch."""

import random
import re

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import random_graph
from row_oracle import difference, open_session, random_feeds

from app.runtime.independence import prove
from app.runtime.independence.proof import Proof, _both


def answers_differ(model, sizes, proof, seed):
    """How the answers differ, or None; a graph that one row alone can't be run on says nothing."""
    session = open_session(model)
    for rows in (2, 3, 5):
        feeds = random_feeds(session, proof.input_axes, rows, np.random.default_rng(seed + rows), sizes)
        found = difference(session, proof.input_axes, proof.output_axes, feeds)
        # A node that no output needs may fail on several rows; the run is then none, and no answer is wrong.
        if found is not None and (found == "alone" or ("the batch fails" in found and "Scan" in found)):
            return None
        if found is not None:
            return found
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(1, 8))
def test_what_is_proven_holds(draw, steps):
    model, sizes = random_graph(draw, steps)
    proof = prove(model)
    assert "can't be read" not in proof.reason
    if proof.verdict == "independent":
        assert answers_differ(model, sizes, proof, steps) is None, proof
    else:
        assert proof.reason
        # a node, none of several, or an output
        assert proof.op_type or proof.nodes_walked == 0 or re.match(r"the batch axis of output '\w+' ", proof.reason)


def test_an_output_whose_rows_lie_on_an_axis_that_a_size_decides_is_named():
    cases = [Proof("independent", {"x": 0}, {"a": 0, "y": axis}, nodes_walked=3) for axis in (0, 1)]
    found = _both(*cases)
    assert (found.verdict, found.reason) == ("unknown", "the batch axis of output 'y' depends on a condition")


def test_random_graphs_are_of_both_kinds_and_most_are_decided():
    verdicts = []
    for seed in range(150):
        draw = random.Random(seed)
        model, sizes = random_graph(draw, draw.randrange(1, 9))
        proof = prove(model)
        verdicts.append(proof.verdict)
        if proof.verdict == "independent":
            assert answers_differ(model, sizes, proof, seed) is None, (seed, proof)
    assert verdicts.count("independent") > 40
    assert verdicts.count("mixed") > 40
    assert verdicts.count("unknown") < 15


def mixes_by_brute_force(model, sizes, proof, seed):
    """Whether a row's answer changes in a batch, or the run fails there, or has no axis for the rows."""
    session = open_session(model)
    feeds = random_feeds(session, proof.input_axes, 5, np.random.default_rng(seed), sizes)
    try:
        shapes = [array.shape for array in session.run(None, feeds)]
    except Exception:  # noqa: BLE001 - onnxruntime raises many kinds
        return True
    if any(5 not in shape for shape in shapes):
        return True
    axes = {spec.name: shape.index(5) for spec, shape in zip(session.get_outputs(), shapes, strict=True)}
    try:
        return difference(session, proof.input_axes, axes, feeds) is not None
    except IndexError:
        return True


def test_a_graph_that_mixes_is_found_by_brute_force_too():
    """The oracle sees what the proof is there for: most graphs that are proven to mix give other answers in a batch."""
    found = []
    for seed in range(120):
        draw = random.Random(seed)
        model, sizes = random_graph(draw, draw.randrange(1, 9))
        proof = prove(model)
        if proof.verdict == "mixed":
            found.append(mixes_by_brute_force(model, sizes, proof, seed))
    assert len(found) > 30
    assert sum(found) > 0.85 * len(found)
