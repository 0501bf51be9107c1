"""Does the exported file compute what the model does? Compared before anything is published."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panther.export.card import Check, OutputError
from panther.export.constants import Array
from panther.export.errors import ExportError, first_line
from panther.export.inputs import Axes
from panther.export.runtime import onnxruntime
from panther.export.trace import Traceable, no_fast_path


def random_like(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs of the same shapes and types.

    Normal with the mean and spread of the given ones; integers drawn from them. Masks stay as they are: a row that is
    masked altogether means nothing, and torch and ONNX differ on it.
    """
    result = {}
    for name, tensor in inputs.items():
        if tensor.is_floating_point():
            mean, spread = (tensor.mean(), tensor.std(unbiased=False)) if tensor.numel() else (0.0, 1.0)
            result[name] = (
                torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device) * spread
                + mean
            )
        elif _is_mask(tensor):
            result[name] = tensor
        else:
            chosen = torch.randint(
                max(tensor.numel(), 1), (tensor.numel(),), generator=generator, device=generator.device
            )
            result[name] = tensor.flatten()[chosen].reshape(tensor.shape)
    return result


def check_inputs(
    examples: Mapping[str, Tensor], axes: Axes, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """What to compare on, and whether the model has to take it.

    The examples, random inputs like them, and for each variable axis random inputs with that axis at 1, which not every
    model takes.
    """
    yield dict(examples), True
    yield random_like(examples, generator), True
    for name in dict.fromkeys(name for by_axis in axes.values() for name in by_axis.values()):
        inputs = random_like(examples, generator)
        for key, by_axis in axes.items():
            for axis, axis_name in by_axis.items():
                if axis_name == name:
                    inputs[key] = _cut(inputs[key], axis)
        yield inputs, False


def check_against_torch(
    session: Any,
    model: nn.Module,
    input_sets: Iterable[tuple[Mapping[str, Tensor], bool]],
    *,
    output_names: Sequence[str],
    by_name: bool,
    tolerance: float,
) -> Check:
    """Compare the session's outputs with the model's, computed by torch in float64.

    A model that can't compute in float64, as it makes tensors of float32 of its own, is compared in float32.

    Args:
        session: of the exported file.
        model: what it was made of, in float32.
        input_sets: inputs to compare on, and whether the model must take them; sets that it may refuse are passed over
            when it does.
        output_names: in the order in which the model returns them.
        by_name: call the model with its inputs by name, by position when False.
        tolerance: largest max |y - reference| / max |reference| of an output.

    Raises:
        ExportError: the file does not run where the model does; an output has another shape, is not finite where
            torch's is, or is further off than tolerance.
    """
    errors = dict.fromkeys(output_names, (0.0, 0.0, 0.0))
    reference, rows = _Reference(model, by_name=by_name), 0
    for inputs, required in input_sets:
        try:
            expected = reference(inputs)
        except Exception:
            if required:
                raise
            continue
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        try:
            results = session.run(list(output_names), {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:
            raise ExportError(
                f"the file does not run on inputs of shapes {shapes}, torch does: {first_line(error)}"
            ) from error
        for name, result, wanted in zip(output_names, results, expected, strict=True):
            error_of_set = _compare(name, result, wanted, tolerance)
            errors[name] = tuple(map(max, errors[name], error_of_set))  # type: ignore[assignment]
        first = next(iter(inputs.values()))
        rows += first.shape[0] if first.dim() else 1
    return Check(
        reference=f"torch {torch.__version__}, {reference.precision}",
        runtime=f"onnxruntime {onnxruntime().__version__}, {session.get_providers()[0]}",
        rows=rows,
        max_absolute_error=max(error[0] for error in errors.values()),
        max_relative_error=max(error[1] for error in errors.values()),
        mean_relative_error=max(error[2] for error in errors.values()),
        tolerance=tolerance,
        outputs=tuple(OutputError(name, *error) for name, error in errors.items()),
    )


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool or (
        not tensor.is_floating_point() and bool(((tensor == 0) | (tensor == 1)).all())
    )


def _cut(tensor: Tensor, axis: int) -> Tensor:
    """One entry of an axis; of a mask the one that lets most through."""
    if _is_mask(tensor):
        return tensor.any(axis, keepdim=True).to(tensor.dtype)
    return tensor.narrow(axis, 0, 1).contiguous()


class _Reference:
    """A model's outputs in float64, or in float32 from the first call on that float64 fails."""

    def __init__(self, model: nn.Module, *, by_name: bool) -> None:
        self.precision = "float64"
        self._single = model
        self._double: nn.Module | None = copy.deepcopy(model).eval().double()
        self._by_name = by_name

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Array]:
        if self._double is not None:
            with contextlib.suppress(RuntimeError):
                return _outputs(self._double, inputs, torch.float64, by_name=self._by_name)
            # refuses these inputs, or float64?
            outputs = _outputs(self._single, inputs, torch.float32, by_name=self._by_name)
            self._double, self.precision = None, "float32"
            return outputs
        return _outputs(self._single, inputs, torch.float32, by_name=self._by_name)


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype, *, by_name: bool) -> list[Array]:
    cast = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs.values()]
    with torch.no_grad(), no_fast_path():
        outputs = Traceable(model, list(inputs) if by_name else None, half=False)(*cast)
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, Tensor)]


def _compare(name: str, result: Array, reference: Array, tolerance: float) -> tuple[float, float, float]:
    if result.shape != reference.shape:
        raise ExportError(f"output {name!r} has shape {result.shape} in the file and {reference.shape} in torch")
    if not result.size:
        return 0.0, 0.0, 0.0
    result, reference = result.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(result[~finite], reference[~finite], equal_nan=True) or not np.isfinite(result[finite]).all():
        raise ExportError(
            f"output {name!r} is not finite where torch's is, or the other way round; nothing was written"
        )
    if not finite.any():
        return 0.0, 0.0, 0.0
    difference = np.abs(result[finite] - reference[finite])
    largest = float(difference.max())
    scale = float(np.abs(reference[finite]).max()) or 1.0
    if not largest / scale <= tolerance:
        raise ExportError(
            f"output {name!r} differs from torch by {largest / scale:.3g} of its largest value; "
            f"the tolerance is {tolerance:g}; nothing was written"
        )
    return largest, largest / scale, float(difference.mean()) / scale
