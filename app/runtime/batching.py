"""Whether requests may share a run of a model: proven from its graph; a trial run may only forbid it.

See docs/decisions/0003-batch-only-independent-rows.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from app.errors import InferenceFailedError
from app.runtime.independence import Proof
from app.runtime.tensors import Array, TensorSpec, bfloat16_values

_ROWS = 3
_SMALLEST = 1e-5  # outputs below this may be rounding errors only

Wanted = Literal["auto", "on", "off"]
Axes = Mapping[str, int | None]
MakeFeeds = Callable[[int, Axes], Mapping[str, Array]]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]


@dataclass(frozen=True)
class Batching:
    """The decision whether rows of several requests may run together, with its reason.

    Attributes:
        batched: Whether they may.
        decided_by: ``proof``: the graph; ``trial``: random rows, run together and one by one; ``settings``:
            the operator; ``run``: a run returned a different number of rows than its input had.
        verdict: The proven property of the rows: ``independent``, ``mixed``, or ``unknown`` if nothing is proven.
        reason: A sentence that names the deciding node.
        node, op_type: The deciding node; empty if no single node decides.
        input_axes: The axis of the rows in each input; None for one that all rows share.
        output_axes: The axis of the rows in each output; None for one that does not depend on the rows.
        rows_first: Whether the rows are the first axis of every input and output.
    """

    batched: bool
    decided_by: Literal["proof", "trial", "settings", "run"]
    verdict: Literal["independent", "mixed", "unknown"]
    reason: str
    node: str = ""
    op_type: str = ""
    input_axes: Axes = field(default_factory=dict)
    output_axes: Axes = field(default_factory=dict)
    rows_first: bool = False

    def rows_of(self, feeds: Mapping[str, Array]) -> int:
        """Number of rows in the inputs of a run; 1 if no input has a row axis."""
        sizes: list[int] = [feeds[name].shape[axis] for name, axis in self.input_axes.items() if axis is not None]
        return sizes[0] if sizes else 1

    def cut(self, output_names: Sequence[str]) -> tuple[int | None, ...]:
        """The axis of the rows in each of the given outputs."""
        return (0,) * len(output_names) if self.rows_first else tuple(map(self.output_axes.__getitem__, output_names))


def find_batching(
    proof: Proof,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    wanted: Wanted,
    make_feeds: MakeFeeds,
    run: Run,
) -> Batching:
    """Decide whether a model may be batched.

    Args:
        proof: The result of the analysis of the graph.
        inputs, outputs: Tensors of the graph.
        wanted: ``auto`` batches proven models, ``on`` batches on the operator's word, ``off`` never batches.
        make_feeds: Makes inputs with a number of rows along the given axis of each input.
        run: Runs the model and returns all outputs; raises ``InferenceFailedError`` on failure.
    """
    if wanted == "off":
        # Rows are still counted along their axes if these are known.
        axes = (proof.input_axes, proof.output_axes) if proof.verdict == "independent" else ({}, {})
        off = "batching is off in panther.toml"
        return _decision(proof, "settings", off, batched=False, input_axes=axes[0], output_axes=axes[1])
    if wanted == "on" and proof.verdict != "independent":
        return _by_request(proof, inputs, outputs)
    if proof.verdict != "independent":
        return _decision(proof, "proof", proof.reason, batched=False)
    proven = _decision(
        proof, "proof", proof.reason, batched=True, input_axes=proof.input_axes, output_axes=proof.output_axes
    )
    reason = why_rows_depend(proven, outputs, make_feeds(_ROWS, proven.input_axes), run)
    return proven if reason is None else _decision(proof, "trial", reason, batched=False)


def _by_request(proof: Proof, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Batching:
    """Batch along the first axes on the operator's word, if all of them are dynamic."""
    for spec in (*inputs, *outputs):
        if not spec.shape or spec.shape[0] is not None:
            reason = (
                f"batching is on in panther.toml, but the first axis of {spec.name!r} {spec.readable_shape} is fixed"
            )
            return _decision(proof, "settings", reason, batched=False)
    return _decision(
        proof,
        "settings",
        f"batching is on in panther.toml; {proof.reason}",
        batched=True,
        input_axes={spec.name: 0 for spec in inputs},
        output_axes={spec.name: 0 for spec in outputs},
    )


def _decision(
    proof: Proof,
    decided_by: Literal["proof", "trial", "settings"],
    reason: str,
    *,
    batched: bool,
    input_axes: Axes | None = None,
    output_axes: Axes | None = None,
) -> Batching:
    input_axes, output_axes = input_axes or {}, output_axes or {}
    return Batching(
        batched,
        decided_by,
        proof.verdict,
        reason,
        proof.node,
        proof.op_type,
        input_axes,
        output_axes,
        rows_first=all(axis == 0 for axis in (*input_axes.values(), *output_axes.values())),
    )


def why_rows_depend(
    batching: Batching, outputs: Sequence[TensorSpec], feeds: Mapping[str, Array], run: Run
) -> str | None:
    """The reason why a trial run forbids batching, or None if random rows give equal outputs together and one by one.

    A model that fails on random inputs is not forbidden, because a proof covers every input.

    Args:
        batching: The axes of the rows.
        outputs: Outputs of the graph.
        feeds: Inputs of several rows.
        run: See ``find_batching``.
    """
    rows = batching.rows_of(feeds)
    try:
        together = run(feeds)
        for row in range(rows):
            row_feeds = {
                name: rows_between(array, batching.input_axes[name], row, row + 1) for name, array in feeds.items()
            }
            alone = run(row_feeds)
            for spec, whole, single in zip(outputs, together, alone, strict=True):
                axis = batching.output_axes[spec.name]
                if axis is not None and (whole.ndim <= axis or whole.shape[axis] != rows):
                    return f"{rows} random rows gave output {spec.name!r} of shape {list(whole.shape)}"
                if not _are_close(rows_between(whole, axis, row, row + 1), single, spec):
                    return f"random rows gave a different output {spec.name!r} together than one by one"
    except InferenceFailedError:
        return None
    return None


def rows_between(array: Array, axis: int | None, start: int, stop: int) -> Array:
    """Rows of a tensor as a view; the whole tensor if it has no row axis."""
    if axis == 0:
        return array[start:stop]
    return array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]


def _are_close(left: Array, right: Array, spec: TensorSpec) -> bool:
    if left.shape != right.shape:
        return False
    if spec.datatype == "BF16":
        left, right = bfloat16_values(left), bfloat16_values(right)
    elif spec.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    # Kernels may add in a different order for another number of rows; mixed rows differ by far more, even small ones.
    left, right = np.atleast_1d(left).astype(np.float64), np.atleast_1d(right).astype(np.float64)
    largest = np.abs(left[np.isfinite(left)]).max(initial=_SMALLEST)
    return bool(np.allclose(left, right, rtol=0.05, atol=min(0.01, 0.05 * largest), equal_nan=True))
