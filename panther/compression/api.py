"""`compress`: the most accurate or smallest model under one budget, with the kind of each layer chosen jointly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from panther.compression import rivals
from panther.compression.budget import Budget, Metric
from panther.compression.compressed import Compressed
from panther.compression.convolutions import ConvolutionOptions, stored_alone
from panther.compression.curve import Curve, Point
from panther.compression.inputs import Inputs
from panther.compression.linear import Calibrated, LinearOptions
from panther.compression.needs import needs_of
from panther.compression.options import KINDS, LOW_RANK, LOW_RANK_INT4, LOW_RANK_INT8, Part
from panther.compression.report import CompressionReport, Side, Speed, layer_reports
from panther.compression.search import Search
from panther.compression.speed import SpeedSearch, Timing
from panther.compression.tables import embedding_parts, find_lookups
from panther.compression.trials import Trial, Trials, reachable
from panther.convert.collected import collect_within
from panther.convert.deviation import Reference
from panther.convert.errors import ConversionError
from panther.convert.forward import Forward, batches_of, check_batches, check_differentiable, evaluating
from panther.convert.layers import Filter, Unit, find_units
from panther.convert.memory import parse_size
from panther.convert.opened import close_unchanged, layers_of, opened
from panther.convert.plan import model_size
from panther.convert.reach import unreached
from panther.convert.report import Unreached
from panther.convert.swap import Swap
from panther.export import ExportError
from panther.quantize import embeddings
from panther.quantize.embeddings import Table
from panther.quantize.observe import SAMPLE, observe, share_experts

_SEED = 0
_PREDICTED_POINTS = 24


@torch.inference_mode(mode=False)
def compress(
    model: nn.Module,
    *,
    calibration: Any,
    max_bytes: int | None = None,
    max_error: float | None = None,
    speedup: float | None = None,
    metric: Metric | None = None,
    at_least: float | None = None,
    kinds: Sequence[str] = KINDS,
    filter_fn: Filter | None = None,
    skip: Iterable[str] = (),
    forward: Forward | None = None,
    probes: int = 8,
    batch_size: int = 1,
    threads: int = 1,
    compare: bool = False,
    memory: int | str | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Compressed:
    """Compress a trained model to a budget: 8 bits, low rank or both for each layer, with the least output error.

    Works on a copy; the given model is not changed.

    Args:
        model: any module that contains nn.Linear layers, nn.MultiheadAttention, the Conv1D of transformers, experts
            (docs/conversion.md says which), nn.Conv1d, nn.Conv2d, or embeddings.
        calibration: typical inputs: batches in a DataLoader or any iterable, or one tensor or dict. A few hundred rows
            are enough.
        max_bytes: budget: bytes of the whole model's parameters and buffers; the exported file has its graph besides.
            Gives the model with the smallest output error.
        max_error: budget: ‖y - ŷ‖ / ‖y‖ of the outputs on the calibration inputs. Gives the smallest model.
        speedup: budget: speed of the exported file over the original's, in onnxruntime on this machine. Gives the model
            with the smallest output error; the report has the measured speedup.
        metric: budget: a function of the model that returns a number, the higher the better, such as the accuracy on
            labeled rows. Gives the smallest model with a metric of `at_least`; every model is evaluated whole.
        at_least: smallest accepted value of the metric.
        kinds: allowed kinds of layers, besides unchanged ones.
        filter_fn: (module, name) → whether to change that linear layer or convolution.
        skip: names of linear layers and convolutions to leave out, of modules that contain them, or patterns such as
            ``"*.query"``.
        forward: (model, batch) → outputs, if the model needs a custom call.
        probes: backward passes per batch; they estimate how a layer's outputs affect the model's.
        batch_size, threads: rows and CPU threads that speedup is measured with.
        compare: also report the original quantized by onnxruntime's `quantize_dynamic`.
        memory: limit on calibration statistics, decomposed weights and the work on a layer, on each device: bytes, or a
            text such as "8GB". If they don't fit, layers are calibrated in groups, with a pass over the inputs for
            each, and the statistics are kept in temporary files; the result is the same. Half of the free memory when
            None.
        generator: CPU generator of the random directions and sampled rows; a fixed seed when None.
        on_step: called with (step, done, total) for progress.

    Returns:
        The compressed model in eval mode, a report, and the curve of error over bytes.

    Raises:
        ValueError: an argument is out of range, the budget can't be met, or memory is too small for a layer; the
            message has the limit.
        ConversionError: the model has nothing to compress, or calibration can't be run.
        ExportError: the budget is a speedup, and the model can't be exported.
    """
    budget, most_memory = Budget(max_bytes, max_error, speedup, metric, at_least), parse_size(memory)
    _check(model, kinds, probes)
    _check_counts(batch_size=batch_size, threads=threads)
    step = on_step if on_step is not None else lambda *_: None
    random = generator if generator is not None else torch.Generator().manual_seed(_SEED)
    batches = batches_of(calibration)
    network = _copied(model)
    check_batches(batches, network, forward, "calibration")
    check_differentiable(network)
    modules = opened(network)
    inside = layers_of(modules)
    Swap(network, modules).do()
    layers = _Layers.of(network, filter_fn, skip)
    size = model_size(network)[1]
    with evaluating(network):
        original = None if metric is None else reachable(network, metric, budget.at_least or 0.0)
        calibrating = _Calibrating(network, batches, forward, probes, random, most_memory, kinds, step)
        calibrated = calibrating.run(layers.units, layers.lookups)
        parts = _parts(network, layers, calibrated, kinds, step)
        other_bytes = size - sum(part.options[0].bytes for part in parts)
        trials = Trials(network, parts, calibrated.reference, metric)
        inputs = _inputs(network, batches, forward)
        speed: Speed | None = None
        if speedup is not None:
            timed = SpeedSearch(network, trials, other_bytes, kinds, Timing(needed(inputs), batch_size, threads), step)
            search = timed.search
            found, speed = timed.within(speedup)
        else:
            search = Search(trials, other_bytes, kinds, step)
            found = _found(search, budget)
        sides, notes = _rivals(network, inputs, calibrated.reference) if compare else ((), ())
    trials.swap(found.plan).do()
    close_unchanged(network, modules, inside)
    network.eval()
    report = CompressionReport(
        budget=str(budget),
        layers=layer_reports(parts, found.plan, search.chooser),
        unreached=layers.elsewhere,
        bytes_before=size,
        bytes_after=model_size(network)[1],
        output_error=found.deviation.error,
        output_cosine=found.deviation.cosine,
        measured_on=calibrated.reference.measured_on,
        metric=None if original is None or found.metric is None else (original, found.metric),
        speed=speed,
        rivals=sides,
        notes=(*calibrated.notes, *_notes(found, speed, speedup, calibrated.reference), *notes),
    )
    return Compressed(network, report, _curve(search, trials, found), inputs)


@dataclass(frozen=True)
class _Layers:
    """The layers of a model.

    Attributes:
        units: linear layers and convolutions.
        tables: embeddings.
        lookups: embeddings that may get a low rank, with the layers that share their weight.
        elsewhere: modules with weights that are left unchanged, with the reason.
    """

    units: Sequence[Unit]
    tables: Sequence[Table]
    lookups: Sequence[Unit]
    elsewhere: tuple[Unreached, ...]

    @classmethod
    def of(cls, model: nn.Module, filter_fn: Filter | None, skip: Iterable[str]) -> _Layers:
        """Find them.

        Raises:
            ConversionError: none is eligible; the message has reasons.
        """
        units = find_units(model, filter_fn, skip, convolutions=True)
        tables = embeddings.find(model)
        lookups = find_lookups(model, units)
        tied = {id(head) for unit in lookups for head in unit.heads}
        units = [unit for unit in units if id(unit.places[0].module) not in tied]
        in_play = {name for table in tables for name in table.place.names}
        in_play |= {name for unit in lookups for place in unit.places for name in place.names}
        elsewhere = tuple(
            group for group in unreached(model, units, convolutions=True) if not in_play & set(group.names)
        )
        stored = any(unit.convolution is not None and stored_alone(unit) for unit in units)
        reasons = [each.reason for each in (*units, *lookups)] + [table.reason for table in tables]
        if None not in reasons and not stored:
            kept = [f"{unit.name}: {unit.reason}" for unit in units] + [
                f"{table.place.names[0]}: {table.reason}" for table in tables
            ]
            kept += [
                f"{unit.name}: {unit.reason}" for unit in lookups if isinstance(unit.places[0].module, nn.EmbeddingBag)
            ]
            kept += [f"{', '.join(group.names[:3])}: {group.reason}" for group in elsewhere]
            raise ConversionError(
                "the model has no linear layer, convolution or embedding to compress"
                + "".join(f"; {why}" for why in kept[:6])
            )
        return cls(units, tables, lookups, elsewhere)


@dataclass(frozen=True)
class _Calibrating:
    """The arguments of a calibration."""

    model: nn.Module
    batches: Sequence[Any]
    forward: Forward | None
    probes: int
    random: torch.Generator
    memory: int | None
    kinds: Sequence[str]
    step: Callable[[str, int, int], None]

    def run(self, units: Sequence[Unit], lookups: Sequence[Unit]) -> Calibrated:
        """Collect moments, samples and the original's outputs.

        Raises:
            ValueError: the memory is too small for a layer.
            ConversionError: the model can't be run, or returns nothing that can be compared.
        """
        active = [unit for unit in units if unit.reason is None]
        linear = [unit for unit in active if unit.convolution is None]
        collected = collect_within(
            self.model,
            [*active, *(unit for unit in lookups if unit.reason is None)],
            self.batches,
            self.forward,
            probes=self.probes,
            generator=self.random,
            memory=self.memory,
            needs=needs_of(low_rank=bool({LOW_RANK, LOW_RANK_INT8, LOW_RANK_INT4} & set(self.kinds))),
            step=self.step,
        )
        seen = observe(
            self.model,
            linear,
            self.batches,
            self.forward,
            sample=SAMPLE,
            generator=self.random,
            keeper=collected.keeper,
            on_batch=collected.on_batch,
        )
        reference = Reference(self.model, self.batches, self.forward)
        if not reference.has_outputs:
            raise ConversionError(
                "calibration: the model returned no finite floating-point numbers to compare; scalars are left out"
            )
        share_experts(self.model, linear, collected.moments, seen)
        return Calibrated(collected.moments, collected.keeper, seen, reference, collected.notes)


def _parts(
    model: nn.Module,
    layers: _Layers,
    calibrated: Calibrated,
    kinds: Sequence[str],
    step: Callable[[str, int, int], None],
) -> list[Part]:
    """Every eligible layer with its options, in the order of the model."""
    linear = [unit for unit in layers.units if unit.convolution is None]
    convolved = [unit for unit in layers.units if unit.convolution is not None]
    moments, reference, examples = calibrated.moments, calibrated.reference, calibrated.seen.examples
    parts = [
        *LinearOptions(model, linear, layers.tables, calibrated, kinds, step).parts(),
        *ConvolutionOptions(model, convolved, moments, calibrated.keeper, reference, examples, kinds).parts(step),
        *embedding_parts(model, layers.tables, layers.lookups, moments, reference, kinds, step),
    ]
    places = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return sorted(parts, key=lambda part: places[part.name])


def _found(search: Search, budget: Budget) -> Trial:
    if budget.max_bytes is not None:
        return search.within_bytes(budget.max_bytes)
    if budget.max_error is not None:
        return search.within_error(budget.max_error)
    return search.within_metric(budget.at_least or 0.0)


def _curve(search: Search, trials: Trials, found: Trial) -> Curve:
    """The plans that were tried, and some between that were only predicted."""
    path = search.chooser.path()
    every = path[:: max(1, len(path) // _PREDICTED_POINTS)]
    predicted = [Point(plan.bytes, math.sqrt(plan.predicted)) for plan in every if not trials.tried(plan)]
    points = sorted((*trials.points(), *predicted), key=lambda point: point.bytes)
    chosen = next(
        i
        for i, point in enumerate(points)
        if (point.bytes, point.output_error) == (found.plan.bytes, found.deviation.error)
    )
    return Curve(tuple(points), chosen)


def _inputs(model: nn.Module, batches: Sequence[Any], forward: Forward | None) -> Inputs | ConversionError:
    """The calibration inputs for an export, or why there are none."""
    try:
        return Inputs.of(model, batches, forward)
    except ConversionError as error:
        return error


def needed(inputs: Inputs | ConversionError) -> Inputs:
    """The inputs.

    Raises:
        ConversionError: there are none.
    """
    if isinstance(inputs, ConversionError):
        raise inputs
    return inputs


def _rivals(
    model: nn.Module, inputs: Inputs | ConversionError, reference: Reference
) -> tuple[tuple[Side, ...], tuple[str, ...]]:
    """What onnxruntime makes of the original, and why it is missing where it is."""
    try:
        return (rivals.quantize_dynamic(model, needed(inputs), reference),), ()
    except (ConversionError, ExportError) as error:
        return (), (f"{rivals.NAME} could not be compared: {error}",)


def _notes(found: Trial, speed: Speed | None, speedup: float | None, reference: Reference) -> Iterable[str]:
    if speed is not None and speedup is not None and speed.speedup < speedup:
        yield (
            f"the file is {speed.speedup:.2f} times as fast, below the budget of {speedup:g}: layers gain less "
            "together than alone; this is the fastest file found"
        )
    if not math.isfinite(found.deviation.error):
        yield "the compressed model's outputs overflow where the original's are finite"
    if not reference.all_finite:
        yield "some of the original's outputs are infinite or NaN; the others were compared"


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConversionError(f"compress works on a copy, and the model can't be copied: {error}") from error


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} ({count!r}) must be an integer of at least 1")


def _check(model: Any, kinds: Sequence[str], probes: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model ({type(model).__name__}) must be an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError("the model is compiled by TorchScript; compress it before it is scripted or traced")
    if isinstance(model, nn.Linear | nn.Embedding):
        raise ValueError(f"model is itself an nn.{type(model).__name__}; wrap it in nn.Sequential")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or isinstance(kinds, str):
        raise ValueError(f"kinds ({kinds!r}) must be one or more of {list(KINDS)}")
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
        raise ValueError(f"probes ({probes!r}) must be an integer of at least 0")
