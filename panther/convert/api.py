"""`sketch_`: replace a trained model's linear layers and convolutions by sketched ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from panther.convert import plan
from panther.convert.candidates import Candidate
from panther.convert.deviation import Deviation, Reference
from panther.convert.embeddings import BAGS, TABLES
from panther.convert.errors import ConversionError
from panther.convert.experts import mark_pooled
from panther.convert.forward import Forward, batches_of, check_batches, check_differentiable, evaluating
from panther.convert.gates import gated, measure
from panther.convert.groups import Calibration, calibrate
from panther.convert.layers import Filter, Place, Unit, find_units, kinds_in_play
from panther.convert.memory import allowed, parse_size
from panther.convert.opened import closed, opened
from panther.convert.plan import Plan
from panther.convert.reach import unreached
from panther.convert.report import ConversionReport, Unreached
from panther.convert.restore import describe_for_transformers
from panther.convert.swap import Swap

# passes of gates need fewer: they add up the squares of many examples
_PROBES_PER_GATE_PROBE = 4
# steps of the bisection for the smallest budget that keeps max_error
_SEARCH_STEPS = 8
# layer types and their own conversion functions
_BY_HAND: dict[type[nn.Module], str] = {
    nn.Linear: "SKLinear.from_linear",
    nn.Conv2d: "SKConv2d.from_conv",
    nn.Conv1d: "SKConv1d.from_conv",
    nn.Embedding: "LowRankEmbedding.from_embedding",
    nn.EmbeddingBag: "LowRankEmbeddingBag.from_embedding",
}


@torch.inference_mode(mode=False)
def sketch_(
    model: nn.Module,
    *,
    ratio: float | None = None,
    max_bytes: int | None = None,
    max_error: float | None = None,
    calibration: Any = None,
    filter_fn: Filter | None = None,
    skip: Iterable[str] = (),
    embeddings: bool | None = None,
    forward: Forward | None = None,
    probes: int = 8,
    memory: int | str | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> ConversionReport:
    """Replace the layers of a trained model by sketched ones, in place; on any error the model is unchanged.

    Linear layers become `SKLinear`, and convolutions `SKConv2d` or `SKConv1d`. The projections of
    nn.MultiheadAttention, the matrices of packed experts and the input weights of recurrent layers are linear layers
    too: their module is replaced by one that calls them (docs/conversion.md lists which). Without calibration, each
    layer becomes a truncated SVD of its (unfolded) weight. With calibration inputs, it becomes the best matrix of its
    rank for its inputs and for the effect of its outputs on the model's, and the same effect decides the ranks
    (docs/conversion.md has the mathematics).

    Args:
        model: any module that contains nn.Linear, nn.Conv2d or nn.Conv1d layers, the Conv1D of transformers, or one of
            the modules above.
        ratio: the budget as a share of the parameters of the eligible layers: stored parameters after the conversion,
            learnable and fixed (U), divided by those before, with biases on both sides. Eligible layers are all that
            skip and filter_fn leave, including those that have to stay dense.
        max_bytes: the budget as bytes of the whole model's parameters and buffers.
        max_error: the budget as ‖y - ŷ‖ / ‖y‖ of the outputs on the calibration inputs, for the smallest model; without
            calibration, as ‖W - Ŵ‖ / ‖W‖ of each layer.
        calibration: typical inputs: batches in a DataLoader or any iterable, or one tensor or dict. A few hundred rows
            are enough. Labels are ignored: the model gets as many entries of a tuple as its forward needs, and the
            entries of a dict that its forward takes.
        filter_fn: (module, name) → whether to convert that layer; ``lambda module, name: isinstance(module,
            nn.Linear)`` leaves convolutions alone.
        skip: names of layers to leave out, of modules that contain them, or patterns such as ``"*.query"``.
        embeddings: convert nn.Embedding and nn.EmbeddingBag too, to `LowRankEmbedding` and `LowRankEmbeddingBag`. When
            None, ratio counts bags alone beside the other layers, and the other budgets count all.
        forward: (model, batch) → outputs, if the model needs a custom call.
        probes: backward passes per batch; they estimate how a layer's outputs affect the model's. A quarter as many
            again estimate the effect of every component. 0 for none.
        memory: limit on calibration statistics per device: bytes, or a text such as "8GB". Layers are calibrated in
            groups that fit, with a pass over the inputs for each group; the result is the same. Half of the free
            memory when None.
        generator: CPU generator of the random directions; a fixed seed when None.
        on_step: called with (step, done, total) for progress.

    Returns:
        A report of every layer with the reason, costs and errors.

    Raises:
        ValueError: an argument is out of range, or the budget can't be met; the message has the limit.
        ConversionError: the model has no layer to convert, or calibration can't be run.
    """
    _check(model, ratio, max_bytes, max_error, probes)
    most_memory = parse_size(memory)
    report_step = on_step if on_step is not None else lambda *_: None
    tables = BAGS if embeddings is None and ratio is not None else () if embeddings is False else TABLES
    attentions = opened(model, recurrent=True)
    # on exit, attentions without a converted projection are closed again
    with Swap(model, attentions):
        units = find_units(model, filter_fn, skip, convolutions=True, embeddings=tables)
        mark_pooled(model, units)
        elsewhere = unreached(model, units, convolutions=True, embeddings=tables)
        if not units:
            kinds = kinds_in_play(convolutions=True, embeddings=tables)
            raise ConversionError(_nothing_to_convert(kinds, elsewhere, left_out=filter_fn is not None or bool(skip)))
        batches = None if calibration is None else batches_of(calibration)
        if batches is not None:
            check_batches(batches, model, forward, "calibration")
            check_differentiable(model)
        with evaluating(model):
            calibrated = reference = None
            if batches is None:
                ways = [plan.candidates(units, None, report_step)]
            else:
                draws = generator if generator is not None else torch.Generator().manual_seed(0)
                calibrated = calibrate(
                    model,
                    units,
                    batches,
                    forward,
                    probes=probes,
                    generator=draws,
                    memory=most_memory,
                    step=report_step,
                )
                ways, reference = [calibrated.candidates], _reference(model, batches, forward)
                ways += _by_gates(model, ways[0], batches, forward, probes, draws, most_memory, report_step)

            def choose() -> tuple[Plan, Deviation | None]:
                budgets = [plan.Budgets(model, units, way, in_bytes=max_bytes is not None) for way in ways]
                if max_error is not None:
                    return _within_error(model, budgets, reference, max_error, report_step)
                limit = budgets[0].for_ratio(ratio) if ratio is not None else budgets[0].for_bytes(max_bytes or 0)
                return _best(model, budgets, reference, limit, report_step)

            chosen, deviation = choose()
            while plan.keep_overflowing_dense(chosen):
                ways = [[candidate for candidate in way if candidate.unit.reason is None] for way in ways]
                chosen, deviation = choose()
            if reference is not None and deviation is None:
                with _swap(model, chosen):
                    deviation = reference.deviation(model)
    before = plan.model_size(model)
    # rebuilt: the modules have their training mode and requires_grad back
    swap = Swap(model, closed(attentions, _replacements(chosen)))
    swap.do()
    try:
        notes = _notes(units, calibrated, reference, probes, swap.zero_padded)
        if deviation is not None and not math.isfinite(deviation.error):
            notes += ("the converted model's outputs overflow where the original's are finite",)
        report = _report(model, units, chosen, before, deviation, notes)
        describe_for_transformers(model)
        measured_on = "" if reference is None else reference.measured_on
        return replace(report, unreached=elsewhere, measured_on=measured_on)
    except BaseException:
        swap.undo()
        raise


def _reference(model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> Reference:
    """The original's outputs.

    Raises:
        ConversionError: there is nothing that can be compared.
    """
    reference = Reference(model, batches, forward)
    if not reference.has_outputs:
        raise ConversionError(
            "calibration: the model returned no finite floating-point numbers to compare; scalars are left out, "
            "as is all but tensors, mappings, tuples and lists: let forward return one of these"
        )
    return reference


def _by_gates(
    model: nn.Module,
    found: Sequence[Candidate],
    batches: Sequence[Any],
    forward: Forward | None,
    probes: int,
    generator: torch.Generator,
    memory: int | None,
    report_step: Callable[[str, int, int], None],
) -> list[list[Candidate]]:
    """The candidates with errors by gates, in two ways; none without probes."""
    if not probes:
        return []
    gates = measure(
        model,
        found,
        batches,
        forward,
        probes=max(1, probes // _PROBES_PER_GATE_PROBE),
        generator=generator,
        room={device: allowed(device, memory) for device in {candidate.unit.device for candidate in found}},
        on_batch=lambda done, every: report_step("measuring", done, every),
    )
    return gated(found, gates)


def _best(
    model: nn.Module,
    budgets: Sequence[plan.Budgets],
    reference: Reference | None,
    limit: float,
    report_step: Callable[[str, int, int], None],
) -> tuple[Plan, Deviation | None]:
    """The plan whose output error is smallest: ranks allocated by the errors of each way, or uniform."""
    plans = budgets[0].plans(limit)
    plans += [replace(each.plans(limit)[0], allocation="allocated by gates") for each in budgets[1:]]
    if reference is None or len(plans) == 1:
        return min(plans, key=lambda plan: plan.predicted), None
    sample, measured = reference.sample(), []
    for i, candidate in enumerate(plans):
        with _swap(model, candidate):
            measured.append((sample.deviation(model), i))
        report_step("comparing", i + 1, len(plans))
    deviation, best = min(measured)
    # what is compared on a part of the inputs is reported on all of them
    return plans[best], deviation if sample.batches == reference.batches else None


def _within_error(
    model: nn.Module,
    budgets: Sequence[plan.Budgets],
    reference: Reference | None,
    max_error: float,
    report_step: Callable[[str, int, int], None],
) -> tuple[Plan, Deviation | None]:
    """The cheapest plan within the error, by bisection over the budget."""
    if reference is None:
        return budgets[0].by_weight_error(max_error), None
    low, high = float(budgets[0].least), float(budgets[0].dense)
    best: tuple[Plan, Deviation | None] = (budgets[0].all_dense(), None)
    for step in range(_SEARCH_STEPS + 1):
        limit = low if step == 0 else (low + high) / 2
        found, deviation = _best(model, budgets, reference, limit, lambda *_: None)
        if deviation is None:
            with _swap(model, found):
                deviation = reference.deviation(model)
        report_step("searching", step + 1, _SEARCH_STEPS + 1)
        if deviation.error <= max_error:
            best, high = (found, deviation), limit
            if step == 0:
                break
        else:
            low = limit
    return best


def _swap(model: nn.Module, chosen: Plan) -> Swap:
    return Swap(model, _replacements(chosen))


def _replacements(chosen: Plan) -> list[tuple[Place, nn.Module]]:
    replacements: list[tuple[Place, nn.Module]] = []
    for candidate, rank in chosen.ranks:
        if rank is not None:
            replacements += list(zip(candidate.unit.places, candidate.layers(rank), strict=True))
    return replacements


def _report(
    model: nn.Module,
    units: Sequence[Any],
    chosen: Plan,
    before: tuple[int, int],
    deviation: Deviation | None,
    notes: tuple[str, ...],
) -> ConversionReport:
    by_unit = {id(candidate.unit): (candidate, rank) for candidate, rank in chosen.ranks}
    layers = tuple(plan.layer_report(unit, *by_unit.get(id(unit), (None, None))) for unit in units)
    after = plan.model_size(model)
    return ConversionReport(
        layers=layers,
        before=plan.total(layer.before for layer in layers),
        after=plan.total(layer.after for layer in layers),
        model_parameters_before=before[0],
        model_parameters_after=after[0],
        model_bytes_before=before[1],
        model_bytes_after=after[1],
        allocation=chosen.allocation,
        output_error=deviation.error if deviation is not None else None,
        output_cosine=deviation.cosine if deviation is not None else None,
        notes=notes,
    )


def _notes(
    units: Sequence[Unit],
    calibrated: Calibration | None,
    reference: Reference | None,
    probes: int,
    zero_padded: Sequence[str],
) -> tuple[str, ...]:
    notes = []
    if calibrated is None or reference is None:
        notes.append("without calibration inputs: each layer is the truncated SVD of its weight")
    else:
        notes += calibrated.notes
        seen = calibrated.seen
        if probes and not any(layer.derivatives for layer in seen.values()):
            notes.append("the outputs have no derivatives: each layer was fitted to its own outputs")
        elif probes:
            layers = {unit.name: seen[id(unit)] for unit in units if id(unit) in seen}
            without = [name for name, layer in layers.items() if layer.rows and not layer.derivatives]
            if without:
                notes.append(f"fitted to their own outputs, which run without derivatives: {', '.join(without)}")
        if not reference.all_finite:
            notes.append("some of the original's outputs are infinite or NaN; the others were compared")
    if zero_padded:
        notes.append(
            f"{', '.join(zero_padded)}: torch's fast path of nn.TransformerEncoder, which can't run sketched layers, "
            "writes zeros at padded places in eval mode without gradients; they are written as before"
        )
    return tuple(notes)


def _check(model: Any, ratio: Any, max_bytes: Any, max_error: Any, probes: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model ({type(model).__name__}) must be an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("the model is compiled by TorchScript; convert it before it is scripted or traced")
    for kind, instead in _BY_HAND.items():
        if isinstance(model, kind):
            name = f"nn.{kind.__name__}"
            raise ValueError(f"model is itself an {name} and can't be replaced in place; use {instead}")
    given = {"ratio": ratio, "max_bytes": max_bytes, "max_error": max_error}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give one of ratio, max_bytes and max_error; given: {', '.join(named) or 'none'}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio ({ratio}) must be above 0 and at most 1")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes ({max_bytes}) must be at least 1")
    if max_error is not None and not max_error >= 0:
        raise ValueError(f"max_error ({max_error}) must be at least 0")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
        raise ValueError(f"probes ({probes!r}) must be an integer of at least 0")


def _nothing_to_convert(kinds: str, elsewhere: Sequence[Unreached], *, left_out: bool) -> str:
    held = ", ".join(f"{group.kind} {group.share:.0%} ({group.reason})" for group in elsewhere[:4])
    return (
        f"the model has no {kinds} to convert"
        + (" that filter_fn and skip leave" if left_out else "")
        + (f"; its parameters are in: {held}" if held else "")
    )
