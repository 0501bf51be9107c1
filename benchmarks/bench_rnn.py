"""Recurrent layers in onnxruntime with factored weights: of the input, and of the state.

    python benchmarks/bench_rnn.py --out benchmarks/results/rnn.json

Three graphs of one LSTM or GRU whose weights have a low rank, so that all compute the same: the operator with the
whole weights; the first factor of the input weight as one product before the operator, which takes the second; and both
weights factored, which the operator can't take, as a Scan over the steps. Parity is checked first. Takes a minute or
two on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from serving.machine import about

from panther.export import ort
from panther.export.ort import Target
from panther.export.planning.measure import clock_of, median_us, runner

Array = np.ndarray[Any, np.dtype[Any]]
SIZES, STEPS, BATCHES = ((128, 128), (256, 256), (512, 512), (1024, 512)), 32, (1, 8)
GATES = {"LSTM": 4, "GRU": 3}
# share of the stored weights after factoring
RATIO = 0.5
TOLERANCE = 1e-4


def low_rank(rows: int, columns: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Factors (rows, r) and (r, columns) that store `RATIO` of their product, which keeps states of the size of 1."""
    rank = int(RATIO * rows * columns / (rows + columns))
    left, right = random.standard_normal((rows, rank)), random.standard_normal((rank, columns))
    return left.astype(np.float32), (right / (rank * columns) ** 0.5).astype(np.float32)


def model(nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], sizes: tuple[int, int]) -> bytes:
    """A graph over x of (steps, batch, features) with the output y of (steps, batch, hidden)."""
    graph = helper.make_graph(
        list(nodes),
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "batch", sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["steps", "batch", sizes[1]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return made.SerializeToString()


def operator(kind: str, x: str, hidden: int) -> list[onnx.NodeProto]:
    """The operator over `x`, W and R, without the axis of directions."""
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    return [
        helper.make_node(kind, [x, "W", "R"], ["every"], hidden_size=hidden, **attributes),
        helper.make_node("Squeeze", ["every", "one"], ["y"]),
    ]


def scan(kind: str, hidden: int) -> list[onnx.NodeProto]:
    """Both weights factored: the products of the input over all steps at once, those of the state step by step."""
    G = GATES[kind]
    parts = [f"g{i}" for i in range(G)]
    body = [
        helper.make_node("MatMul", ["h", "R_down"], ["narrow"]),
        helper.make_node("MatMul", ["narrow", "R_up"], ["back"]),
    ]
    if kind == "LSTM":
        body += [
            helper.make_node("Add", ["gates", "back"], ["both"]),
            helper.make_node("Split", ["both"], parts, axis=-1, num_outputs=G),
            *(helper.make_node("Sigmoid", [f"g{i}"], [f"s{i}"]) for i in range(3)),
            helper.make_node("Tanh", ["g3"], ["new"]),
            helper.make_node("Mul", ["s2", "c"], ["kept"]),
            helper.make_node("Mul", ["s0", "new"], ["added"]),
            helper.make_node("Add", ["kept", "added"], ["c_out"]),
            helper.make_node("Tanh", ["c_out"], ["squashed"]),
            helper.make_node("Mul", ["s1", "squashed"], ["h_out"]),
        ]
        states = ["h", "c"]
    else:
        body += [
            helper.make_node("Split", ["gates"], parts, axis=-1, num_outputs=G),
            helper.make_node("Split", ["back"], ["b0", "b1", "b2"], axis=-1, num_outputs=G),
            *(helper.make_node("Add", [f"g{i}", f"b{i}"], [f"a{i}"]) for i in range(2)),
            *(helper.make_node("Sigmoid", [f"a{i}"], [f"s{i}"]) for i in range(2)),
            helper.make_node("Mul", ["s1", "b2"], ["reset"]),
            helper.make_node("Add", ["g2", "reset"], ["a2"]),
            helper.make_node("Tanh", ["a2"], ["new"]),
            helper.make_node("Sub", ["h", "new"], ["apart"]),
            helper.make_node("Mul", ["s0", "apart"], ["moved"]),
            helper.make_node("Add", ["new", "moved"], ["h_out"]),
        ]
        states = ["h"]
    body.append(helper.make_node("Identity", ["h_out"], ["y_step"]))

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

    inner = helper.make_graph(
        body,
        "step",
        [*(value(name, hidden) for name in states), value("gates", G * hidden)],
        [*(value(f"{name}_out", hidden) for name in states), value("y_step", hidden)],
    )
    starts = [f"{name}0" for name in states]
    return [
        helper.make_node("MatMul", ["x", "W_down"], ["between"]),
        helper.make_node("MatMul", ["between", "W_up"], ["gates_of_all"]),
        helper.make_node("Shape", ["x"], ["batch"], start=1, end=2),
        helper.make_node("Concat", ["batch", "hidden"], ["state"], axis=0),
        *(helper.make_node("ConstantOfShape", ["state"], [start]) for start in starts),
        helper.make_node(
            "Scan",
            [*starts, "gates_of_all"],
            [*(f"{name}_last" for name in states), "y"],
            body=inner,
            num_scan_inputs=1,
        ),
    ]


def measure(kind: str, sizes: tuple[int, int], batch: int) -> dict[str, object]:
    """All three in turn, once they were found to agree."""
    features, hidden = sizes
    G, random = GATES[kind], np.random.default_rng(0)
    up, down = low_rank(G * hidden, features, random)
    state_up, state_down = low_rank(G * hidden, hidden, random)
    R = {"R": (state_up @ state_down)[None], "one": np.array([1])}
    graphs = {
        "operator": model(operator(kind, "x", hidden), {"W": (up @ down)[None], **R}, sizes),
        "factored_input": model(
            [helper.make_node("MatMul", ["x", "W_down"], ["between"]), *operator(kind, "between", hidden)],
            {"W_down": np.ascontiguousarray(down.T), "W": up[None], **R},
            sizes,
        ),
        "factored_both": model(
            scan(kind, hidden),
            {
                "W_down": np.ascontiguousarray(down.T),
                "W_up": np.ascontiguousarray(up.T),
                "R_down": np.ascontiguousarray(state_down.T),
                "R_up": np.ascontiguousarray(state_up.T),
                "hidden": np.array([hidden]),
            },
            sizes,
        ),
    }
    target = Target("cpu", 1)
    feeds = {"x": random.standard_normal((STEPS, batch, features)).astype(np.float32)}
    sessions = {name: ort.load(graph, target) for name, graph in graphs.items()}
    outputs = {name: session.run(["y"], feeds)[0] for name, session in sessions.items()}
    largest = float(np.abs(outputs["operator"]).max())
    errors = {name: float(np.abs(y - outputs["operator"]).max()) / largest for name, y in outputs.items()}
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"{kind} {sizes}: the graphs don't agree: {errors}")
    runs = {name: runner(session, feeds, target) for name, session in sessions.items()}
    medians = median_us(runs, budget_s=1.5, clock=clock_of(target))
    return {
        "kind": kind,
        "features": features,
        "hidden": hidden,
        "steps": STEPS,
        "batch": batch,
        "rank": up.shape[1],
        "median_us": {name: round(median, 1) for name, median in medians.items()},
        "over_operator": {name: round(median / medians["operator"], 3) for name, median in medians.items()},
        "largest_error": max(errors.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for kind in GATES:
        for sizes in SIZES:
            for batch in BATCHES:
                rows.append(measure(kind, sizes, batch))
                print(rows[-1], flush=True)
    if arguments.out is not None:
        result = {**about(("onnxruntime", "onnx", "numpy")), "threads": 1, "ratio": RATIO, "layers": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
