"""Does the exported file compute what the model does? Compared before anything is published."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panther.export.card import Check, OutputError
from panther.export.constants import Array
from panther.export.errors import ExportError
from panther.export.runtime import onnxruntime
from panther.export.trace import Traceable, no_fast_path


def random_like(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs of the same shapes and types: normal with the mean and spread of the given ones; integers from them."""
    result = {}
    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            mean, spread = (tensor.mean(), tensor.std(unbiased=False)) if tensor.numel() else (0.0, 1.0)
            result[name] = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * spread + mean
        else:
            chosen = torch.randint(max(tensor.numel(), 1), (tensor.numel(),), generator=generator)
            result[name] = tensor.flatten()[chosen].reshape(tensor.shape)
    return result


def check_against_torch(
    session: Any,
    model: nn.Module,
    input_sets: Sequence[Mapping[str, Tensor]],
    *,
    output_names: Sequence[str],
    by_name: bool,
    tolerance: float,
) -> Check:
    """Compare the session's outputs with the model's, computed by torch in float64.

    Args:
        session: of the exported file.
        model: what it was made of.
        input_sets: inputs to compare on.
        output_names: in the order in which the model returns them.
        by_name: call the model with its inputs by name, by position when False.
        tolerance: largest max |y - reference| / max |reference| of an output.

    Raises:
        ExportError: an output has another shape, is not finite where torch's is, or is further off than tolerance.
    """
    errors = dict.fromkeys(output_names, (0.0, 0.0, 0.0))
    double = copy.deepcopy(model).eval().double()
    for inputs in input_sets:
        results = session.run(list(output_names), {name: tensor.numpy() for name, tensor in inputs.items()})
        references = reference_outputs(double, inputs, by_name=by_name)
        if len(references) != len(results):
            raise ExportError(f"the model has {len(references)} outputs and the file {len(results)}")
        for name, result, reference in zip(output_names, results, references, strict=True):
            error = _compare(name, result, reference, tolerance)
            errors[name] = tuple(map(max, errors[name], error))  # type: ignore[assignment]
    first = next(iter(input_sets[0].values()))
    return Check(
        reference=f"torch {torch.__version__}, float64",
        runtime=f"onnxruntime {onnxruntime().__version__}, {session.get_providers()[0]}",
        rows=len(input_sets) * (first.shape[0] if first.dim() else 1),
        max_absolute_error=max(error[0] for error in errors.values()),
        max_relative_error=max(error[1] for error in errors.values()),
        mean_relative_error=max(error[2] for error in errors.values()),
        tolerance=tolerance,
        outputs=tuple(OutputError(name, *error) for name, error in errors.items()),
    )


def reference_outputs(double: nn.Module, inputs: Mapping[str, Tensor], *, by_name: bool) -> list[Array]:
    """The outputs of a model that is in float64."""
    cast = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs.values()]
    with torch.no_grad(), no_fast_path():
        outputs = Traceable(double, list(inputs) if by_name else None, half=False)(*cast)
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def _compare(name: str, result: Array, reference: Array, tolerance: float) -> tuple[float, float, float]:
    if result.shape != reference.shape:
        raise ExportError(f"output {name!r} has shape {result.shape} in the file and {reference.shape} in torch")
    if not result.size:
        return 0.0, 0.0, 0.0
    difference = np.abs(result.astype(np.float64) - reference)
    largest = float(difference.max())
    scale = float(np.abs(reference).max()) or 1.0
    if not largest / scale <= tolerance:
        raise ExportError(
            f"output {name!r} differs from torch by {largest / scale:.3g} of its largest value; "
            f"the tolerance is {tolerance:g}; nothing was written"
        )
    return largest, largest / scale, float(difference.mean()) / scale
