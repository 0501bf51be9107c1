"""Further factorizations of a convolution, the spatial split and Tucker-2, beside those of a conversion.

`bench_conv.py --splits` runs it on the 3x3 convolutions of the trained networks at shares of their entries. Each
factorization is fitted to the covariance of the layer's patches: it starts from its closed form, then L-BFGS optimizes
all factors together, so no result depends on its start. onnxruntime runs the sequence of convolutions and the dense one
on one image, to time them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panther.compression.latency import Stopwatch
from panther.compression.options import Convolved, ConvStep

SHARES = (0.5, 0.25, 0.125)
# channels after the first 1x1 convolution of Tucker-2, as shares of C_in, by what the last has of C_out
_LEANS = (0.7, 1.0, 1.4)
_STEPS = 60
Factors = list[Tensor]


@dataclass(frozen=True)
class Split:
    """One factorization at one size.

    Attributes:
        name: Name of the factorization.
        factors: The initial factors.
        weight: The dense weight (C_out, C_in, k, k) of the factors.
        shapes: Shapes of the weights of the convolutions in sequence.
    """

    name: str
    factors: Factors
    weight: Callable[[Factors], Tensor]
    shapes: list[tuple[int, int, int, int]]

    @property
    def entries(self) -> int:
        """Number of stored entries."""
        return sum(factor.numel() for factor in self.factors)


def of_layer(conv: nn.Conv2d, patches: Tensor, size: int) -> list[dict[str, object]]:
    """Held-out error, entries and microseconds of each factorization at each share.

    Args:
        conv: The 3x3 convolution.
        patches: (n, C_in·9); one half is for the fit, the other for the measurement.
        size: Height and width of its input, in pixels.
    """
    W = conv.weight.detach().double()
    fitted, held_out = (half.double() for half in patches.chunk(2))
    C = fitted.t() @ fitted / len(fitted)
    C += 1e-4 * C.diagonal().mean() * torch.eye(len(C))
    L, whole = torch.linalg.cholesky(C), held_out @ W.flatten(1).t()
    watch, shape = Stopwatch(1, {}), (1, conv.in_channels, size, size)

    def timed(shapes: list[tuple[int, int, int, int]]) -> float:
        return round(watch.product_us(Convolved(tuple(_steps(conv, shapes))), shape), 1)

    dense_us, rows = timed([tuple(conv.weight.shape)]), []  # type: ignore[list-item]
    for share in SHARES:
        best: dict[str, dict[str, object]] = {}
        for split in _splits(W, L, share * W.numel()):
            factors = _refined(split, W, L)
            lost = held_out @ (W - split.weight(factors)).flatten(1).t()
            error = (lost.norm() / whole.norm()).item()
            row = {"error": round(error, 4), "entries": split.entries, "us": timed(split.shapes)}
            known = best.get(split.name)
            if known is None or error < known["error"]:  # type: ignore[operator]
                best[split.name] = row
        channels = (conv.in_channels, conv.out_channels, conv.stride[0])
        rows.append({"channels": channels, "share": share, "dense_us": dense_us, "ways": best})
        print(rows[-1], flush=True)
    return rows


def _splits(W: Tensor, L: Tensor, most: float) -> Iterator[Split]:
    """Every factorization within a number of entries."""
    o, c, k, _ = W.shape
    down, up = _channels(W, L)
    rank = int(most / (o + c * k * k))
    U, S, Vh = torch.linalg.svd(W.flatten(1) @ L, full_matrices=False)
    right = torch.linalg.solve_triangular(L.t(), Vh[:rank].t(), upper=True).t()
    yield Split(
        "output",
        [U[:, :rank] * S[:rank], right],
        lambda f: (f[0] @ f[1]).view(W.shape),
        [(rank, c, k, k), (o, rank, 1, 1)],
    )
    rank = min(int(most / (c + o * k * k)), c)
    yield Split(
        "input",
        [down[:rank], torch.einsum("ocij,rc->orij", W, down[:rank])],
        lambda f: torch.einsum("orij,rc->ocij", f[1], f[0]),
        [(rank, c, 1, 1), (o, rank, k, k)],
    )
    rank = int(most / (k * (o + c)))
    matrix = W.permute(0, 3, 1, 2).reshape(o * k, c * k)
    scale = (L @ L.t()).view(c, k, k, c, k, k).diagonal(dim1=2, dim2=5).mean(-1).reshape(c * k, c * k)
    root = torch.linalg.cholesky(scale)
    U, S, Vh = torch.linalg.svd(matrix @ root, full_matrices=False)
    tall = torch.linalg.solve_triangular(root.t(), Vh[:rank].t(), upper=True).t()
    yield Split(
        "spatial",
        [(U[:, :rank] * S[:rank]).reshape(o, k, rank), tall.reshape(rank, c, k)],
        lambda f: torch.einsum("ojr,rci->ocij", f[0], f[1]),
        [(rank, c, k, 1), (o, rank, 1, k)],
    )
    for lean in _LEANS:
        a = _tucker_rank(o, c, k, most, lean)
        b = min(max(1, round(lean * a * c / o)), c)
        core = torch.einsum("ocij,oa,bc->abij", W, up[:, :a], down[:b])
        yield Split(
            "tucker",
            [up[:, :a], core, down[:b]],
            lambda f: torch.einsum("oa,abij,bc->ocij", f[0], f[1], f[2]),
            [(b, c, 1, 1), (a, b, k, k), (o, a, 1, 1)],
        )


def _channels(W: Tensor, L: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions of the input channels (C_in, C_in) and the output channels, the largest first."""
    _, c, k, _ = W.shape
    C = (L @ L.t()).view(c, k * k, c, k * k).diagonal(dim1=1, dim2=3).mean(-1)
    through = torch.linalg.cholesky(C)
    by_input = torch.linalg.svd(W.permute(0, 2, 3, 1).reshape(-1, c) @ through @ through.t(), full_matrices=False).Vh
    by_output = torch.linalg.svd(W.flatten(1) @ L, full_matrices=False).U
    return by_input, by_output


def _tucker_rank(o: int, c: int, k: int, most: float, lean: float) -> int:
    """The most channels before the last 1x1 convolution."""
    found = 1
    for a in range(1, o + 1):
        b = min(max(1, round(lean * a * c / o)), c)
        if o * a + a * b * k * k + b * c <= most:
            found = a
    return found


def _refined(split: Split, W: Tensor, L: Tensor) -> Factors:
    """The factors after L-BFGS on ‖(W - Ŵ) L‖²."""
    factors = [factor.clone(memory_format=torch.contiguous_format).requires_grad_() for factor in split.factors]
    optimizer = torch.optim.LBFGS(factors, max_iter=_STEPS, line_search_fn="strong_wolfe")
    whole = (W.flatten(1) @ L).square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = ((W - split.weight(factors)).flatten(1) @ L).square().sum() / whole
        loss.backward()
        return loss

    optimizer.step(closure)
    return [factor.detach() for factor in factors]


def _steps(conv: nn.Conv2d, shapes: list[tuple[int, int, int, int]]) -> Iterator[ConvStep]:
    """Each axis has the stride and the padding of the layer where a kernel first covers it."""
    open_axes = {0, 1}
    for shape in shapes:
        sizes = shape[2:]
        covered = {axis for axis in open_axes if sizes[axis] == conv.kernel_size[axis] and sizes[axis] > 1}
        stride = tuple(conv.stride[axis] if axis in covered else 1 for axis in (0, 1))
        pads = tuple(int(conv.padding[axis]) if axis in covered else 0 for axis in (0, 1))
        open_axes -= covered
        yield ConvStep(shape, stride, (1, 1), (*pads, *pads))
