"""Deviation of a converted model's outputs from the original's on the same batches."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panther.convert.forward import Forward, call, outputs_of
from panther.runs import processes

# bytes of the original's outputs that are kept for the comparison
_MOST_BYTES = 2**28
# share of the batches in a sample, and the fewest output rows of one
_SAMPLE, _SAMPLE_ROWS = 4, 256


class Deviation(NamedTuple):
    """Deviation of a model's outputs from the original's finite ones; scores may be masked by -inf.

    Attributes:
        error: √(Σ ‖y - ŷ‖² / Σ ‖y‖²), the root mean square over outputs where there are several.
        cosine: the mean cosine between y and ŷ over rows (last axes), the mean over outputs.
    """

    error: float
    cosine: float


class Reference:
    """The original's outputs on the batches, as many as fit in memory.

    Args:
        model: the original, in eval mode.
        batches, forward: as `panther.convert.forward.call` takes them.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> None:
        self._batches: list[tuple[Any, list[Tensor]]] = []
        self._forward = forward
        self._given = len(batches)
        kept = 0
        for batch in batches:
            outputs = _rows(lambda batch: call(model, batch, forward), batch)
            kept += sum(y.numel() * y.element_size() for y in outputs)
            if kept > _MOST_BYTES and self._batches:
                break
            self._batches.append((batch, outputs))

    @property
    def has_outputs(self) -> bool:
        """Whether there is anything to compare."""
        return any(bool(y.isfinite().any()) for _, outputs in self._batches for y in outputs)

    @property
    def measured_on(self) -> str:
        """The inputs that are compared, in words."""
        batches = len(self._batches)
        rows = [max((len(y) for y in outputs), default=0) for _, outputs in self._batches]
        some = f"the first {batches} of {self._given}" if batches < self._given else f"{batches}"
        return f"{some} calibration batch{'es' if self._given > 1 else ''}, {sum(rows):,} output rows"

    @property
    def all_finite(self) -> bool:
        """Whether all of the original's outputs could be compared."""
        return all(bool(y.isfinite().all()) for _, outputs in self._batches for y in outputs)

    @property
    def norm(self) -> float:
        """The norm of the original's finite outputs, by which another original is recognized."""
        squares = [y.double().where(y.isfinite(), 0.0).square().sum() for _, outputs in self._batches for y in outputs]
        return math.sqrt(sum(square.item() for square in squares))

    def sample(self) -> Reference:
        """A part of the batches, a quarter spread over all, or as many more as have enough rows."""
        rows = sum(max((len(y) for y in outputs), default=0) for _, outputs in self._batches)
        count = len(self._batches)
        kept = min(count, max(-(-count // _SAMPLE), -(-count * _SAMPLE_ROWS // max(1, rows))))
        found = copy.copy(self)
        found._batches = [self._batches[i * count // kept] for i in range(kept)]
        return found

    @property
    def batches(self) -> int:
        """How many are compared."""
        return len(self._batches)

    def deviation(self, model: nn.Module, *, shared: bool = False) -> Deviation:
        """Compare the outputs of a model for the same batches; several processes can share these."""
        return self.deviation_of(lambda batch: call(model, batch, self._forward), shared=shared)

    def deviation_of(self, run: Callable[[Any], Any], *, shared: bool = False) -> Deviation:
        """Compare the outputs for each batch that anything returns, as a model would."""
        sums = [[0.0] * 4 for _ in range(max(len(outputs) for _, outputs in self._batches))]
        for number, (batch, expected) in enumerate(self._batches):
            if shared and number % processes.world_size() != processes.rank():
                continue
            for entry, y, y_hat in zip(sums, expected, _rows(run, batch), strict=False):
                finite = y.isfinite()
                reference, found = y.double().where(finite, 0.0), y_hat.double().where(finite, 0.0)
                # a model that overflows counts as further off than any other, even beside a NaN
                entry[0] += (reference - found).nan_to_num(nan=math.inf, posinf=math.inf).square().sum().item()
                entry[1] += reference.square().sum().item()
                entry[2] += nn.functional.cosine_similarity(reference, found, dim=-1).sum().item()
                entry[3] += int(finite.any(dim=-1).sum())
        if shared:
            of_all = processes.of_all(sums)
            sums = [[sum(values) for values in zip(*entries, strict=True)] for entries in zip(*of_all, strict=True)]
        errors = [lost / max(total, torch.finfo(torch.float64).tiny) for lost, total, _, rows in sums if rows]
        cosines = [cosine / rows for _, _, cosine, rows in sums if rows]
        return Deviation((sum(errors) / len(errors)) ** 0.5, sum(cosines) / len(cosines))


@torch.no_grad()
def _rows(run: Callable[[Any], Any], batch: Any) -> list[Tensor]:
    with warnings.catch_warnings():
        # torch's fast path for padding masks uses nested tensors
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        outputs = outputs_of(run(batch), batch)
    return [
        (y[mask] if mask is not None else y.flatten(0, -2) if y.dim() > 1 else y.unsqueeze(0)).cpu()
        for y, mask in outputs
    ]
