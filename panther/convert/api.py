"""`sketch_`: a trained model's linear layers replaced by the sketched ones that keep its outputs best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from panther.convert import plan
from panther.convert.calls import Forward, batches_of, check_differentiable, evaluating
from panther.convert.errors import ConversionError
from panther.convert.moments import Moments, collect
from panther.convert.outputs import Deviation, Reference
from panther.convert.plan import Candidate, Plan
from panther.convert.report import ConversionReport
from panther.convert.swap import Swap
from panther.convert.units import Filter, Unit, find_units, sketched_from

# steps of the search for the smallest budget that keeps max_error
_SEARCH_STEPS = 8


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
    forward: Forward | None = None,
    probes: int = 8,
    generator: torch.Generator | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> ConversionReport:
    """Replace the linear layers of a trained model by sketched ones, in place; on any error the model is as it was.

    Without calibration each layer becomes a truncated SVD of its weight. With calibration inputs, it becomes the best
    matrix of its rank for the inputs that it sees and for the effect that its outputs have on the model's, and the
    ranks are shared out by that effect too (docs/conversion.md has the mathematics).

    Args:
        model: any module that contains nn.Linear layers, or the Conv1D of transformers.
        ratio: the budget as a share of the parameters of the linear layers in play: stored parameters after the
            conversion, learnable and fixed (U) together, by those before, biases on both sides. Layers in play are
            those that skip and filter_fn leave, also where they have to stay dense.
        max_bytes: the budget as bytes of the whole model's parameters and buffers.
        max_error: the smallest model whose outputs on the calibration inputs keep ‖y - ŷ‖ / ‖y‖ within this; without
            calibration, the smallest layers that keep ‖W - Ŵ‖ / ‖W‖ within it, each for itself.
        calibration: inputs such as the model gets in use: batches in a DataLoader or any iterable, or one tensor or
            dict. A few hundred rows do. Labels are left out: of a tuple the model gets as many entries as its forward
            needs, of a dict those that its forward takes.
        filter_fn: (module, name) → whether to convert that layer.
        skip: names of layers to leave out, of modules that contain them, or patterns such as ``"*.query"``.
        forward: (model, batch) → outputs, where the model is to be called in another way.
        probes: backward passes for each batch, which estimate how a layer's outputs move the model's; 0 for none.
        generator: on the CPU, of the random directions of these passes; a fixed seed when None.
        on_step: called with (what, done, all) as the work goes on.

    Returns:
        What was done with every layer and why, with costs and errors.

    Raises:
        ValueError: an argument is out of range, or the budget can't be met; says what could.
        ConversionError: the model has no linear layer to convert, or calibration can't be run.
    """
    _check(model, ratio, max_bytes, max_error, probes)
    report_step = on_step if on_step is not None else lambda *_: None
    units = find_units(model, filter_fn, skip)
    if not units:
        raise ConversionError("the model has no linear layer to convert" + _left_out(filter_fn, skip))
    batches = None if calibration is None else batches_of(calibration)
    if batches is not None:
        check_differentiable(model)
    with evaluating(model):
        reference, moments = None, None
        if batches is not None:
            active = [unit for unit in units if unit.reason is None]
            done = iter(range(1, len(batches) + 1))
            moments = dict(
                zip(
                    map(id, active),
                    collect(
                        model,
                        active,
                        batches,
                        forward,
                        probes=probes,
                        generator=generator if generator is not None else torch.Generator().manual_seed(0),
                        on_batch=lambda: report_step("calibrating", next(done), len(batches)),
                    ),
                    strict=True,
                )
            )
            reference = Reference(model, batches, forward)
            if not reference.has_outputs:
                raise ConversionError(
                    "calibration: the model put out no finite floating-point numbers to compare; scalars are left out, "
                    "and what is no tensor, mapping, tuple or list (forward may return others)"
                )
        candidates = plan.candidates(units, moments, report_step)
        budgets = plan.Budgets(model, units, candidates, in_bytes=max_bytes is not None)
        if max_error is not None:
            chosen, deviation = _within_error(model, budgets, reference, max_error, report_step)
        else:
            limit = budgets.for_ratio(ratio) if ratio is not None else budgets.for_bytes(max_bytes or 0)
            chosen, deviation = _best(model, budgets, reference, limit, report_step)
        if reference is not None and deviation is None:
            with _swap(model, chosen):
                deviation = reference.deviation(model)
    before = plan.model_size(model)
    # made anew, now that the modules have their own training mode and requires_grad again
    swap = _swap(model, chosen)
    swap.do()
    try:
        return _report(model, units, chosen, before, deviation, _notes(units, moments, reference, probes))
    except BaseException:
        swap.undo()
        raise


def _best(
    model: nn.Module,
    budgets: plan.Budgets,
    reference: Reference | None,
    limit: float,
    report_step: Callable[[str, int, int], None],
) -> tuple[Plan, Deviation | None]:
    """The allocated plan, or the uniform one where its outputs are closer."""
    plans = budgets.plans(limit)
    if reference is None or len(plans) == 1:
        return min(plans, key=lambda plan: plan.predicted), None
    measured = []
    for i, candidate in enumerate(plans):
        with _swap(model, candidate):
            measured.append((reference.deviation(model), i))
        report_step("comparing", i + 1, len(plans))
    deviation, best = min(measured)
    return plans[best], deviation


def _within_error(
    model: nn.Module,
    budgets: plan.Budgets,
    reference: Reference | None,
    max_error: float,
    report_step: Callable[[str, int, int], None],
) -> tuple[Plan, Deviation | None]:
    """The cheapest plan found that keeps the error, by bisection over the budget."""
    if reference is None:
        return budgets.by_weight_error(max_error), None
    low, high = float(budgets.least), float(budgets.dense)
    best: tuple[Plan, Deviation | None] = (budgets.all_dense(), None)
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
    replacements = []
    for candidate, rank in chosen.ranks:
        if rank is None:
            continue
        layers = _layers(candidate, rank)
        replacements += list(zip(candidate.unit.places, layers, strict=True))
    return Swap(model, replacements)


def _layers(candidate: Candidate, rank: int) -> Sequence[nn.Module]:
    left, right = candidate.factors(rank)
    biases: dict[int, Tensor | None] = {id(bias): candidate.bias(bias, rank) for bias in candidate.unit.biases}
    return sketched_from(candidate.unit, left, right, biases)


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
    units: Sequence[Unit], moments: Mapping[int, Moments] | None, reference: Reference | None, probes: int
) -> tuple[str, ...]:
    if moments is None or reference is None:
        return ("without calibration inputs: each layer is the truncated SVD of its weight",)
    notes = []
    if probes and all(seen.sensitivity is None for seen in moments.values()):
        notes.append("the outputs have no derivatives: each layer was fitted to its own outputs")
    elif probes:
        seen = {unit.name: moments[id(unit)] for unit in units if id(unit) in moments}
        without = [name for name, found in seen.items() if found.rows and found.sensitivity is None]
        if without:
            notes.append(f"fitted to their own outputs, which run without derivatives: {', '.join(without)}")
    if not reference.all_finite:
        notes.append("some of the original's outputs are infinite or NaN; the others were compared")
    return tuple(notes)


def _check(model: Any, ratio: Any, max_bytes: Any, max_error: Any, probes: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model ({type(model).__name__}) must be an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("the model is compiled by TorchScript; convert it before it is scripted or traced")
    if isinstance(model, nn.Linear):
        raise ValueError("model is itself an nn.Linear and can't be replaced in place; use SKLinear.from_linear")
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
        raise ValueError(f"probes ({probes!r}) must be an integer from 0 on")


def _left_out(filter_fn: Filter | None, skip: Iterable[str]) -> str:
    return " that filter_fn and skip leave" if filter_fn is not None or skip else ""
