"""Comparison with onnxruntime's own dynamic quantization on the same data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from panther.compression.inputs import Inputs
from panther.compression.report import Side
from panther.convert.deviation import Reference
from panther.export import ExportError, export_onnx, ort
from panther.export.errors import first_line
from panther.export.graph.precision import logging_as_it_was
from panther.export.ort import Target

NAME = "onnxruntime quantize_dynamic"


def quantize_dynamic(model: nn.Module, inputs: Inputs, reference: Reference) -> Side:
    """Export the original, quantize the file by one call with a scale a channel, and run it on the batches.

    Raises:
        ExportError: the model can't be exported, or onnxruntime does not quantize or run it.
    """
    with tempfile.TemporaryDirectory(prefix="panther-") as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        export_onnx(
            model,
            inputs.examples(),
            source,
            name="original",
            dynamic_axes=inputs.dynamic_axes,
            num_threads=1,
            batch_sizes=(1,),
        )
        ort.onnxruntime()
        try:
            with logging_as_it_was():
                from onnxruntime.quantization import QuantType
                from onnxruntime.quantization import quantize_dynamic as quantize

                quantize(source, path, per_channel=True, weight_type=QuantType.QInt8)
        except Exception as error:
            raise ExportError(f"onnxruntime cannot quantize the file: {first_line(error)}") from error
        session = ort.load(path, Target("cpu", 1))
        feeds = iter([{name: tensor.numpy() for name, tensor in batch.items()} for batch in inputs.batches])
        names = [output.name for output in session.get_outputs()]

        def run(_: Any) -> list[Tensor]:
            return [torch.from_numpy(np.asarray(array)) for array in session.run(names, next(feeds))]

        deviation = reference.deviation_of(run)
        return Side(NAME, sum(_sizes(path)), deviation.error, deviation.cosine)


def _sizes(path: Path) -> Iterator[int]:
    """Bytes of every constant of a file."""
    for tensor in onnx.load(path).graph.initializer:
        yield onnx.numpy_helper.to_array(tensor).nbytes
