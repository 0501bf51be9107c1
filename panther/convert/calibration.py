"""Calibration statistics per layer: second moments of its inputs, and the sensitivity of the model's outputs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert.convolutions import Convolution, rows_of_outputs, sampled_patches
from panther.convert.embeddings import Lookups, is_embedding, lookups_of
from panther.convert.fast_path import observing
from panther.convert.forward import Forward, outputs_of, run
from panther.convert.layers import Unit, bias_of
from panther.convert.moments import CallRows, CallSums, Moments, Sums, empty_moments, sums_of
from panther.convert.precision import rounded_products
from panther.convert.probes import draw_probe

# rows kept of each layer's inputs, to test sketched layers for overflow
EXTREME_ROWS = 8


@dataclass
class _Call:
    moments: Sums
    x: Tensor
    version: int
    # of the input that x has the rows of
    shape: torch.Size
    # its outputs without the bias, (..., d_out), for sums that read them
    products: Tensor | None = None
    convolution: Convolution | None = None
    # output rows that belong to the rows of x; None for all
    sampled: Tensor | None = None
    lookups: Lookups | None = None
    moves: Tensor | None = None
    # whether its effect on the outputs can be measured; not within torch.no_grad
    watched: bool = True
    # whether autograd delivers the derivatives at its inputs; until known, those at its outputs with their scales
    own_inputs: bool = False
    pending: tuple[Tensor, Tensor, Tensor] | None = None
    # in the batch
    examples: int = 0


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
        batches, forward: as `panther.convert.forward.call` takes them.
        probes: backward passes for each batch.
        generator: of v, on the CPU.
        on_batch: called after each.

    Raises:
        ConversionError: the inputs of a layer hold values that are not finite.
    """
    found = [empty_moments(unit) for unit in units]
    watched = list(zip(units, found, strict=True))
    gather(model, watched, batches, forward, probes=probes, generator=generator, on_batch=on_batch)
    return found


def gather(
    model: nn.Module,
    watched: Sequence[tuple[Unit, Sums]],
    batches: Sequence[Any],
    forward: Forward | None,
    *,
    probes: int,
    generator: torch.Generator,
    moving: Sequence[bool] | None = None,
    unwatched: Sequence[Unit] = (),
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Run the batches through the model and add the rows of each unit to its sums.

    Args:
        model, batches, forward, probes, generator, on_batch: as `collect` takes them.
        watched: units with their sums.
        moving: for every output of the model whether some unit moves it, so that v is drawn for it also where no
            watched one does; None to draw for those that the watched units move.
        unwatched: convolutions whose patches are drawn and dropped, so that those of the others stay the same.

    Raises:
        ConversionError: the inputs of a layer hold values that are not finite.
    """
    watch = _Watch(probes=probes, generator=generator, moving=moving)
    handles = [
        # registered after the module's hooks, and called after them
        place.module.register_forward_pre_hook(watch.enter, with_kwargs=True)
        for unit, sums in watched
        for place in unit.places
        if sums_of(sums, place.module).at_inputs
    ]
    handles += [
        place.module.register_forward_hook(watch.hook(sums_of(sums, place.module), unit.convolution), with_kwargs=True)
        for unit, sums in watched
        for place in unit.places
    ]
    handles += [
        place.module.register_forward_hook(watch.drop(unit.convolution), with_kwargs=True)
        for unit in unwatched
        if unit.convolution is not None
        for place in unit.places
    ]
    try:
        for number, batch in enumerate(batches):
            with torch.set_grad_enabled(probes > 0), observing(model):
                watch.finish(outputs_of(run(model, batch, forward, f"calibration: batch {number}"), batch))
            on_batch()
    finally:
        for handle in handles:
            handle.remove()
    for unit, sums in watched:
        sums.check(unit.name)


class _Watch:
    """The calls of the watched layers in one forward pass, and the backward passes that follow it."""

    def __init__(self, *, probes: int, generator: torch.Generator, moving: Sequence[bool] | None = None) -> None:
        self._probes, self._generator, self._moving = probes, generator, moving
        self._calls: list[_Call] = []
        self._anchors: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        # samples positions of images; separate from the generator of v, which convolutions must not change
        self._positions = torch.Generator().manual_seed(0)
        # inputs of the calls in progress, by the id of the module
        self._entered: dict[int, Tensor] = {}
        self._examples = 0
        self.ended = False

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A forward pre-hook that gives a layer its own view of its input, whose derivatives are of this call alone."""
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor) or not x.requires_grad:
            return None
        # narrower types would round the derivatives
        if x.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type):
            return None
        own = self._entered[id(module)] = x.view_as(x)
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): own})

    def drop(self, convolution: Convolution) -> Callable[..., None]:
        """A forward hook that draws the patches of a convolution and drops them, to keep the random state."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Tensor) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            sampled_patches(convolution, x.detach(), self._positions)

        return hook

    def hook(self, moments: Sums, convolution: Convolution | None) -> Callable[..., Tensor]:
        """A forward hook for a layer."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            if is_embedding(module):
                rows = out.detach().reshape(-1, out.shape[-1])
                record = _Call(moments, rows, out._version, out.shape, lookups=lookups_of(module, args, kwargs))
            elif convolution is None:
                record = _Call(moments, x.detach().reshape(-1, x.shape[-1]), x._version, x.shape)
            else:
                patches, sampled = sampled_patches(convolution, x.detach(), self._positions)
                record = _Call(moments, patches, x._version, x.shape, convolution=convolution, sampled=sampled)
            if isinstance(moments, CallSums):
                bias = bias_of(module)
                record.products = out.detach() if bias is None else out.detach() - bias
            self._calls.append(record)
            if not torch.is_grad_enabled():
                record.watched = False
                return out
            key = (out.device, out.dtype)
            if key not in self._anchors:
                self._anchors[key] = torch.zeros((), device=key[0], dtype=key[1], requires_grad=True)
            # a separate tensor has a gradient although the parameters are frozen, and may be overwritten
            watched = out + self._anchors[key]
            watched.register_hook(lambda gradient: self._receive(record, gradient))  # type: ignore[no-untyped-call]
            if self._entered.pop(id(module), None) is x:
                record.own_inputs = True
                x.register_hook(lambda gradient: _add_pending(record, gradient))  # type: ignore[no-untyped-call]
            return watched

        return hook

    def _receive(self, record: _Call, gradient: Tensor | None) -> None:
        if gradient is None:
            # an operation without a derivative, such as a product with quantized weights, stops the backward pass
            self.ended = True
            record.watched = False
        else:
            _add_sensitivity(record, gradient, self._probes, self._examples)

    def finish(self, outputs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Run the backward passes and add the statistics of all calls."""
        moved = self._moving
        if moved is None or len(moved) != len(outputs):
            moved = [y.requires_grad for y, _ in outputs]
        moving = [pair for pair, moves in zip(outputs, moved, strict=True) if moves]
        for remaining in reversed(range(self._probes if moving else 0)):
            # drawn for all outputs, so that v does not depend on the watched layers
            drawn = [(y, draw_probe(y.detach(), mask, self._generator)) for y, mask in moving]
            reached = [(y, v) for y, v in drawn if y.requires_grad]
            if not reached:
                continue
            self._examples = len(reached[0][0])
            try:
                with rounded_products(reached[0][0].device):
                    torch.autograd.backward(
                        [y for y, _ in reached],
                        [v for _, v in reached],
                        inputs=list(self._anchors.values()),
                        retain_graph=remaining > 0,
                    )
                    for record in self._calls:
                        # its inputs lead to no watched layer
                        _add_pending(record, None)
                    for sums in {id(record.moments): record.moments for record in self._calls}.values():
                        if isinstance(sums, CallSums):
                            sums.end_probe()
            except (NotImplementedError, RuntimeError) as error:
                if "not implemented" not in str(error):
                    raise
                # an operation without a derivative
                self.ended = True
                break
        for record in self._calls:
            # the sensitivity of a layer is unknown where the backward pass stops before it
            record.watched = record.watched and not (self.ended and record.moves is None)
            _add(record, moved=bool(moving))
        self._calls.clear()
        self._anchors.clear()
        self._entered.clear()


def _add_sensitivity(record: _Call, gradient: Tensor, probes: int, examples: int) -> None:
    if record.convolution is not None:
        gradient = rows_of_outputs(record.convolution, gradient)
    g = gradient.detach().reshape(-1, gradient.shape[-1]).float()
    moves = torch.linalg.vector_norm(g, ord=1, dim=1)
    record.moves = moves if record.moves is None else record.moves + moves
    # summed in float64; float32 is enough within one batch, once the squares are in its range
    size = moves.max().double().clamp_min(torch.finfo(torch.float32).tiny) if len(g) else moves.new_ones(())
    record.pending = (g / size.float(), size, size.square() / probes)
    record.examples = examples
    if not record.own_inputs:
        _add_pending(record, None)


def _add_pending(record: _Call, at_inputs: Tensor | None) -> None:
    """Add the derivatives at the outputs of a call, once those at its inputs are known, or where they are not."""
    if record.pending is None:
        return
    g, size, scale = record.pending
    record.pending = None
    if at_inputs is not None:
        at_inputs = at_inputs.detach().reshape(-1, at_inputs.shape[-1]).float() / size.float()
    if isinstance(record.moments, CallSums) and record.products is not None:
        rows = CallRows(record.x, record.products, record.shape, record.examples)
        record.moments.add_call(rows, g, scale, at_inputs)
    else:
        record.moments.add_gradients(g, scale, at_inputs)


def _add(record: _Call, *, moved: bool) -> None:
    x, moments = record.x, record.moments
    moments.calls += 1
    if len(x):
        known = x if moments.extreme is None else torch.cat([moments.extreme, x])
        moments.extreme = known[known.abs().amax(1).topk(min(EXTREME_ROWS, len(known))).indices]
    kept: Tensor | None = None
    if moved and record.watched:
        moves = record.moves if record.moves is None or record.sampled is None else record.moves[record.sampled]
        kept = torch.zeros(len(x), dtype=torch.bool, device=x.device) if moves is None else moves != 0
    if record.lookups is not None and isinstance(moments, Moments):
        moments.count(record.lookups if kept is None else record.lookups.moving(kept))
    moments.add(x, kept, record.version)
