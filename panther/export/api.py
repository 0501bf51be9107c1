"""One call from a model to a proven file."""

from __future__ import annotations

import copy
import inspect
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
from torch.utils._pytree import tree_leaves

import panther
from panther.efficiency import ParameterCount
from panther.export import card as cards
from panther.export import guard, runtime, triton
from panther.export import precision as precisions
from panther.export.check import check_against_torch, random_like
from panther.export.errors import ExportError
from panther.export.lower import DENSE, TWO_PRODUCTS, Site, find_sites, lower
from panther.export.measure import median_us, resized, runner
from panther.export.plan import choose
from panther.export.repository import MODEL_FILE, check_name, staged
from panther.export.runtime import Target
from panther.export.trace import Traced, no_fast_path, sketched_layers, trace
from panther.nn import SKLinear

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
        name: the model's name: letters, digits, ``.``, ``_``, ``-``.
        inputs: names and meaning of the inputs, in the order of example_inputs; the names of forward's arguments when
            None.
        outputs: names, meaning and labels of the outputs, in the order in which forward returns them; ``output``, or
            ``output_0`` and so on, when None.
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
    dtype: type[np.floating] = np.float16 if precision == "float16" else np.float32

    model = copy.deepcopy(model).cpu().float().eval()
    examples, inputs, by_name = _named_inputs(model, example_inputs, inputs)
    axes = dynamic_axes if dynamic_axes is not None else {entry.name: {0: "batch"} for entry in inputs}
    _check_axes(axes, examples)
    input_shapes, output_count = _run(model, examples, by_name=by_name)
    outputs = tuple(outputs) if outputs is not None else _default_outputs(output_count)
    output_names = [entry.name for entry in outputs]

    def traced() -> Traced:
        return trace(
            model, examples, by_name=by_name, output_names=output_names, dynamic_axes=axes, half=precision == "float16"
        )

    graph = traced()
    sites = find_sites(graph, dtype=dtype)
    others, other_bytes = _other_products(graph), _other_bytes(graph)
    planned = choose(
        sites,
        plan,
        input_shapes=input_shapes,
        example_batch=next(iter(examples.values())).shape[0] if next(iter(examples.values())).dim() else 1,
        batch_sizes=batch_sizes,
        target=measured_on,
        dtype=dtype,
        other_weight_bytes=other_bytes,
        max_weight_bytes=max_weight_bytes,
    )
    plans = {site_name: site.plan for site_name, site in planned.items()}
    lower(graph, sites, plans, fold=u_storage == "bits" and precision != "int8")
    written = precisions.quantize_weights(graph.model) if precision == "int8" else graph.model

    target_path = Path(path_or_repository)
    with staged(target_path, name) as stage:
        file = stage.folder / MODEL_FILE
        data_name = f"{target_path.name if target_path.suffix == '.onnx' else MODEL_FILE}.data"
        external = data_name if _weight_bytes(written) > external_data_bytes else None
        ir.save(written, file, external_data=external)
        optimized = runtime.optimized_graph(file, measured_on)
        guard.check_graph(optimized, sites, plans, others)
        session = runtime.load(file, measured_on)
        _check_labels(session, outputs)
        check = check_against_torch(
            session,
            model,
            [examples, random_like(examples, torch.Generator().manual_seed(0))],
            output_names=output_names,
            by_name=by_name,
            tolerance=tolerance,
        )
        card = cards.ModelCard(
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=inputs,
            outputs=outputs,
            check=check,
            versions=_versions(),
            storage=cards.Storage(
                precision,
                "int8" if precision == "int8" else u_storage,
                # the CPU computes float16 in float32 constants; the target does not
                _resident_bytes(optimized) if precision != "float16" else _planned_bytes(other_bytes, planned),
            ),
            planning=cards.Planning(
                measured_on.device,
                measured_on.num_threads,
                f"onnxruntime {runtime.onnxruntime().__version__}",
                tuple(batch_sizes),
                tuple(planned.values()),
            ),
            latency=_latency(session, traced, examples, axes, batch_sizes, measured_on, dtype),
            training=training,
            description=description,
            license=license,
            authors=tuple(authors),
            preprocessing=preprocessing,
            **_counts(model, sites, plans, dtype),
        )
        _write_card(file, card)
        if target_path.suffix != ".onnx":
            triton.write_config(target_path / name, name, session)
        file_bytes = sum(entry.stat().st_size for entry in stage.folder.iterdir())
        path = stage.publish()
    version = int(path.parent.name) if target_path.suffix != ".onnx" else None
    return ExportReport(path=path, version=version, file_bytes=file_bytes, card=card)


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} ({value!r}) must be one of {list(allowed)}")


def _named_inputs(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    inputs: Sequence[cards.Input] | None,
) -> tuple[dict[str, Tensor], tuple[cards.Input, ...], bool]:
    """The example inputs by the names of the graph, and whether forward takes them by these names."""
    arguments = list(inspect.signature(model.forward).parameters)
    if isinstance(example_inputs, Mapping):
        tensors, names = list(example_inputs.values()), list(example_inputs)
    else:
        tensors = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        names = arguments[: len(tensors)] if inputs is None else [entry.name for entry in inputs]
    if not tensors:
        raise ValueError("example_inputs must hold at least one tensor")
    if inputs is None:
        inputs = tuple(cards.Input(name) for name in names)
    if len(inputs) != len(tensors) or len(names) != len(tensors):
        raise ValueError(
            f"example_inputs holds {len(tensors)} tensors; named are the inputs {[entry.name for entry in inputs]}; "
            f"{type(model).__name__}.forward takes {arguments}"
        )
    if isinstance(example_inputs, Mapping) and [entry.name for entry in inputs] != names:
        raise ValueError(f"inputs names {[entry.name for entry in inputs]} and example_inputs {names}")
    for entry, tensor in zip(inputs, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"example input {entry.name!r} must be a tensor, not {type(tensor).__name__}")
    cast = (tensor.detach().cpu() for tensor in tensors)
    examples = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in zip(names, cast, strict=True)
    }
    return examples, tuple(inputs), isinstance(example_inputs, Mapping)


def _check_axes(axes: Mapping[str, Mapping[int, str]], examples: Mapping[str, Tensor]) -> None:
    for name, by_axis in axes.items():
        if name not in examples:
            raise ValueError(f"dynamic_axes names input {name!r}; the inputs are {list(examples)}")
        for axis in by_axis:
            if not 0 <= axis < examples[name].dim():
                raise ValueError(
                    f"dynamic_axes: input {name!r} has {examples[name].dim()} axes; there is no axis {axis}"
                )


def _run(model: nn.Module, examples: Mapping[str, Tensor], *, by_name: bool) -> tuple[dict[str, tuple[int, ...]], int]:
    """Run the model on the examples: the shape of x at each sketched layer, and how many outputs there are."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Any:
        return lambda _module, arguments: shapes.setdefault(name, tuple(arguments[0].shape)) and None

    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in sketched_layers(model).items()]
    try:
        with torch.no_grad(), no_fast_path():
            outputs = model(**examples) if by_name else model(*examples.values())
    except Exception as error:
        given = {name: tuple(tensor.shape) for name, tensor in examples.items()}
        raise ExportError(f"{type(model).__name__} does not take the example inputs {given}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes, sum(isinstance(leaf, Tensor) for leaf in tree_leaves(outputs))


def _default_outputs(count: int) -> tuple[cards.Output, ...]:
    return (cards.Output("output"),) if count == 1 else tuple(cards.Output(f"output_{index}") for index in range(count))


def _check_labels(session: Any, outputs: Sequence[cards.Output]) -> None:
    for entry, value in zip(outputs, session.get_outputs(), strict=True):
        if entry.labels is not None and (not value.shape or value.shape[-1] != len(entry.labels)):
            raise ValueError(f"output {entry.name!r} has shape {value.shape} and {len(entry.labels)} labels were given")


def _weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _other_bytes(graph: Traced) -> int:
    """Bytes of the constants that belong to no sketched layer."""
    sketched = {f"{name}.{term}" for name in graph.layers for term in ("S1s", "S2s", "U1s", "U2s")}
    values = graph.model.graph.initializers.items()
    return sum(
        value.const_value.nbytes for name, value in values if name not in sketched and value.const_value is not None
    )


def _other_products(graph: Traced) -> Counter[guard.Shape]:
    """Shapes of the constant matrices of the model's other products."""
    return guard.product_shapes(ir.to_proto(graph.model).graph)


def _resident_bytes(optimized: onnx.ModelProto) -> int:
    """Bytes of the constants of the graph that runs."""
    return sum(
        int(np.prod(initializer.dims, dtype=np.int64))
        * onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize
        for initializer in optimized.graph.initializer
    )


def _planned_bytes(other_bytes: int, planned: Mapping[str, cards.PlannedSite]) -> int:
    return other_bytes + sum(site.weight_bytes for site in planned.values())


def _latency(
    session: Any,
    traced: Any,
    examples: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    batch_sizes: Sequence[int],
    target: Target,
    dtype: type[np.floating],
) -> cards.Latency | None:
    """Time the file beside its dense twin; None where there is none, or it takes too much memory."""
    twin = traced()
    sites = find_sites(twin, dtype=dtype)
    if not sites:
        return None
    if sum(site.weights(DENSE) for site in sites) * np.dtype(dtype).itemsize + _other_bytes(twin) > EXTERNAL_DATA_BYTES:
        return None
    lower(twin, sites, {site.name: DENSE for site in sites}, fold=False)
    twin_session = runtime.load(ir.to_proto(twin.model).SerializeToString(), target)
    feeds = {name: tensor.numpy() for name, tensor in examples.items()}
    first = next(iter(examples))
    batch_axis = axes.get(first, {}).get(0)
    if batch_axis is None:
        batch_sizes = (examples[first].shape[0] if examples[first].dim() else 1,)
    times = []
    for size in batch_sizes:
        rows = feeds if batch_axis is None else resized(feeds, axes, batch_axis, size)
        times.append(median_us({"file": runner(session, rows, target), "twin": runner(twin_session, rows, target)}))
    return cards.Latency(
        target.device,
        target.num_threads,
        tuple(batch_sizes),
        tuple(round(time["file"], 2) for time in times),
        tuple(round(time["twin"], 2) for time in times),
    )


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


def _counts(
    model: nn.Module, sites: Sequence[Site], plans: Mapping[str, str], dtype: type[np.floating]
) -> dict[str, Any]:
    """The layers and totals of the card."""
    layers = sketched_layers(model)
    sketched = sum((layer.parameter_count() for layer in layers.values()), start=ParameterCount(0, 0, 0))
    learnable = sum(parameter.numel() for parameter in model.parameters())
    other = learnable - sketched.learnable
    whole = ParameterCount(dense=sketched.dense + other, learnable=learnable, fixed=sketched.fixed)
    return {
        "layers": tuple(_layer_entry(name, layer, sites, plans) for name, layer in layers.items()),
        "totals": cards.Totals(_parameters(sketched), _parameters(whole)),
        "dense_twin": cards.DenseTwin(weight_bytes=np.dtype(dtype).itemsize * whole.dense),
    }


def _parameters(count: ParameterCount) -> cards.Parameters:
    return cards.Parameters(dense=count.dense, learnable=count.learnable, fixed=count.fixed)


def _layer_entry(name: str, layer: SKLinear, sites: Sequence[Site], plans: Mapping[str, str]) -> cards.Layer:
    site = next((site for site in sites if name in site.layers), None)
    merged = site is not None and site.layers[0] != name
    # a layer that the graph does not use costs nothing to run
    planned = 0 if site is None or merged else site.weights(plans[site.name])
    return cards.Layer(
        name,
        layer.in_features,
        layer.out_features,
        layer.num_terms,
        layer.low_rank,
        bias=layer.bias is not None,
        sketch=str(getattr(layer, "sketch", "sign")),
        plan="merged" if merged else TWO_PRODUCTS if site is None else plans[site.name],
        parameters=_parameters(layer.parameter_count()),
        multiply_adds_per_row=cards.MultiplyAdds(dense=layer.in_features * layer.out_features, planned=planned),
        merged_into=site.layers[0] if site is not None and merged else None,
    )
