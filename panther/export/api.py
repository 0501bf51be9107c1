"""One call from a model to a proven file."""

from __future__ import annotations

import copy
import platform
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
from panther.export import counts, guard, latency, runtime
from panther.export import precision as precisions
from panther.export.branches import choose_branches
from panther.export.check import check_against_torch, check_inputs
from panther.export.inputs import check_axes, named_inputs, named_outputs, observe
from panther.export.lower import find_sites, lower
from panther.export.plan import choose
from panther.export.repository import MODEL_FILE, check_name, staged
from panther.export.runtime import Target
from panther.export.trace import trace
from panther.export.triton import config

# protobuf takes messages of up to 2 GiB; larger weights go into a file beside the model
EXTERNAL_DATA_BYTES = 1_800_000_000


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: of the file.
        version: in the repository; None when the file was written to a path of the caller's.
        file_bytes: size of the file, with its external data.
        card: what the file says of itself: plans, measured times, errors.
    """

    path: Path
    version: int | None
    file_bytes: int
    card: cards.ModelCard


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    path_or_repository: str | Path,
    *,
    name: str,
    inputs: Sequence[cards.Input] | None = None,
    outputs: Sequence[cards.Output] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    plan: str | Mapping[str, str] = "auto",
    u_storage: str = "bits",
    precision: str = "float32",
    target: str = "cpu",
    num_threads: int | None = None,
    batch_sizes: Sequence[int] = (1, 8, 64),
    max_weight_bytes: int | None = None,
    tolerance: float | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    conditional: str | None = None,
    training: cards.Training | None = None,
    description: str | None = None,
    license: str | None = None,  # noqa: A002  the field's own name in the card
    authors: Sequence[str] = (),
    preprocessing: str | None = None,
) -> ExportReport:
    """Export a model to one ONNX file with its card, proven against torch before it is published.

    Each sketched layer becomes two matrix products with constants, or one where that is faster on the target;
    sketched layers with nothing between become one pair. The file is written aside, loaded as a server loads it,
    looked at after onnxruntime's optimisation, compared with the model in float64 on the example inputs and on random
    ones, and put into place last: on any error nothing is left of it.

    Args:
        model: any module that torch.onnx can export; it is left as it is.
        example_inputs: a tensor, one an argument of forward, or tensors by argument name: real rows to check on.
        path_or_repository: a path ending in ``.onnx``, or the folder of a model repository, where the file becomes
            the next version of ``name`` and a ``config.pbtxt`` for Triton lies beside it.
        name: the model's name: at most 128 letters, digits, ``.``, ``_``, ``-``; neither ``.`` nor ``-`` comes first.
        inputs: names and meaning of the inputs, in the order of example_inputs; the names of forward's arguments when
            None.
        outputs: names, meaning and labels of the outputs, in the order in which forward returns them; when None the
            keys of the dictionary that it returns, else ``output``, or ``output_0`` and so on.
        dynamic_axes: by input the axes of variable size and their names; the same name is the same size. Axis 0 of
            every input, ``batch``, when None.
        plan: ``auto`` measures; ``two_products`` or ``dense`` for all layers, or a plan for some layers by name.
        u_storage: ``bits`` stores fixed sign matrices at one bit an entry, unfolded by onnxruntime at load; ``float``.
        precision: ``float32``; ``float16``, for CUDA: inputs and outputs stay float32; ``int8``: weights alone, CPU.
        target: ``cpu`` or ``cuda``: what the plans are measured on.
        num_threads: of the target's CPU; all cores that this process may use when None.
        batch_sizes: to measure at.
        max_weight_bytes: limit on the constants that are resident when the file is loaded.
        tolerance: largest |y - reference| / max |reference| at which a file is written; 1e-4, 2e-2 or 5e-2 by precision
            when None.
        external_data_bytes: weights of more bytes than this go into a file of their own beside the model.
        conditional: ``sketched`` or ``standard``: which branch of every `ConditionalSKLinear` the file holds; needed
            where the model has one.
        training, description, license, authors, preprocessing: what else the card shall say.

    Raises:
        ExportError: the model can't be exported, the file doesn't compute what the model does or not as planned, or it
            can't be written.
        ValueError: an argument is wrong.
    """
    check_name(name)
    _one_of("u_storage", u_storage, ("bits", "float"))
    _one_of("precision", precision, precisions.PRECISIONS)
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes ({list(batch_sizes)}) must be positive, and at least one")
    measured_on = Target(target, num_threads if num_threads is not None else runtime.available_cores())
    tolerance = tolerance if tolerance is not None else precisions.TOLERANCES[precision]
    if not tolerance > 0:
        raise ValueError(f"tolerance ({tolerance}) must be positive")
    dtype: type[np.floating] = np.float16 if precision == "float16" else np.float32

    model = choose_branches(copy.deepcopy(model), conditional).cpu().float().eval()
    guard.check_values(model)
    examples, inputs, by_name = named_inputs(model, example_inputs, inputs)
    axes = (
        dynamic_axes if dynamic_axes is not None else {name: {0: "batch"} for name in examples if examples[name].dim()}
    )
    check_axes(axes, examples)
    observed = observe(model, examples, by_name=by_name)
    outputs = named_outputs(model, outputs, observed.output_names)
    output_names = [entry.name for entry in outputs]

    graph = trace(
        model, examples, by_name=by_name, output_names=output_names, dynamic_axes=axes, half=precision == "float16"
    )
    # the quantiser takes MatMul alone
    transpose_dense = measured_on.device == "cuda" and precision != "int8"
    # before lowering, which changes the graph in place
    twin = latency.dense_twin(graph, dtype, transpose_dense=transpose_dense)
    sites = find_sites(graph, dtype=dtype, balance=precision == "int8")
    others, other_bytes = guard.constant_products(graph.model.graph), counts.other_bytes(graph)
    first = next(iter(examples.values()))
    planned = choose(
        sites,
        plan,
        input_shapes=observed.x_shapes,
        example_batch=first.shape[0] if first.dim() else 1,
        batch_sizes=batch_sizes,
        target=measured_on,
        precision=precision,
        other_weight_bytes=other_bytes,
        max_weight_bytes=max_weight_bytes,
    )
    plans = {site_name: site.plan for site_name, site in planned.items()}
    fold = u_storage == "bits" and precision != "int8"
    lower(graph, sites, plans, fold=fold, transpose_dense=transpose_dense)
    written, twin_bytes = graph.model, None
    if precision == "int8":
        written = precisions.quantize_weights(graph.model)
        twin = precisions.quantize_weights(twin) if twin is not None else None
        twin_bytes = counts.weight_bytes(twin) if twin is not None else None

    target_path = Path(path_or_repository)
    with staged(target_path, name) as stage:
        file = stage.folder / MODEL_FILE
        external = stage.data_name if counts.weight_bytes(written) > external_data_bytes else None
        ir.save(written, file, external_data=external)
        optimized = runtime.optimized_graph(file, measured_on)
        guard.check_graph(optimized, sites, plans, others)
        session = runtime.load(file, measured_on)
        _check_labels(session, outputs)
        check = check_against_torch(
            session,
            model,
            check_inputs(examples, axes, torch.Generator().manual_seed(0)),
            output_names=output_names,
            by_name=by_name,
            tolerance=tolerance,
        )
        card = cards.ModelCard(
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=inputs,
            outputs=outputs,
            layers=counts.layer_entries(model, sites, plans),
            totals=(totals := counts.totals(model)),
            dense_twin=cards.DenseTwin(twin_bytes or np.dtype(dtype).itemsize * totals.model.dense),
            check=check,
            versions=_versions(),
            storage=cards.Storage(
                precision,
                "int8" if precision == "int8" else counts.u_storage(written),
                # the CPU computes float16 in float32 constants; the target does not
                counts.resident_bytes(optimized)
                if precision != "float16"
                else other_bytes + sum(site.weight_bytes for site in planned.values()),
            ),
            planning=cards.Planning(
                measured_on.device,
                measured_on.num_threads,
                f"onnxruntime {runtime.onnxruntime().__version__}",
                tuple(batch_sizes),
                tuple(planned.values()),
            ),
            latency=latency.measure(session, twin, examples, axes, batch_sizes, measured_on) if twin else None,
            training=training,
            description=description,
            license=license,
            authors=tuple(authors),
            preprocessing=preprocessing,
        )
        _write_card(file, card)
        file_bytes = sum(entry.stat().st_size for entry in stage.folder.iterdir())
        path = stage.publish(config(name, session))
    version = int(path.parent.name) if stage.in_repository else None
    return ExportReport(path=path, version=version, file_bytes=file_bytes, card=card)


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} ({value!r}) must be one of {list(allowed)}")


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
        "onnxruntime": runtime.onnxruntime().__version__,
        "python": platform.python_version(),
    }
