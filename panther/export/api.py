"""One call from a model to a proven file."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import panther
from panther.efficiency import ParameterCount, multiply_adds_per_row
from panther.export import card as cards
from panther.export.check import check_against_torch, load_session
from panther.export.errors import ExportError
from panther.export.graph import sketched_layers, to_onnx
from panther.export.repository import check_name, publish, write_file
from panther.nn import SKLinear


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path: of the file.
        version: in the repository; None when the file was written to a path of the caller's.
        file_bytes: size of the file.
        card: what the file says of itself.
    """

    path: Path
    version: int | None
    file_bytes: int
    card: cards.ModelCard


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path_or_repository: str | Path,
    *,
    name: str,
    inputs: Sequence[cards.Input] | None = None,
    outputs: Sequence[cards.Output] | None = None,
    dynamic_axes: Sequence[Mapping[int, str]] | None = None,
    tolerance: float = 1e-4,
    training: cards.Training | None = None,
    description: str | None = None,
    license: str | None = None,  # noqa: A002  the field's own name in the card
    authors: Sequence[str] = (),
    preprocessing: str | None = None,
) -> ExportReport:
    """Export a model to one ONNX file with its card, proven against torch before it is written.

    In the file each sketched layer is two products with constant matrices, U folded into them.

    Args:
        model: any module that torch.onnx can export; it is left as it is.
        example_inputs: a tensor, or one an argument of forward: real rows, on which the file is checked.
        path_or_repository: a path ending in ``.onnx``, or the folder of a model repository, where the file becomes
            the next version of ``name``.
        name: the model's name: letters, digits, ``.``, ``_``, ``-``.
        inputs: names and meaning of the inputs; the names of forward's arguments when None.
        outputs: names, meaning and labels of the outputs; ``output`` when None.
        dynamic_axes: for each input the axes of variable size and their names; axis 0, ``batch``, when None.
        tolerance: largest |y - reference| / max |reference| at which the file is still written.
        training, description, license, authors, preprocessing: what else the card shall say.

    Raises:
        ExportError: the model can't be exported, the file doesn't compute what the model does, or it can't be written.
        ValueError: an argument is wrong.
    """
    check_name(name)
    tensors = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    tensors = tuple(tensor.detach().cpu() for tensor in tensors)
    if not tensors:
        raise ValueError("example_inputs must hold at least one tensor")
    inputs = tuple(inputs) if inputs is not None else _inputs_of(model, len(tensors))
    if len(inputs) != len(tensors):
        raise ValueError(f"inputs names {len(inputs)} inputs and example_inputs holds {len(tensors)}")
    outputs = tuple(outputs) if outputs is not None else (cards.Output("output"),)
    axes = tuple(dynamic_axes) if dynamic_axes is not None else ({0: "batch"},) * len(tensors)
    if len(axes) != len(tensors):
        raise ValueError(f"dynamic_axes has {len(axes)} entries and example_inputs holds {len(tensors)}")

    input_names, output_names = [entry.name for entry in inputs], [entry.name for entry in outputs]
    proto = to_onnx(model, tensors, input_names=input_names, output_names=output_names, dynamic_axes=axes)
    _check_names(proto, input_names, output_names)
    session = load_session(proto.SerializeToString())
    check = check_against_torch(
        session, model, tensors, input_names=input_names, output_names=output_names, tolerance=tolerance
    )
    _check_labels(session, outputs)
    layers = sketched_layers(model)
    sketched = sum((layer.parameter_count() for layer in layers.values()), start=ParameterCount(0, 0, 0))
    whole = _whole_model(model, sketched)
    card = cards.ModelCard(
        name=name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        inputs=inputs,
        outputs=outputs,
        layers=tuple(_layer_entry(layer_name or type(model).__name__, layer) for layer_name, layer in layers.items()),
        totals=cards.Totals(_parameters(sketched), _parameters(whole)),
        dense_twin=cards.DenseTwin(weight_bytes=4 * whole.dense),
        check=check,
        versions={
            "panther-sketch": panther.__version__,
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "python": platform.python_version(),
        },
        training=training,
        description=description,
        license=license,
        authors=tuple(authors),
        preprocessing=preprocessing,
    )
    entry = proto.metadata_props.add()
    entry.key, entry.value = cards.CARD_KEY, card.to_json()
    content = proto.SerializeToString()
    target = Path(path_or_repository)
    if target.suffix == ".onnx":
        path, version = write_file(content, target), None
    else:
        path = publish(content, target, name)
        version = int(path.parent.name)
    return ExportReport(path=path, version=version, file_bytes=len(content), card=card)


def _inputs_of(model: nn.Module, count: int) -> tuple[cards.Input, ...]:
    names = list(inspect.signature(model.forward).parameters)[:count]
    if len(names) < count:
        raise ValueError(f"example_inputs holds {count} tensors and {type(model).__name__}.forward takes {len(names)}")
    return tuple(cards.Input(name) for name in names)


def _check_names(proto: onnx.ModelProto, input_names: Sequence[str], output_names: Sequence[str]) -> None:
    for kind, wanted, found in (
        ("input", input_names, [value.name for value in proto.graph.input]),
        ("output", output_names, [value.name for value in proto.graph.output]),
    ):
        if list(wanted) != found:
            raise ExportError(f"the graph has the {kind}s {found}; named were {list(wanted)}")


def _check_labels(session: object, outputs: Sequence[cards.Output]) -> None:
    for entry, value in zip(outputs, session.get_outputs(), strict=True):  # type: ignore[attr-defined]
        if entry.labels is not None and (not value.shape or value.shape[-1] != len(entry.labels)):
            raise ValueError(f"output {entry.name!r} has shape {value.shape} and {len(entry.labels)} labels were given")


def _whole_model(model: nn.Module, sketched: ParameterCount) -> ParameterCount:
    learnable = sum(parameter.numel() for parameter in model.parameters())
    other = learnable - sketched.learnable
    return ParameterCount(dense=sketched.dense + other, learnable=learnable, fixed=sketched.fixed)


def _parameters(count: ParameterCount) -> cards.Parameters:
    return cards.Parameters(dense=count.dense, learnable=count.learnable, fixed=count.fixed)


def _layer_entry(name: str, layer: SKLinear) -> cards.Layer:
    sizes = (layer.in_features, layer.out_features, layer.num_terms, layer.low_rank)
    return cards.Layer(
        name,
        *sizes,
        bias=layer.bias is not None,
        sketch="sign",
        plan="two_products",
        parameters=_parameters(layer.parameter_count()),
        multiply_adds_per_row=cards.MultiplyAdds(
            dense=layer.in_features * layer.out_features, planned=multiply_adds_per_row(*sizes)
        ),
    )
