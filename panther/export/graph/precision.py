"""Weights at eight bits, by onnxruntime's own quantizer.

See docs/decisions/0050-scale-factors-for-int8.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from panther.export.errors import ExportError
from panther.export.graph.constants import Array

PRECISIONS = ("float32", "float16", "int8")
# largest max |y - reference| / max |reference| for which a file is written
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 5e-2}
BLOCK_SIZE = 32
# resident bytes per entry of a matrix that a product multiplies by; at 8 bits with its share of the scale
ENTRY_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1 + 4 / BLOCK_SIZE}
# at this level onnxruntime computes with the 8-bit weights themselves and 8-bit blocks of activations; at the level
# below it unpacks the weights to floats at every run, which takes 15 to 50 times as long
_ACCURACY_LEVEL = 4
_ZERO_POINT, _LARGEST = 128, 127
_MAX_BYTES = 1_900_000_000


def quantize_weights(model: ir.Model) -> ir.Model:
    """Replace the products by constant matrices with MatMulNBits: 8 bits an entry, a scale for 32 rows of a column.

    Inputs, outputs, biases and everything else stay float32.

    Raises:
        ExportError: the model exceeds the size limit of the quantizer.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _MAX_BYTES:
        raise ExportError(f"precision 'int8' takes models of up to {_MAX_BYTES:,} bytes; this one has {size:,}")
    quantized = ir.from_proto(quantize_proto(ir.to_proto(model)))
    if not isinstance(quantized, ir.Model):
        raise ExportError("onnxruntime's quantizer returned no model")
    return quantized


def quantize_proto(before: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize a model in protobuf form; the given one may be changed."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    products = {node.name: weights[node.input[1]] for node in before.graph.node if set(node.input[1:2]) & set(weights)}
    with logging_as_it_was():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            before, bits=8, block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=_ACCURACY_LEVEL
        )
        quantizer.process()
    after: onnx.ModelProto = quantizer.model.model
    _make_signs_exact(after.graph, products)
    return after


def _make_signs_exact(graph: onnx.GraphProto, products: dict[str, Array]) -> None:
    """Write blocks of ±c as ±127 steps of c/127.

    The quantizer takes -c as -128 steps and +c as +127: this biases every entry of a sign matrix to one
    side, and on inputs with a mean other than zero, as after a ReLU, the biases add up (error 5% instead of 1%).
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        weight = products[node.name.removesuffix("_Q8")]
        quantized, scales = (tensors[name] for name in node.input[1:3])
        packed, scale = numpy_helper.to_array(quantized).copy(), numpy_helper.to_array(scales).copy()
        rows = weight.shape[0]
        blocks = np.zeros(packed.shape, dtype=np.float32)
        blocks.reshape(len(packed), -1)[:, :rows] = weight.T
        inside = np.zeros(packed.shape, dtype=bool)
        inside.reshape(len(packed), -1)[:, :rows] = True
        largest = np.abs(blocks).max(axis=-1, keepdims=True)
        signs = (largest > 0) & ((np.abs(blocks) == largest) | ~inside).all(axis=-1, keepdims=True)
        exact = (_ZERO_POINT + _LARGEST * np.sign(blocks)).astype(np.uint8)
        packed = np.where(signs, exact, packed)
        scale = np.where(signs.reshape(scale.shape), (largest / _LARGEST).reshape(scale.shape), scale)
        quantized.CopyFrom(numpy_helper.from_array(packed, quantized.name))
        scales.CopyFrom(numpy_helper.from_array(scale.astype(np.float32), scales.name))


@contextlib.contextmanager
def logging_as_it_was() -> Iterator[None]:
    """The quantizer's module configures the root logger when it is imported, and logs each node it takes."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled)
