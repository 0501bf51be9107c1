"""Comparison of the exported file with the model, before it is published.

See docs/decisions/0048-shapes-by-dim-auto.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panther.export.card import Check, OutputError
from panther.export.errors import ExportError, first_line
from panther.export.graph.bags import is_like_offsets, refuse_wrong_offsets
from panther.export.graph.constants import Array
from panther.export.graph.inputs import Axes
from panther.export.graph.trace import Traceable, no_fast_path
from panther.export.ort import onnxruntime
from panther.export.verify.double import ways_to_double
from panther.export.verify.masks import cut, entries_of, hidden_rows, is_mask


def random_like(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs of the same shapes and types.

    Normal with the mean and spread of the given ones; integers drawn from them. Masks stay as they are, and so do
    offsets of bags.
    """
    result = {}
    for name, tensor in inputs.items():
        if is_mask(tensor) or is_like_offsets(tensor):
            result[name] = tensor
        elif tensor.is_floating_point():
            mean, spread = (tensor.mean(), tensor.std(unbiased=False)) if tensor.numel() else (0.0, 1.0)
            result[name] = (
                torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device) * spread
                + mean
            )
        else:
            chosen = torch.randint(
                max(tensor.numel(), 1), (tensor.numel(),), generator=generator, device=generator.device
            )
            result[name] = tensor.flatten()[chosen].reshape(tensor.shape)
    return result


def check_inputs(
    examples: Mapping[str, Tensor], axes: Axes, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], bool]]:
    """Inputs for the comparison, and whether the model must accept them.

    The examples, random inputs like them, and for each variable axis random inputs with that axis at 1, which not every
    model takes. There a mask has one entry, the largest of the example; of booleans, whose True may hide, the smallest
    is tried too.
    """
    yield dict(examples), True
    yield random_like(examples, generator), True
    for name in dict.fromkeys(name for by_axis in axes.values() for name in by_axis.values()):
        inputs = random_like(examples, generator)
        largest = _cut_axis(inputs, axes, name, "largest")
        yield largest, False
        smallest = _cut_axis(inputs, axes, name, "smallest")
        booleans = [key for key, tensor in inputs.items() if tensor.dtype == torch.bool]
        if any(not torch.equal(largest[key], smallest[key]) for key in booleans):
            yield smallest, False


def _cut_axis(inputs: Mapping[str, Tensor], axes: Axes, name: str, lets_through: str) -> dict[str, Tensor]:
    """The inputs with every axis of a name at 1."""
    result = dict(inputs)
    for key, by_axis in axes.items():
        for axis, axis_name in by_axis.items():
            if axis_name == name:
                tensor = result[key]
                result[key] = (
                    cut(tensor, axis, lets_through=lets_through)
                    if is_mask(inputs[key])
                    else tensor.narrow(axis, 0, 1).contiguous()
                )
    return result


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

    A model that can't compute in float64, as it makes float32 tensors itself, is compared in float32.

    Args:
        session: of the exported file.
        model: what it was made of, in float32.
        input_sets: inputs to compare on, and whether the model must take them; sets that it may refuse are skipped
            when it does.
        output_names: in the order in which the model returns them.
        by_name: call the model with its inputs by name, by position when False.
        tolerance: largest max |y - reference| / max |reference| of an output.

    Raises:
        ExportError: the file does not run where the model does; an output has another shape, is not finite where
            torch's is, or is further off than tolerance.
    """
    reference, rows = _Reference(model, by_name=by_name), 0
    comparison = _Comparison(session, reference, output_names, tolerance)
    for inputs, required in input_sets:
        try:
            expected = reference(inputs)
        except Exception:
            if required:
                raise
            continue
        comparison.add(inputs, expected)
        first = next(iter(inputs.values()))
        rows += first.shape[0] if first.dim() else 1
    errors = comparison.errors
    return Check(
        reference=f"torch {torch.__version__}, {reference.precision}",
        runtime=f"onnxruntime {onnxruntime().__version__}, {session.get_providers()[0]}",
        rows=rows,
        max_absolute_error=max(error[0] for error in errors.values()),
        max_relative_error=max(error[1] for error in errors.values()),
        mean_relative_error=max(error[2] for error in errors.values()),
        tolerance=tolerance,
        outputs=tuple(OutputError(name, *error) for name, error in errors.items()),
        left_out=comparison.left_out or None,
    )


class _Comparison:
    """The largest errors of each output over all inputs.

    Attributes:
        errors: by output the absolute, relative and mean relative error.
        left_out: values that were not compared, since a mask hides the whole row and one side is not defined there.
    """

    def __init__(self, session: Any, reference: _Reference, output_names: Sequence[str], tolerance: float) -> None:
        self.errors = dict.fromkeys(output_names, (0.0, 0.0, 0.0))
        self.left_out = 0
        self._session = session
        self._reference = reference
        self._tolerance = tolerance

    def add(self, inputs: Mapping[str, Tensor], expected: Sequence[Array]) -> None:
        """Compare on one set of inputs.

        Raises:
            ExportError: the file does not run on it, or an output differs.
        """
        results = self._run(inputs)
        hidden: list[Array] | None = None
        for index, (name, result, wanted) in enumerate(zip(self.errors, results, expected, strict=True)):
            try:
                error = _compare(name, result, wanted, self._tolerance)
            except ExportError:
                hidden = hidden_rows(inputs, self._agrees) if hidden is None else hidden
                if not hidden or result.shape != wanted.shape:
                    raise
                undefined = self._undefined(index, inputs, result, wanted) & entries_of(hidden, wanted.shape)
                self.left_out += int(undefined.sum())
                error = _compare(name, result[~undefined], wanted[~undefined], self._tolerance)
            self.errors[name] = tuple(map(max, self.errors[name], error))  # type: ignore[assignment]

    def _run(self, inputs: Mapping[str, Tensor]) -> list[Array]:
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            results: list[Array] = self._session.run(list(self.errors), feeds)
        except Exception as error:
            shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise ExportError(
                f"the file does not run on inputs of shapes {shapes}, torch does: {first_line(error)}"
            ) from error
        return results

    def _agrees(self, inputs: Mapping[str, Tensor]) -> bool:
        with contextlib.suppress(ExportError, RuntimeError, ValueError):
            for name, result, wanted in zip(self.errors, self._run(inputs), self._reference(inputs), strict=True):
                _compare(name, result, wanted, self._tolerance)
            return True
        return False

    def _undefined(self, index: int, inputs: Mapping[str, Tensor], result: Array, wanted: Array) -> Array:
        """Where a side is not finite, or torch itself is not sure: its float32 and its float64 differ."""
        single = self._reference.single(inputs)[index].astype(np.float64)
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(result) & np.isfinite(wanted) & np.isfinite(single)
            largest = float(np.abs(wanted[finite]).max(initial=0.0)) or 1.0
            return ~finite | (np.abs(single - wanted) > self._tolerance * largest)


class _Reference:
    """A model's outputs in float64, or in float32 from the first call on that float64 fails."""

    def __init__(self, model: nn.Module, *, by_name: bool) -> None:
        self.precision = "float64"
        self._ways = ways_to_double(model)
        refuse_wrong_offsets(model)
        self._model = model
        self._by_name = by_name

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Array]:
        for way in tuple(self._ways):
            with contextlib.suppress(RuntimeError), way(self._model):
                return _outputs(self._model, inputs, torch.float64, by_name=self._by_name)
            if way is not self._ways[-1]:
                self._ways.remove(way)
        # do these inputs fail, or only float64?
        outputs = self.single(inputs)
        self._ways, self.precision = [], "float32"
        return outputs

    def single(self, inputs: Mapping[str, Tensor]) -> list[Array]:
        """The outputs in float32."""
        return _outputs(self._model, inputs, torch.float32, by_name=self._by_name)


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor], dtype: torch.dtype, *, by_name: bool) -> list[Array]:
    cast = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs.values()]
    with torch.no_grad(), no_fast_path():
        outputs = Traceable(model, list(inputs) if by_name else None, half=False)(*cast)
    return [leaf.detach().cpu().numpy() for leaf in outputs]


def _compare(name: str, result: Array, reference: Array, tolerance: float) -> tuple[float, float, float]:
    if result.shape != reference.shape:
        raise ExportError(f"output {name!r} has shape {result.shape} in the file and {reference.shape} in torch")
    if not result.size:
        return 0.0, 0.0, 0.0
    result, reference = result.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(result[~finite], reference[~finite], equal_nan=True) or not np.isfinite(result[finite]).all():
        raise ExportError(
            f"output {name!r} is not finite where torch's is, or the reverse, in "
            f"{int((np.isfinite(result) != finite).sum())} of {result.size} values; nothing was written"
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
