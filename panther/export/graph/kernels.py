"""Weights of convolutions that a file holds in a smaller form, unpacked when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from torch import Tensor

from panther.export.graph.constants import Array, Builder, Levels, Plain, Product
from panther.nn import functional
from panther.nn.quantized import StoredKernel
from panther.nn.sketched_conv import SketchedConv


class Kernel(Protocol):
    """The weight of a convolution, (C_out, C_in/groups, *kernel)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        ...

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write it into a graph, as nodes over constants which every runtime folds."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight in 8 or 4 bits.

    Attributes:
        kernel: the integers and scales.
        dtype: data type of the weight in the running graph.
    """

    kernel: StoredKernel
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.kernel.shape

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Cast → Mul → Reshape, behind the unpacking of 4 bits."""
        integers, scale = (tensor.cpu().numpy() for tensor in self.kernel.rows)
        rows = Levels(integers, scale, self.dtype)
        return _reshaped(builder, rows.emit(builder, f"{name}.rows"), self.shape, name)


@dataclass(frozen=True, eq=False)
class Composed:
    """The dense weight of a sketched convolution of one group, as its factors.

    Attributes:
        output: (C_out, r) and (r, C_in·positions); None where the layer has no such terms.
        input: (C_out·positions, r) and (r, C_in); None likewise.
        shape: of the weight.
    """

    output: Product | None
    input: Product | None
    shape: tuple[int, ...]

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """MatMul → Reshape, with a Transpose for the terms whose 1x1 convolution comes first, and their sum."""
        c_out, c_in, *_ = self.shape
        both, ends = self.output is not None and self.input is not None, []
        if self.output is not None:
            ends.append(
                _reshaped(
                    builder, self.output.emit(builder, f"{name}.output"), self.shape, f"{name}.up" if both else name
                )
            )
        if self.input is not None:
            rows = _reshaped(builder, self.input.emit(builder, f"{name}.input"), (c_out, -1, c_in), f"{name}.rows")
            turned = builder.node("Transpose", [rows], f"{name}.turned", perm=[0, 2, 1])
            ends.append(_reshaped(builder, turned, self.shape, f"{name}.down" if both else name))
        return ends[0] if len(ends) == 1 else builder.node("Add", ends, name)


def composed(layer: SketchedConv) -> Composed | None:
    """The dense weight of a layer as its factors, in float32; None if the factors take no fewer bytes."""
    if layer.groups > 1:
        return None
    S1s, U1s, U2s, S2s = layer.all_terms()
    scale, found = 1 / (2 * layer.num_terms), list[Product | None]()
    for is_output, S, U in ((True, S1s, U1s), (False, S2s, U2s)):
        if S is None or U is None:
            found.append(None)
        elif is_output:
            found.append(_product(functional.up_weight(U) * scale, S.flatten(1)))
        else:
            left = S.flatten(2).transpose(1, 2).flatten(0, 1)
            found.append(_product(left, functional.down_weight(U, 1) * scale))
    c_out, c_in, shape = layer.out_channels, layer.in_channels, layer.kernel_size
    stored = sum(product.stored_bytes for product in found if product is not None)
    if stored >= 4 * c_out * c_in * int(np.prod(shape)):
        return None
    return Composed(found[0], found[1], (c_out, c_in, *shape))


def _product(left: Tensor, right: Tensor) -> Product:
    return Product(Plain(_float32(left)), Plain(_float32(right)))


def _float32(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().contiguous().numpy()


def _reshaped(builder: Builder, value: ir.Value, shape: tuple[int, ...], name: str) -> ir.Value:
    sizes = "x".join(map(str, shape)).replace("-1", "n")
    return builder.node("Reshape", [value, builder.initializer(np.array(shape, np.int64), f"panther.{sizes}")], name)
