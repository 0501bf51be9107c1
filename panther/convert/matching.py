"""The loss of a distillation: the deviation of outputs and hidden states from the teacher's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panther.convert.fast_path import observing
from panther.convert.forward import Forward, call, outputs_of
from panther.convert.quantized import QUANTIZED_LAYERS
from panther.convert.shares import can_share, share_of
from panther.nn import SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.sketched_conv import SketchedConv
from panther.runs import processes
from panther.runs.precision import Precision, autocast

# bytes of teacher outputs that are cached, so that the teacher need not run again
_MOST_BYTES = 2**30


class _Targets(NamedTuple):
    outputs: list[tuple[Tensor, Tensor | None]]
    hidden: dict[str, Tensor]


class _Facts(NamedTuple):
    """What is known of each output and hidden state of the teacher: ‖y‖², and whether an entry is infinite."""

    totals: Tensor
    infinite: list[bool]


class Matching:
    """A loss for each batch, with the teacher's outputs kept where memory allows.

    Args:
        student, teacher: the models; the loss is differentiable in the student.
        batches: to train on.
        names: of the modules whose outputs are hidden states.
        hidden_weight: of the mean error of the hidden states.
        forward: see `panther.convert.forward.call`.
        precision: of the student's forward pass.
        by_rows: whether several processes share the rows of each batch; else each computes all of it.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Any],
        names: Sequence[str],
        hidden_weight: float,
        forward: Forward | None,
        precision: Precision,
        *,
        by_rows: bool,
    ) -> None:
        self.student, self._teacher, self.batches = student, teacher, batches
        self._names, self._hidden_weight, self._forward = names, hidden_weight, forward
        self._precision, self._by_rows = precision, by_rows
        self._device = next(student.parameters()).device
        self._kept: dict[int, _Targets] = {}
        self._kept_bytes = 0
        self._facts: dict[int, _Facts] = {}

    def loss(self, index: int) -> Tensor:
        """This process's part of the student's loss on one batch; the parts of all processes add up to it.

        Once a batch has been used, a step on it waits for no GPU, unless an entry is infinite or masked.
        """
        shared = self._by_rows and can_share(self.batches[index])
        batch = share_of(self.batches[index]) if shared else self.batches[index]
        mask = _mask_of(batch)
        targets = self._targets(index, batch)
        totals, infinite = self._facts_of(index, targets, mask, shared=shared)
        hidden: dict[str, Tensor] = {}
        with observing(self.student), _recording(self.student, self._names, hidden), self._autocast():
            outputs = outputs_of(call(self.student, batch, self._forward), batch)
        losses = [
            _lost(y, y_hat, mask_of_y, holed) / total
            for (y, mask_of_y), (y_hat, _), total, holed in zip(
                targets.outputs, outputs, totals, infinite, strict=False
            )
        ]
        count = len(targets.outputs)
        of_hidden = zip(targets.hidden.items(), totals[count:], infinite[count:], strict=True)
        found = [_lost(y, hidden[name], mask, holed) / total for (name, y), total, holed in of_hidden if name in hidden]
        loss = torch.stack(losses).mean()
        if found:
            loss = loss + self._hidden_weight * torch.stack(found).mean()
        return loss if shared else loss / processes.world_size()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self._precision, self._device)

    def _facts_of(self, index: int, targets: _Targets, mask: Tensor | None, *, shared: bool) -> _Facts:
        """‖y‖² over the whole batch, and infinities of this process's part.

        Kept in all processes alike, since these add up the totals together.
        """
        if index not in self._facts:
            squares = [_squares(y, mask_of_y) for y, mask_of_y in targets.outputs]
            totals = torch.stack([*squares, *(_squares(y, mask) for y in targets.hidden.values())])
            if shared:
                totals = totals.new_tensor(processes.add_up(*totals.tolist(), device=self._device))
            every = [*(y for y, _ in targets.outputs), *targets.hidden.values()]
            infinite = torch.stack([y.isinf().any() for y in every]).tolist()
            self._facts[index] = _Facts(totals.clamp_min(torch.finfo(torch.float32).tiny), infinite)
        return self._facts[index]

    def _targets(self, index: int, batch: Any) -> _Targets:
        if index in self._kept:
            return self._kept[index]
        hidden: dict[str, Tensor] = {}
        with torch.no_grad(), observing(self._teacher), _recording(self._teacher, self._names, hidden):
            outputs = outputs_of(call(self._teacher, batch, self._forward), batch)
        targets = _Targets(
            [(y.to(self._device), None if mask is None else mask.to(self._device)) for y, mask in outputs],
            {name: value.to(self._device) for name, value in hidden.items()},
        )
        size = sum(t.numel() * t.element_size() for t in (*(y for y, _ in targets.outputs), *targets.hidden.values()))
        if self._kept_bytes + size <= _MOST_BYTES:
            self._kept[index] = targets
            self._kept_bytes += size
        return targets


@contextlib.contextmanager
def _recording(model: nn.Module, names: Sequence[str], into: dict[str, Tensor]) -> Iterator[None]:
    """Keep the first floating-point tensor in the output of each of these modules."""

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            tensors = outputs_of(out)
            if tensors:
                into[name] = tensors[0][0]

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_of(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _lost(y: Tensor, y_hat: Tensor, mask: Tensor | None, holed: bool) -> Tensor:
    """‖y - ŷ‖² in float32, over the rows that count where y is not infinite, as it is somewhere if it is holed."""
    y, y_hat = _counted(y, mask), _counted(y_hat, mask, like=y)
    if holed:
        infinite = y.isinf()
        y, y_hat = y[~infinite], y_hat[~infinite]
    return (y - y_hat).square().sum()


def _squares(y: Tensor, mask: Tensor | None) -> Tensor:
    """‖y‖² of the same entries."""
    y = _counted(y, mask)
    return y[~y.isinf()].square().sum()


def _counted(y: Tensor, mask: Tensor | None, like: Tensor | None = None) -> Tensor:
    shape = y.shape if like is None else like.shape
    if mask is not None and len(shape) > 2 and shape[:2] == mask.shape:
        y = y[mask.to(y.device)]
    return y.float()


def hidden_names(student: nn.Module, teacher: nn.Module) -> list[str]:
    """The layers whose outputs are compared: repeated blocks with converted layers, else the converted layers."""
    kinds = (SKLinear, SketchedConv, LowRankTable, *QUANTIZED_LAYERS)
    converted = [name for name, module in student.named_modules() if isinstance(module, kinds)]
    of_teacher = dict(teacher.named_modules())
    blocks = [
        f"{name}.{child}" if name else child
        for name, module in student.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module._modules
    ]
    holding = [
        block for block in blocks if any(name.startswith(f"{block}.") for name in converted) and block in of_teacher
    ]
    return holding or [name for name in converted if name in of_teacher]
