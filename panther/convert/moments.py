"""What calibration tells of each layer: second moments of its inputs, and how its outputs move the model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.calls import Forward, call, outputs_of
from panther.convert.errors import ConversionError
from panther.convert.units import Unit


@dataclass
class Moments:
    """Sums over the rows that a layer saw in calibration; float64, on the layer's device.

    Attributes:
        second: (d_in, d_in), Σ x xᵀ.
        total: (d_in,), Σ x.
        rows: how many, those left out that move no output of the model.
        sensitivity: (d_out, d_out), Σ Jᵀ J over the rows, J being the derivative of the model's outputs with respect
            to the layer's output, estimated with random projections; None where there are no derivatives.
        calls: how often the layer was called.
    """

    second: Tensor
    total: Tensor
    rows: int = 0
    sensitivity: Tensor | None = None
    calls: int = 0

    @property
    def mean(self) -> Tensor:
        """(d_in,)."""
        return self.total / max(self.rows, 1)

    def covariance(self, *, centred: bool) -> Tensor:
        """(d_in, d_in), the mean of x xᵀ, about the mean of x where centred."""
        C = self.second / max(self.rows, 1)
        return C - torch.outer(self.mean, self.mean) if centred else C


@dataclass
class _Call:
    moments: Moments
    x: Tensor
    moves: Tensor | None = None
    # whether its effect on the outputs can be seen; not within torch.no_grad
    watched: bool = True


def collect(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Moments]:
    """Run the batches through the model and gather the moments of every unit.

    For a random v of independent standard normal entries, E[(Jᵀv)(Jᵀv)ᵀ] = JᵀJ: each of the probes is a backward pass
    that starts from such a v at the model's outputs, scaled to the size of the outputs, so that several outputs weigh
    the same. Rows whose derivatives are all zero, as those of padding, count for nothing.

    Args:
        model: in eval mode and frozen.
        units: whose modules are watched.
        batches, forward: as `panther.convert.calls.call` takes them.
        probes: backward passes for each batch.
        generator: of v, on the CPU.
        on_batch: called after each.

    Raises:
        ConversionError: the inputs of a layer hold values that are not finite.
    """
    found = [_empty(unit) for unit in units]
    watch = _Watch(probes=probes, generator=generator)
    handles = [
        place.module.register_forward_hook(watch.hook(moments), with_kwargs=True)
        for unit, moments in zip(units, found, strict=True)
        for place in unit.places
    ]
    try:
        for batch in batches:
            with torch.set_grad_enabled(probes > 0):
                watch.finish(outputs_of(call(model, batch, forward), batch))
            on_batch()
    finally:
        for handle in handles:
            handle.remove()
    for unit, moments in zip(units, found, strict=True):
        if not bool(torch.isfinite(moments.second).all()):
            raise ConversionError(f"calibration: the inputs of {unit.name} hold values that are not finite")
        if moments.sensitivity is not None and not bool(torch.isfinite(moments.sensitivity).all()):
            raise ConversionError(f"calibration: the derivatives at {unit.name} are not finite")
    return found


class _Watch:
    """The calls of the watched layers in one forward pass, and the backward passes that follow it."""

    def __init__(self, *, probes: int, generator: torch.Generator) -> None:
        self._probes, self._generator = probes, generator
        self._calls: list[_Call] = []
        self._anchors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def hook(self, moments: Moments) -> Callable[..., Tensor]:
        """A forward hook for a layer."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            record = _Call(moments, x.detach().reshape(-1, x.shape[-1]))
            self._calls.append(record)
            if not torch.is_grad_enabled():
                record.watched = False
                return out
            key = (out.device, out.dtype)
            if key not in self._anchors:
                self._anchors[key] = torch.zeros((), device=key[0], dtype=key[1], requires_grad=True)
            # a tensor of its own, whose gradient can be had though the parameters are frozen and it may be overwritten
            watched = out + self._anchors[key]
            watched.register_hook(lambda gradient: _add_sensitivity(record, gradient, self._probes))  # type: ignore[no-untyped-call]
            return watched

        return hook

    def finish(self, outputs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Run the backward passes and add up what was seen."""
        moving = [(y, mask) for y, mask in outputs if y.requires_grad]
        for remaining in reversed(range(self._probes if moving else 0)):
            torch.autograd.backward(
                [y for y, _ in moving],
                [_probe(y.detach(), mask, self._generator) for y, mask in moving],
                inputs=list(self._anchors.values()),
                retain_graph=remaining > 0,
            )
        for record in self._calls:
            _add(record, moved=bool(moving))
        self._calls.clear()
        self._anchors.clear()


def _empty(unit: Unit) -> Moments:
    device, d_in = unit.weight.device, unit.in_features
    return Moments(
        torch.zeros(d_in, d_in, dtype=torch.float64, device=device),
        torch.zeros(d_in, dtype=torch.float64, device=device),
    )


def _probe(y: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random v whose outer product weighs the relative squared error of y, times the examples in the batch."""
    v = torch.randn(y.shape, generator=generator, dtype=torch.float32, device=generator.device).to(y.device)
    counted = y.float()
    infinite = counted.isinf()
    if bool(infinite.any()):
        # scores that the model sets to -inf, say: no change of a layer moves them
        v, counted = v.masked_fill(infinite, 0.0), counted.masked_fill(infinite, 0.0)
    if mask is not None:
        v *= mask.unsqueeze(-1)
        counted = counted[mask]
    norm = counted.double().square().sum().sqrt()
    # nothing is relative to an output of zeros alone
    scale = torch.where(norm == 0, 0.0, len(y) ** 0.5 / norm)
    scaled: Tensor = v.double() * scale
    return scaled.to(y.dtype)


def _add_sensitivity(record: _Call, gradient: Tensor, probes: int) -> None:
    g = gradient.detach().reshape(-1, gradient.shape[-1]).float()
    moves = g.abs().sum(1)
    record.moves = moves if record.moves is None else record.moves + moves
    # summed in float64; within one batch float32 is enough for a weighting, once the squares are in its range
    size = moves.max().double().clamp_min(torch.finfo(torch.float32).tiny) if len(g) else moves.new_ones(())
    g = g / size.float()
    product = (g.t() @ g).double() * (size.square() / probes)
    sensitivity = record.moments.sensitivity
    record.moments.sensitivity = product if sensitivity is None else sensitivity + product


def _add(record: _Call, *, moved: bool) -> None:
    x, moments = record.x, record.moments
    moments.calls += 1
    if moved and record.watched:
        x = x[:0] if record.moves is None else x[record.moves != 0]
    x = x.double()
    moments.second += x.t() @ x
    moments.total += x.sum(0)
    moments.rows += len(x)
