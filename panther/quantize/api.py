"""`quantize_`: quantize a trained model's linear layers, convolutions and embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from panther.convert.collected import Needs, collect_within
from panther.convert.deviation import Reference
from panther.convert.errors import ConversionError
from panther.convert.forward import Forward, batches_of, check_batches, check_differentiable, evaluating
from panther.convert.layers import Filter, Unit, find_units
from panther.convert.memory import parse_size
from panther.convert.opened import closed, opened
from panther.convert.swap import Swap
from panther.quantize import embeddings
from panther.quantize.block_option import block_options
from panther.quantize.blocks import Blocks
from panther.quantize.candidates import candidates
from panther.quantize.convolutions import storable, stored_options
from panther.quantize.embeddings import Table
from panther.quantize.needs import kept_rows, work_in_blocks, work_on_ranges
from panther.quantize.observe import SAMPLE, observe, share_experts
from panther.quantize.plan import Decision, Plan, Quantizer, embedding_layers, planned_layers
from panther.quantize.report import QuantizationReport
from panther.quantize.sketched import find_sketched

ALPHAS = (0.0, 0.35, 0.5, 0.65, 0.8)
_SEED = 0


@torch.inference_mode(mode=False)
def quantize_(
    model: nn.Module,
    *,
    calibration: Any,
    weights: str | Blocks = "int8",
    max_error: float | None = None,
    embedding_bits: int | None = 8,
    alphas: Sequence[float] = ALPHAS,
    filter_fn: Filter | None = None,
    skip: Iterable[str] = (),
    forward: Forward | None = None,
    probes: int = 8,
    memory: int | str | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> QuantizationReport:
    """Quantize the layers of a trained model, in place; on any error the model is unchanged.

    With weights="int8", weights get 8 bits and a scale per output channel; activations get 8 bits with a constant scale
    and zero point per tensor. Ranges and smoothing (outliers moved from activations into weights) are chosen by their
    predicted effect on the model's outputs. This is the fastest format.

    With weights="int4", weights get 4 bits, with a scale and a zero point for each block of a row. This is the smallest
    format. Sketched layers with learned factors, as `sketch_` makes them, are quantized too; "int8" leaves them.

    Convolutions are stored in these bits and unpacked to float32 when a file is loaded: they get smaller, not faster.
    With both formats the output for a row does not depend on its batch.

    Args:
        model: any module that contains nn.Linear layers, nn.MultiheadAttention, the Conv1D of transformers, or experts
            (docs/conversion.md says which), nn.Conv1d, nn.Conv2d, or embeddings.
        calibration: typical inputs: batches in a DataLoader or any iterable, or one tensor or dict. A few hundred rows
            are enough.
        weights: "int8" for static int8, "int4" for blocks of 4 bits, or a `panther.quantize.Blocks` with more options.
        max_error: limit on ‖y - ŷ‖ / ‖y‖ of the model's outputs on the calibration inputs. The layers with the largest
            error stay in float32, as few as possible; layers and embeddings in 4 bits get 8 bits first. None quantizes
            all.
        embedding_bits: 8 stores embeddings in 8 bits with a scale per row, 4 in blocks of 4 bits; None leaves them
            unchanged.
        alphas: smoothing strengths to try for weights="int8", from 0 (none) to 1.
        filter_fn: (module, name) → whether to quantize that linear layer, sketched layer or convolution.
        skip: names of linear layers and convolutions to leave out, of modules that contain them, or patterns such as
            ``"*.query"``.
        forward: (model, batch) → outputs, if the model needs a custom call.
        probes: backward passes per batch; they estimate how a layer's outputs affect the model's.
        memory: limit on calibration statistics and the work on a layer, on each device: bytes, or a text such as "8GB".
            If they don't fit, layers are calibrated in groups, with a pass over the inputs for each, and the statistics
            are kept in temporary files; the result is the same. Half of the free memory when None.
        generator: CPU generator of the random directions and sampled rows; a fixed seed when None.
        on_step: called with (step, done, total) for progress.

    Returns:
        A report of every layer with the reason, bytes and errors.

    Raises:
        ValueError: an argument is out of range, or memory is too small for a layer; the message has the least.
        ConversionError: the model has nothing to quantize, or calibration can't be run.
    """
    _check(model, max_error, embedding_bits, alphas, probes)
    ladder, most_memory = _ladder(weights), parse_size(memory)
    step = on_step if on_step is not None else lambda *_: None
    random = generator if generator is not None else torch.Generator().manual_seed(_SEED)
    modules = opened(model)
    # on exit, opened modules without a quantized layer are closed again
    with Swap(model, modules):
        layers = _Layers.of(model, filter_fn, skip, embedding_bits, sketched=bool(ladder))
        active, convolved = layers.active, layers.convolved
        batches = batches_of(calibration)
        check_batches(batches, model, forward, "calibration")
        check_differentiable(model)
        with evaluating(model):
            watched = [*active, *(unit for unit in convolved if unit.reason is None)]
            collected = collect_within(
                model,
                watched,
                batches,
                forward,
                probes=probes,
                generator=random,
                memory=most_memory,
                needs=Needs(kept_rows, work_in_blocks if ladder else work_on_ranges),
                step=step,
            )
            seen = observe(
                model,
                active,
                batches,
                forward,
                sample=SAMPLE,
                generator=random,
                keeper=collected.keeper,
                on_batch=collected.on_batch,
            )
            reference = Reference(model, batches, forward)
            if not reference.has_outputs:
                raise ConversionError("calibration: the model returned no finite floating-point numbers to compare")
            by_unit = collected.moments
            share_experts(model, active, by_unit, seen)
            quantizer = Quantizer(model, layers.tables, reference, step)
            if ladder:
                options = block_options(active, by_unit, seen, ladder)
                plan = Plan(tuple(Decision(choices[0].unit, choices) for choices in options))
            else:
                plan = quantizer.best_smoothing(candidates(active, by_unit, seen, alphas, step), alphas)
            bits = [blocks.bits for blocks in ladder] or [8]
            plan = plan.with_options(stored_options(convolved, by_unit, seen.examples, bits))
            plan = quantizer.final(plan) if max_error is None else quantizer.within(plan, max_error)
    swap = Swap(model, closed(modules, quantizer.replacements(plan)))
    swap.do()
    try:
        notes = [*collected.notes, *quantizer.notes(plan)]
        if swap.zero_padded:
            notes.append(f"{', '.join(swap.zero_padded)}: padded places are zero, as in torch's fast path")
        return QuantizationReport(
            layers=(*planned_layers(layers.in_order, plan), *embedding_layers(quantizer.tables)),
            smoothing=plan.smoothing,
            output_error=plan.deviation.error,
            output_cosine=plan.deviation.cosine,
            measured_on=reference.measured_on,
            notes=tuple(notes),
        )
    except BaseException:
        swap.undo()
        raise


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The eligible layers of a model.

    Attributes:
        active: linear and sketched layers without a reason against them.
        convolved: convolutions.
        in_order: all of both kinds, in the order of the model.
        tables: embeddings.
    """

    active: list[Unit]
    convolved: list[Unit]
    in_order: list[Unit]
    tables: list[Table]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        filter_fn: Filter | None,
        skip: Iterable[str],
        embedding_bits: int | None,
        *,
        sketched: bool,
    ) -> _Layers:
        """Find them, sketched layers if asked.

        Raises:
            ConversionError: there are none.
        """
        every = find_units(model, filter_fn, skip, convolutions=True)
        units = [unit for unit in every if unit.convolution is None]
        convolved = [unit for unit in every if unit.convolution is not None]
        if sketched:
            units += find_sketched(model, filter_fn, skip)
        places = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
        in_order = sorted([*units, *convolved], key=lambda unit: places[unit.name])
        tables = embeddings.find(model, embedding_bits) if embedding_bits is not None else []
        active = [unit for unit in units if unit.reason is None]
        if not active and not tables and not any(map(storable, convolved)):
            raise ConversionError("the model has no linear layer, convolution or embedding to quantize")
        return cls(active, convolved, in_order, tables)


def _ladder(weights: str | Blocks) -> tuple[Blocks, ...]:
    """The formats that a layer goes through before it stays in float32; none for static int8."""
    if weights == "int8":
        return ()
    if weights == "int4":
        weights = Blocks()
    if not isinstance(weights, Blocks):
        raise ValueError(f"weights ({weights!r}) must be 'int8', 'int4' or a panther.quantize.Blocks")
    more = dataclasses.replace(weights, bits=8, correction_rank=0)
    return (weights, more) if weights.bits < more.bits else (weights,)


def _check(model: Any, max_error: Any, embedding_bits: Any, alphas: Sequence[float], probes: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model ({type(model).__name__}) must be an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("the model is compiled by TorchScript; quantize it before it is scripted or traced")
    if isinstance(model, nn.Linear | nn.Embedding):
        raise ValueError(
            f"model is itself an nn.{type(model).__name__} and can't be replaced in place; wrap it in nn.Sequential"
        )
    if max_error is not None and not max_error > 0:
        raise ValueError(f"max_error ({max_error}) must be positive")
    if embedding_bits not in (None, 4, 8):
        raise ValueError(f"embedding_bits ({embedding_bits!r}) must be 4, 8 or None")
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas ({list(alphas)}) must lie between 0 and 1, and be at least one")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
        raise ValueError(f"probes ({probes!r}) must be an integer of at least 0")
