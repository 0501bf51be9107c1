"""One family through `sketch_`, `export_onnx`, onnxruntime and the server, with the checks of each step."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import panther
import panther_client
from architectures.family import LENGTH, OTHER_LENGTH, Family
from panther.convert import ConversionError, ConversionReport
from panther.export import ExportError, ExportReport, export_onnx

Array = np.ndarray[Any, np.dtype[Any]]
# tolerance, relative to the largest value of an output
TOLERANCE = 1e-4
# budgets to try: small layers have few ranks to choose from
RATIOS = (0.65, 0.8, 0.95)
CALIBRATION_ROWS, EXAMPLE_ROWS, OTHER_ROWS = 16, 3, 2


@dataclass(frozen=True)
class Result:
    """What became of a family; a row of the table.

    Attributes:
        name, group: of the family.
        status: "works", "stays dense" or "refused".
        reason: why, where it does not work.
        parameters: of the model before.
        reached: share of them in layers that were converted.
        ratio: the budget of `sketch_`.
        kept: reasons why linear layers stayed dense, and how many.
        output_error: ‖y - ŷ‖ / ‖y‖ on the calibration rows, as `sketch_` reports it.
        file_bytes: of the file.
        dense_bytes: of the weights of the model before, as float32.
        parity: of the file with torch, the largest difference of an output over its largest value.
        other_shape: the same at another batch size, and another length where there is one.
        varies: names of the variable axes.
        notes: of the export.
        seconds: conversion and export.
        served: the same as other_shape for the answer of the server; None until it was asked.
    """

    name: str
    group: str
    status: str
    reason: str | None = None
    parameters: int = 0
    reached: float = 0.0
    ratio: float | None = None
    kept: dict[str, int] | None = None
    output_error: float | None = None
    file_bytes: int | None = None
    dense_bytes: int | None = None
    parity: float | None = None
    other_shape: float | None = None
    varies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    served: float | None = None

    def as_json(self) -> dict[str, Any]:
        """For the file of results."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """What the server is asked of a model, and what it has to answer."""

    model: str
    inputs: dict[str, Tensor]
    expected: dict[str, Array]


def slug(name: str) -> str:
    """The name of a family as that of a served model."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def examine(family: Family, repository: Path) -> tuple[Result, Asked | None]:
    """Convert, export and run a family.

    Args:
        family: to examine.
        repository: where its file goes.

    Returns:
        What became of it, and what to ask the server; None where there is no file.

    Raises:
        AssertionError: a figure is not what it has to be.
        Exception: a step failed in another way than the family says.
    """
    begin = time.perf_counter()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = family.make()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    calibration = family.inputs(CALIBRATION_ROWS, LENGTH, generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conversion, ratio, reason = _convert(family, model, calibration)
        example = family.inputs(EXAMPLE_ROWS, LENGTH, generator)
        try:
            report = export_onnx(
                model,
                example,
                repository,
                name=slug(family.name),
                dynamic_axes=family.axes(example),
                plan="two_products",
                num_threads=1,
                batch_sizes=(1,),
            )
        except ExportError as error:
            if family.refused is None or family.refused not in str(error):
                raise
            return Result(family.name, family.group, "refused", str(error), parameters), None
    if family.refused is not None:
        raise AssertionError(f"{family.name} was to be refused ({family.refused!r}) and is exported")
    other = family.inputs(OTHER_ROWS, OTHER_LENGTH, generator)
    expected = dict(zip([entry.name for entry in report.card.outputs], _torch_outputs(model, other), strict=True))
    layers = conversion.layers if conversion is not None else ()
    reached = sum(layer.in_features * layer.out_features for layer in layers if layer.converted)
    result = Result(
        family.name,
        family.group,
        "works" if reached else "stays dense",
        reason,
        parameters,
        reached / parameters,
        ratio,
        dict(Counter(conversion.kept.values())) if conversion is not None else None,
        conversion.output_error if conversion is not None else None,
        report.file_bytes,
        4 * parameters,
        report.card.check.max_relative_error,
        largest_error(_file_outputs(report, other), expected),
        tuple(dict.fromkeys(name for by_axis in family.axes(example).values() for name in by_axis.values())),
        report.card.notes or (),
        round(time.perf_counter() - begin, 2),
    )
    return result, Asked(slug(family.name), other, expected)


def _convert(
    family: Family, model: nn.Module, calibration: Mapping[str, Tensor]
) -> tuple[ConversionReport | None, float | None, str | None]:
    """The report of `sketch_` and its budget, the lowest that can be met.

    Where nothing can be converted, and it says so as the family expects, its message instead.
    """
    for ratio in RATIOS:
        generator = torch.Generator().manual_seed(2)
        try:
            report = panther.sketch_(model, ratio=ratio, calibration=[calibration], probes=2, generator=generator)
        except (ValueError, ConversionError) as error:
            message = str(error)
            continue
        if family.stays_dense is not None:
            raise AssertionError(f"{family.name} was to stay dense ({family.stays_dense!r}); got {report.replaced}")
        return report, ratio, None
    if family.stays_dense is None or family.stays_dense not in message:
        raise ValueError(message)
    return None, None, message


def ask(url: str, asked: Asked) -> float:
    """Ask the server once, and compare; returns the largest difference over the largest value.

    Raises:
        AssertionError: it is over the tolerance.
    """
    with panther_client.Client(url, timeout_s=60) as client:
        answer = client.infer(asked.model, {name: tensor.numpy() for name, tensor in asked.inputs.items()})
    return largest_error(answer.outputs, asked.expected)


def largest_error(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest difference of an output over its largest value.

    Raises:
        AssertionError: it is over the tolerance, or an output has another shape.
    """
    worst = 0.0
    for name, wanted in expected.items():
        result = np.asarray(found[name], dtype=np.float64)
        if result.shape != wanted.shape:
            raise AssertionError(f"output {name!r} has shape {result.shape} and not {wanted.shape}")
        error = float(np.abs(result - wanted).max()) / (float(np.abs(wanted).max()) or 1.0)
        if not error <= TOLERANCE:
            raise AssertionError(f"output {name!r} is off by {error:.2g} of its largest value")
        worst = max(worst, error)
    return worst


def _torch_outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Array]:
    """The model's own outputs, as its caller gets them but for the fast path of nn.TransformerEncoder."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            outputs = model(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    leaves: Sequence[Any] = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.double().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def _file_outputs(report: ExportReport, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(report.path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))
