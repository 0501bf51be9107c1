"""Does the exported file compute what the model does? Compared before anything is published."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panther.export.card import Check
from panther.export.errors import ExportError


def load_session(model_bytes: bytes) -> Any:
    """Load a model with onnxruntime on the CPU, as the server does, at full optimisation.

    Raises:
        ExportError: onnxruntime is not installed, or does not take the model.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise ExportError(
            "the export check needs onnxruntime: install the extra 'cpu' (or 'gpu') of panther-sketch"
        ) from error
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime refuses the exported model: {error}") from error


def check_against_torch(
    session: Any,
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    tolerance: float,
) -> Check:
    """Compare the session's outputs with the model's, computed by torch in float64.

    Raises:
        ExportError: an output has another shape, is not finite where torch's is, or is further off than tolerance,
            as max |y - reference| / max |reference|.
    """
    import onnxruntime as ort

    results = session.run(
        list(output_names), {name: tensor.numpy() for name, tensor in zip(input_names, inputs, strict=True)}
    )
    references = reference_outputs(model, inputs)
    if len(references) != len(results):
        raise ExportError(f"the model has {len(references)} outputs and the file {len(results)}")
    absolute, relative, mean = 0.0, 0.0, 0.0
    for name, result, reference in zip(output_names, results, references, strict=True):
        if result.shape != reference.shape:
            raise ExportError(f"output {name!r} has shape {result.shape} in the file and {reference.shape} in torch")
        difference = np.abs(result.astype(np.float64) - reference)
        scale = float(np.abs(reference).max(initial=0.0)) or 1.0
        output_relative = float(difference.max(initial=0.0)) / scale
        if not output_relative <= tolerance:
            raise ExportError(
                f"output {name!r} differs from torch by {output_relative:.3g} of its largest value; "
                f"the tolerance is {tolerance:g}; nothing was written"
            )
        absolute = max(absolute, float(difference.max(initial=0.0)))
        relative = max(relative, output_relative)
        mean = max(mean, float(difference.mean()) / scale if difference.size else 0.0)
    return Check(
        reference=f"torch {torch.__version__}, float64",
        runtime=f"onnxruntime {ort.__version__}, {session.get_providers()[0]}",
        rows=int(inputs[0].shape[0]) if inputs[0].dim() else 1,
        max_absolute_error=absolute,
        max_relative_error=relative,
        mean_relative_error=mean,
        tolerance=tolerance,
    )


def reference_outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """The model's outputs in float64, computed on a copy of it."""
    double = copy.deepcopy(model).eval().double()
    with torch.no_grad():
        outputs = double(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs))
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    elif isinstance(outputs, dict):
        outputs = tuple(outputs.values())
    return [output.cpu().numpy() for output in outputs]
