"""`export_onnx`: export a model to an ONNX file and compare its outputs with the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from panther.export import card as cards
from panther.export import pipeline
from panther.export.card import CompressionCurve
from panther.export.options import EXTERNAL_DATA_BYTES, About, ExportOptions
from panther.export.report import ExportReport


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
    compression_curve: CompressionCurve | None = None,
) -> ExportReport:
    """Export a model to one ONNX file with its card, checked against torch before it is published.

    Each sketched layer becomes two matrix products with constants, or one where that is faster on the target;
    consecutive sketched layers become one pair. The file is written to a temporary folder, loaded as by a server,
    checked after onnxruntime's optimization, and compared with the model in float64 on the example inputs and on random
    ones. Only then is it moved into place: on any error nothing is written.

    Args:
        model: any module that torch.onnx can export; it is not changed.
        example_inputs: a tensor, a sequence with one per argument of forward, or tensors by argument name: real rows
            for the check.
        path_or_repository: a path ending in ``.onnx``, or the folder of a model repository, where the file becomes
            the next version of ``name``, beside a ``config.pbtxt`` for Triton.
        name: the model's name: at most 128 letters, digits, ``.``, ``_``, ``-``; not beginning with ``.`` or ``-``.
        inputs: names and meaning of the inputs, in the order of example_inputs; the names of forward's arguments when
            None.
        outputs: names, meaning and labels of the outputs, in the order in which forward returns them; when None the
            keys of the dictionary that it returns, else ``output``, or ``output_0`` and so on.
        dynamic_axes: axes of variable size with their names, by input; axes of the same name have the same size. Axis
            0 of every input, named ``batch``, when None.
        plan: ``auto`` measures; ``two_products`` or ``dense`` for all layers, or a plan for some layers by name.
        u_storage: ``bits`` stores fixed sign matrices at one bit an entry, unfolded by onnxruntime at load; ``float``.
        precision: ``float32``; ``float16``, for CUDA: inputs and outputs stay float32; ``int8``: weights alone, CPU.
        target: device that plans are measured on, ``cpu`` or ``cuda``.
        num_threads: CPU threads of the target; all available cores when None.
        batch_sizes: rows of the measured runs.
        max_weight_bytes: limit on the constants that are resident when the file is loaded.
        tolerance: largest |y - reference| / max |reference| for which a file is written; 1e-4, 2e-2 or 5e-2 by
            precision when None.
        external_data_bytes: weights of more bytes than this go into a separate file beside the model.
        conditional: branch of every `ConditionalSKLinear` for the file, ``sketched`` or ``standard``; required if the
            model has such a layer.
        training, description, license, authors, preprocessing: further fields of the card.
        compression_curve: another field of the card; exports of `panther.compress` fill it in.

    Raises:
        ExportError: the model can't be exported, the file's outputs or graph are not as planned, or it can't be
            written.
        ValueError: an argument is wrong.
    """
    options = ExportOptions(
        name=name,
        inputs=inputs,
        outputs=outputs,
        dynamic_axes=dynamic_axes,
        plan=plan,
        u_storage=u_storage,
        precision=precision,
        target=target,
        num_threads=num_threads,
        batch_sizes=batch_sizes,
        max_weight_bytes=max_weight_bytes,
        tolerance=tolerance,
        external_data_bytes=external_data_bytes,
        conditional=conditional,
        about=About(training, description, license, authors, preprocessing, compression_curve),
    )
    return pipeline.run(model, example_inputs, Path(path_or_repository), options)
