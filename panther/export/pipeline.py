"""The export as its five steps: prepare, plan, write, verify, publish."""

from __future__ import annotations

import copy
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

import panther
from panther.export import card as cards
from panther.export import ort
from panther.export.graph import precision as precisions
from panther.export.graph.branches import choose_branches
from panther.export.graph.convolutions import check_convolutions, lower_convolutions
from panther.export.graph.inputs import Axes, Observed, check_axes, named_inputs, named_outputs, observe
from panther.export.graph.lower import DENSE, Site, find_sites, lower
from panther.export.graph.placeholders import QuantizedLayer, quantized_layers
from panther.export.graph.products import block_shapes, check_products, lower_products, uses
from panther.export.graph.projected import lower_recurrent
from panther.export.graph.quantized import check_same, dequantized, quantized_parameters
from panther.export.graph.residuals import keep_residuals_apart
from panther.export.graph.trace import Traced, trace
from panther.export.options import ExportOptions
from panther.export.planning import latency
from panther.export.planning.convolutions import choose_convolutions
from panther.export.planning.plan import choose
from panther.export.publish import counts
from panther.export.publish.embeddings import embedding_entries
from panther.export.publish.repository import MODEL_FILE, Staged, staged
from panther.export.publish.triton import config as triton_config
from panther.export.report import ExportReport
from panther.export.verify import guard
from panther.export.verify.check import check_against_torch, check_inputs
from panther.nn.quantized import Int8Linear, StoredConv

Examples = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A model that can be traced, and how it is called.

    Attributes:
        model: a copy of the caller's, on the CPU in float32 and evaluation mode.
        examples: the example inputs by the names of the graph.
        by_name: whether forward takes them by these names; by position when False.
        axes: the axes of variable size with their names, by input.
        inputs, outputs: their descriptions in the card.
        observed: output names and layer input shapes from a run on the examples.
        notes: notes for the card.
    """

    model: nn.Module
    examples: dict[str, Tensor]
    by_name: bool
    axes: Axes
    inputs: tuple[cards.Input, ...]
    outputs: tuple[cards.Output, ...]
    observed: Observed
    notes: tuple[str, ...]

    @property
    def output_names(self) -> list[str]:
        """Output names in the order in which the model returns them."""
        return [entry.name for entry in self.outputs]


@dataclass(frozen=True)
class Planned:
    """A graph of plain ONNX operators, with each linear map lowered to the products of its plan.

    Attributes:
        graph: the graph to write.
        twin: the dense twin, with a dense product or convolution for each sketched or quantized layer; None as for
            `latency.dense_twin`.
        sites: the linear maps of sketched layers.
        at_runtime: the sites that are computed at each run, not folded when the file is loaded.
        decisions: plan, reason and measured times of each site, by its name.
        others: shapes of the constant matrices of products that belong to no site.
        other_bytes: bytes of the constants that belong to no site.
        read_densely: names of layers whose weight the model reads as a tensor.
        quantized: the quantized layers by name.
        quantized_uses: number of products of each quantized layer in the graph, by its name.
        convolutions: plan, reason and measured times of each sketched convolution, by its name.
    """

    graph: ir.Model
    twin: ir.Model | None
    sites: list[Site]
    at_runtime: list[Site]
    decisions: dict[str, cards.PlannedSite]
    others: Counter[guard.Shape]
    other_bytes: int
    read_densely: set[str]
    quantized: dict[str, QuantizedLayer]
    quantized_uses: Counter[str]
    convolutions: dict[str, cards.PlannedSite]

    @property
    def rounds_activations(self) -> bool:
        """Whether a product of the graph rounds its activations to 8 bits."""
        used = (self.quantized[name] for name in self.quantized_uses)
        return any(isinstance(layer, Int8Linear) or getattr(layer, "activation_bits", None) for layer in used)

    @property
    def plans(self) -> dict[str, str]:
        """The plan by the name of the site."""
        return {name: decision.plan for name, decision in self.decisions.items()}


@dataclass(frozen=True)
class Verified:
    """A file whose outputs match the model's.

    Attributes:
        session: an onnxruntime session of the file on the target.
        check: the comparison with torch.
        resident_bytes: bytes of the constants of the optimized graph, by data type.
    """

    session: Any
    check: cards.Check
    resident_bytes: dict[str, int]


def run(model: nn.Module, example_inputs: Examples, target: Path, options: ExportOptions) -> ExportReport:
    """Export a model; the arguments and errors are those of `export_onnx`."""
    prepared = prepare(model, example_inputs, options)
    planned = plan(prepared, options)
    with staged(target, options.name) as stage:
        file = write(planned, stage, options)
        verified = verify(file, prepared, planned, options)
        card = describe(prepared, planned, verified, options)
        return publish(file, stage, card, verified.session)


def prepare(model: nn.Module, example_inputs: Examples, options: ExportOptions) -> Prepared:
    """Copy the model, name its inputs and outputs, and run it on the examples.

    Raises:
        ExportError: its weights are not finite, or it does not take the examples.
        ValueError: names, axes or the branch of conditional layers are wrong.
    """
    model = choose_branches(_copy_beside(model), options.conditional).cpu().eval()
    model, factored = lower_recurrent(model)
    _check_quantized(model, options)
    examples, inputs, by_name = named_inputs(model, example_inputs, options.inputs)
    quantized = quantized_parameters(model)
    if quantized:
        floats = dequantized(model, quantized)
        check_same(model, floats, examples, by_name=by_name)
        model = floats
    guard.check_values(model.float())
    axes = options.dynamic_axes
    if axes is None:
        axes = {name: {0: "batch"} for name in examples if examples[name].dim()}
    check_axes(axes, examples)
    observed = observe(model, examples, by_name=by_name)
    outputs = named_outputs(model, options.outputs, observed.output_names, inputs=examples)
    notes = (*factored, *(f"{name} was quantized; the file has it as floats" for name in quantized), *observed.notes)
    return Prepared(model, examples, by_name, axes, inputs, outputs, observed, notes)


def plan(prepared: Prepared, options: ExportOptions) -> Planned:
    """Trace the model, choose the products of each sketched layer by measuring, and lower the graph to them.

    Raises:
        ExportError: torch can't export the model, or it fixes an axis that was to vary.
        ValueError: an unknown plan or layer is requested, or max_weight_bytes can't be kept.
    """
    graph = trace(
        prepared.model,
        prepared.examples,
        by_name=prepared.by_name,
        output_names=prepared.output_names,
        dynamic_axes=prepared.axes,
        half=options.precision == "float16",
    )
    if options.target == "cpu":
        keep_residuals_apart(graph.model.graph)
    # before lowering, which changes the graph in place
    twin = latency.dense_twin(graph, options.dtype, transpose_dense=options.transpose_dense)
    sites = find_sites(graph, dtype=options.dtype, balance=options.precision == "int8")
    others, other_bytes = guard.constant_products(graph.model.graph), counts.other_bytes(graph)
    used = uses(graph)
    others += block_shapes(graph.quantized, used)
    other_bytes += sum(graph.quantized[name].stored_bytes for name in used)
    read_densely, at_runtime = graph.read_densely(), guard.runtime_sites(graph.model.graph, sites)
    first = next(iter(prepared.examples.values()))
    convolved, requested = _plan_convolutions(graph, prepared, options)
    other_bytes += sum(decision.weight_bytes for decision in convolved.values())
    # unpacked when the file is loaded
    itemsize = np.dtype(options.dtype).itemsize
    other_bytes += sum(
        layer.stored_entries * itemsize for layer in graph.convolutions.values() if isinstance(layer, StoredConv)
    )
    decisions = choose(
        sites,
        requested,
        input_shapes=prepared.observed.x_shapes,
        example_batch=first.shape[0] if first.dim() else 1,
        batch_sizes=options.batch_sizes,
        target=options.measured_on,
        precision=options.precision,
        other_weight_bytes=other_bytes,
        max_weight_bytes=options.max_weight_bytes,
    )
    plans = {name: decision.plan for name, decision in decisions.items()}
    # in place: quantized layers, convolutions, then sketched linear layers
    lower_products(graph)
    dense = {name: name in convolved and convolved[name].plan == DENSE for name in graph.convolutions}
    lower_convolutions(graph.model.graph, graph.convolutions, dense, options.dtype, fold=options.fold)
    lower(graph, sites, plans, fold=options.fold, transpose_dense=options.transpose_dense)
    written = graph.model
    if options.precision == "int8":
        written = precisions.quantize_weights(graph.model)
        twin = precisions.quantize_weights(twin) if twin is not None else None
    return Planned(
        written, twin, sites, at_runtime, decisions, others, other_bytes, read_densely, graph.quantized, used, convolved
    )


def _plan_convolutions(
    graph: Traced, prepared: Prepared, options: ExportOptions
) -> tuple[dict[str, cards.PlannedSite], str | dict[str, str]]:
    """The plans of the sketched convolutions, and what is requested of the other layers."""
    requested = options.plan
    planned = choose_convolutions(
        graph.convolutions,
        requested,
        input_shapes=prepared.observed.x_shapes,
        batch_sizes=options.batch_sizes,
        target=options.measured_on,
        dtype=options.dtype,
        smallest=options.max_weight_bytes is not None,
    )
    if isinstance(requested, str):
        return planned, requested
    return planned, {name: plan for name, plan in requested.items() if name not in graph.convolutions}


def write(planned: Planned, stage: Staged, options: ExportOptions) -> Path:
    """Write the graph into the staging folder, large weights in a separate file, and return its path."""
    file = stage.folder / MODEL_FILE
    large = counts.weight_bytes(planned.graph) > options.external_data_bytes
    ir.save(planned.graph, file, external_data=stage.data_name if large else None)
    return file


def verify(file: Path, prepared: Prepared, planned: Planned, options: ExportOptions) -> Verified:
    """Load the file as the server does, check the optimized graph, and compare the outputs with the model's.

    Raises:
        ExportError: onnxruntime can't load the file, runs another graph than planned, or its outputs differ.
        ValueError: there are not as many labels as the output has classes.
    """
    optimized = ort.optimized_graph(file, options.measured_on)
    guard.check_graph(optimized, planned.at_runtime, planned.plans, planned.others)
    check_products(optimized, planned.quantized, planned.quantized_uses)
    check_convolutions(optimized, planned.graph.graph)
    session = ort.load(file, options.measured_on)
    _check_labels(session, prepared.outputs)
    check = check_against_torch(
        session,
        prepared.model,
        check_inputs(prepared.examples, prepared.axes, torch.Generator().manual_seed(0)),
        output_names=prepared.output_names,
        by_name=prepared.by_name,
        tolerance=options.largest_error(int8=planned.rounds_activations),
    )
    resident = counts.resident_bytes(optimized)
    if options.precision == "float16":
        # the CPU expands float16 constants to float32; the target does not
        resident = {"float16": planned.other_bytes + sum(site.weight_bytes for site in planned.decisions.values())}
    return Verified(session, check, resident)


def describe(prepared: Prepared, planned: Planned, verified: Verified, options: ExportOptions) -> cards.ModelCard:
    """Make the card of the file."""
    target, about = options.measured_on, options.about
    totals = counts.totals(prepared.model)
    twin_bytes = np.dtype(options.dtype).itemsize * totals.model.dense
    if options.precision == "int8" and planned.twin is not None:
        twin_bytes = counts.weight_bytes(planned.twin)
    u_storage = "int8" if options.precision == "int8" else counts.u_storage(planned.graph)
    quantized = counts.quantized_entries(prepared.model)
    precision = "mixed" if quantized and options.precision == "float32" else options.precision
    by_type = verified.resident_bytes
    measured = None
    if planned.twin is not None:
        measured = latency.measure(
            verified.session, planned.twin, prepared.examples, prepared.axes, options.batch_sizes, target
        )
    return cards.ModelCard(
        name=options.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        inputs=prepared.inputs,
        outputs=prepared.outputs,
        layers=counts.layer_entries(prepared.model, planned.sites, planned.plans, planned.read_densely),
        totals=totals,
        dense_twin=cards.DenseTwin(twin_bytes),
        check=verified.check,
        versions=_versions(),
        storage=cards.Storage(precision, u_storage, sum(by_type.values()), by_type),
        planning=cards.Planning(
            target.device,
            target.num_threads,
            f"onnxruntime {ort.onnxruntime().__version__}",
            tuple(options.batch_sizes),
            tuple(planned.decisions.values()),
        ),
        latency=measured,
        training=about.training,
        description=about.description,
        license=about.license,
        authors=tuple(about.authors),
        preprocessing=about.preprocessing,
        notes=prepared.notes or None,
        quantized_layers=quantized or None,
        convolutions=counts.convolution_entries(prepared.model, planned.convolutions) or None,
        embeddings=embedding_entries(prepared.model) or None,
        compression_curve=about.compression_curve,
    )


def publish(file: Path, stage: Staged, card: cards.ModelCard, session: Any) -> ExportReport:
    """Write the card into the file, and move the file to its place in the model repository."""
    _write_card(file, card)
    file_bytes = sum(entry.stat().st_size for entry in stage.folder.iterdir())
    path = stage.publish(triton_config(card.name, session))
    version = int(path.parent.name) if stage.in_repository else None
    return ExportReport(path=path, version=version, file_bytes=file_bytes, card=card)


def _copy_beside(model: nn.Module) -> nn.Module:
    """A copy with its own Parameters in the memory of the model's, until either is given other values.

    Buffers are copied: a forward pass may change them in place.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter and type(parameter.data) is Tensor and parameter.layout is torch.strided
    }
    return copy.deepcopy(model, memo)


def _check_quantized(model: nn.Module, options: ExportOptions) -> None:
    layers = quantized_layers(model)
    if layers and options.precision != "float32":
        raise ValueError(
            f"precision ({options.precision!r}) must be 'float32' for a model with quantized layers: "
            "these stay as they are"
        )
    on_cpu = [name for name, layer in layers.items() if isinstance(layer, Int8Linear)]
    if on_cpu and options.target != "cpu":
        raise ValueError(
            f"target ({options.target!r}) must be 'cpu' for a model with layers in static int8 ({on_cpu[0]}): "
            "onnxruntime multiplies 8-bit integers on the CPU alone. Weights in blocks, such as weights='int4' of "
            "panther.quantize_, run on CUDA"
        )


def _check_labels(session: Any, outputs: Sequence[cards.Output]) -> None:
    for entry, value in zip(outputs, session.get_outputs(), strict=True):
        if entry.labels is not None and (not value.shape or value.shape[-1] != len(entry.labels)):
            raise ValueError(f"output {entry.name!r} has shape {value.shape} and {len(entry.labels)} labels were given")


def _write_card(file: Path, card: cards.ModelCard) -> None:
    """Add the card to a file; weights that lie beside it stay untouched."""
    proto = onnx.load(file, load_external_data=False)
    entry = proto.metadata_props.add()
    entry.key, entry.value = cards.CARD_KEY, card.to_json()
    file.write_bytes(proto.SerializeToString())


def _versions() -> dict[str, str]:
    return {
        "panther-sketch": panther.__version__,
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxruntime": ort.onnxruntime().__version__,
        "python": platform.python_version(),
    }
