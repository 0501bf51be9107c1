"""Tensor types and shapes: the names used by the runtime, numpy and the inference protocol."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# onnxruntime type: (protocol datatype, numpy dtype). numpy has no bfloat16; its bits travel as uint16.
ELEMENTS: dict[str, tuple[str, np.dtype[Any]]] = {
    "tensor(bool)": ("BOOL", np.dtype(np.bool_)),
    "tensor(uint8)": ("UINT8", np.dtype(np.uint8)),
    "tensor(uint16)": ("UINT16", np.dtype(np.uint16)),
    "tensor(uint32)": ("UINT32", np.dtype(np.uint32)),
    "tensor(uint64)": ("UINT64", np.dtype(np.uint64)),
    "tensor(int8)": ("INT8", np.dtype(np.int8)),
    "tensor(int16)": ("INT16", np.dtype(np.int16)),
    "tensor(int32)": ("INT32", np.dtype(np.int32)),
    "tensor(int64)": ("INT64", np.dtype(np.int64)),
    "tensor(float16)": ("FP16", np.dtype(np.float16)),
    "tensor(float)": ("FP32", np.dtype(np.float32)),
    "tensor(double)": ("FP64", np.dtype(np.float64)),
    "tensor(string)": ("BYTES", np.dtype(object)),
    "tensor(bfloat16)": ("BF16", np.dtype(np.uint16)),
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    In ``shape`` None is a dynamic dimension; ``names`` keeps its symbol. With ``any_rank`` the model declares no shape,
    and ``shape`` is empty.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    names: tuple[str | None, ...]
    any_rank: bool = False

    @property
    def wire_shape(self) -> list[int]:
        """The shape in the protocol's form: -1 for a dynamic dimension, and [-1] if no shape is declared."""
        if self.any_rank:
            return [-1]
        return [-1 if size is None else size for size in self.shape]

    @property
    def readable_shape(self) -> str:
        """The shape for a message, such as ``(batch, 784)``."""
        if self.any_rank:
            return "any shape"
        parts = [
            str(size if size is not None else name or "?") for size, name in zip(self.shape, self.names, strict=True)
        ]
        return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape matches."""
        return self.any_rank or (
            len(shape) == len(self.shape)
            and all(want is None or want == size for want, size in zip(self.shape, shape, strict=True))
        )


def bfloat16_bits(array: Array) -> Array:
    """Round float32 to the bits of bfloat16, to nearest even."""
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16_values(bits: Array) -> Array:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def tensor_spec(node: Any) -> TensorSpec:
    """The spec of one onnxruntime ``NodeArg``.

    Raises:
        ValueError: The value is not a tensor, or the protocol has no name for its type.
    """
    if node.type not in ELEMENTS:
        raise ValueError(f"{node.name!r} has the type {node.type}, which the inference protocol does not support")
    datatype, dtype = ELEMENTS[node.type]
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    names = tuple(size if isinstance(size, str) else None for size in node.shape)
    return TensorSpec(node.name, datatype, dtype, shape, names)
