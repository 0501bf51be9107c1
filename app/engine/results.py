"""Results: the outputs of one run, shared by its batch, and the rows of each inference request."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import orjson

from app.errors import InferenceFailedError
from app.runtime.batching import rows_between
from app.runtime.tensors import Array, bfloat16_values

if TYPE_CHECKING:
    from app.runtime.model import OnnxModel

_FLOAT32 = np.dtype(np.float32)
_FEW = 64  # scores
_DIGITS = 7
_SMALL = 4096  # text of so few numbers certainly fits in memory
_MOST_CHARACTERS = 26  # per number with its separator


@dataclass(slots=True)
class InferenceResult:
    """The result of one inference request: its rows of the outputs of a run.

    Attributes:
        batch: The outputs of the whole run.
        start, stop: The rows of this request.
    """

    batch: "BatchResult"
    start: int
    stop: int

    def array(self, index: int) -> Array:
        """One output of this request."""
        return self.batch.array(index, self.start, self.stop)


class BatchResult:
    """The outputs of one run of a model; text for several requests is made once.

    Args:
        model: The model.
        output_names: Names of the computed outputs.
        arrays: The computed outputs.
        axes: The axis of the rows in each output, split between requests; None if the run has a single request.

    Attributes:
        whole: Whether the outputs belong to a single request, which gets them unchanged.
    """

    def __init__(
        self,
        model: "OnnxModel",
        output_names: tuple[str, ...],
        arrays: list[Array],
        axes: tuple[int | None, ...] | None = None,
    ) -> None:
        self.model = model
        self.output_names = output_names
        self.arrays = arrays
        self.whole = axes is None
        self._axes = axes
        self._texts: dict[int, list[bytes] | None] = {}
        self._best: list[tuple[int, bytes]] | None = None

    def array(self, index: int, start: int, stop: int) -> Array:
        """Rows of one output that belong to one request."""
        array = self.arrays[index]
        return array if self._axes is None else rows_between(array, self._axes[index], start, stop)

    def values(self, index: int, start: int, stop: int) -> Array:
        """Values in a type that JSON can express: bfloat16 as float32."""
        array = self.array(index, start, stop)
        is_bfloat16 = self.model.output_by_name[self.output_names[index]].datatype == "BF16"
        return bfloat16_values(array) if is_bfloat16 else array

    def nested_json(self, index: int, start: int, stop: int) -> bytes:
        """One output's rows as nested JSON lists."""
        if self.whole:
            array = self.arrays[index]
            if array.ndim == 2 and array.dtype.kind == "f":
                return self._finite(index, _json_of(np.ascontiguousarray(array)))
        else:
            rows = self._rows(index)
            if rows is not None:
                return self._finite(index, b"[[" + b"],[".join(rows[start:stop]) + b"]]")
        return self._dump(index, self.values(index, start, stop))

    def flat_json(self, index: int, start: int, stop: int) -> bytes:
        """One output's rows as one flat JSON list, row-major."""
        rows = self._rows(index)
        if rows is not None:
            return self._finite(index, b"[" + b",".join(rows[start:stop]) + b"]")
        return self._dump(index, self.values(index, start, stop).reshape(-1))

    def _rows(self, index: int) -> list[bytes] | None:
        """The text of each row of a table of numbers that several requests share; None for any other output."""
        if index not in self._texts:
            self._texts[index] = self._row_texts(index)
        return self._texts[index]

    def _row_texts(self, index: int) -> list[bytes] | None:
        array = self.arrays[index]
        if self._axes is None or self._axes[index] != 0:
            return None
        if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
            return None
        return _json_of(np.ascontiguousarray(self.values(index, 0, len(array))))[2:-2].split(b"],[")

    def _dump(self, index: int, array: Array) -> bytes:
        if array.dtype.kind == "O":
            return orjson.dumps(array.tolist())
        text = _json_of(np.ascontiguousarray(array))
        if not array.ndim:
            text = text[1:-1]  # numpy made a list of one element
        return self._finite(index, text) if array.dtype.kind == "f" else text

    def _finite(self, index: int, text: bytes) -> bytes:
        # orjson would silently write null for NaN and infinity.
        if b"null" in text:
            raise InferenceFailedError(
                f"output {self.output_names[index]!r} holds NaN or infinity, which JSON does not support; "
                "request binary data instead"
            )
        return text

    @cached_property
    def probabilities(self) -> Array | None:
        """(rows, labels) float32 of the labelled output, or None if the card has no labels."""
        scores, are_logits = self._labelled_scores()
        if scores is None or not are_logits:
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def best(self) -> list[tuple[int, bytes]]:
        """Index and probability of the most likely label of each row; empty without labels."""
        if self._best is None:
            self._best = self._find_best()
        return self._best

    def _find_best(self) -> list[tuple[int, bytes]]:
        scores, are_logits = self._labelled_scores()
        if scores is None:
            return []
        if scores.size <= _FEW:
            # numpy's calls would take longer than the arithmetic
            found = []
            for row in scores.tolist():
                top = max(row)
                label = row.index(top)
                if are_logits:
                    top = 1 / sum([math.exp(score - top) for score in row])
                found.append((label, orjson.dumps(round(top, _DIGITS))))
            return found
        indices = scores.argmax(axis=1)
        top = scores[np.arange(len(indices)), indices]
        if are_logits:
            # exp(0) of the most likely label, divided by the sum.
            top = 1 / np.exp(scores - top[:, None]).sum(axis=1)
        texts = orjson.dumps(top.astype(np.float64).round(_DIGITS), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        return list(zip(indices.tolist(), texts, strict=True))

    def _labelled_scores(self) -> tuple[Array | None, bool]:
        """(rows, labels) float32 of the labelled output, or None without labels; whether they are logits."""
        labelled = self.model.labelled
        if labelled is None or labelled.name not in self.output_names:
            return None, False
        scores = self.arrays[self.output_names.index(labelled.name)]
        return scores if scores.dtype is _FLOAT32 else scores.astype(np.float32), labelled.kind == "logits"


def _json_of(array: Array) -> bytes:
    """Encode an array as JSON.

    Raises:
        MemoryError: Memory may be insufficient. orjson would abort the process, so a trial allocation comes first.
    """
    if array.size > _SMALL:
        # A buffer that doubles exists beside the previous one; untouched pages cost no memory.
        np.empty(3 * _MOST_CHARACTERS * array.size, np.uint8)
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
