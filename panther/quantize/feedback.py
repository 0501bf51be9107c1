"""Rounding with error feedback: entries not yet rounded compensate for the errors of rounded ones.

See docs/decisions/0069-weights-in-blocks.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panther.linalg.whitening import damped
from panther.nn.quantized.grid import Grid, within_pair

INPUT_DAMPING, OUTPUT_DAMPING = 1e-2, 1e-1
# larger output matrices cost more than they gain
_LARGEST_OUTPUT = 8192
_TILE = 64


def compensated(W: Tensor, grid: Grid, C: Tensor, G: Tensor | None = None) -> Tensor:
    """Round a weight so that tr(Eᵀ G E C) of its error E is small.

    With C = L D Lᵀ and G = M F Mᵀ, L and M unit triangular, the error is Σ F_i D_j η_ij² over the entries of
    η = Mᵀ E L. Each entry is rounded after those that its η depends on, and aims at η_ij = 0: the remaining η_ij is the
    error of one rounding. Columns of large variance come first. With G None this is GPTQ (Frantar et al., 2022);
    feedback on both sides is that of YAQA (Tseng et al., "Model-preserving adaptive rounding", 2025).

    Entries on an antidiagonal don't depend on each other and are rounded together; tiles of them, so that most of the
    work is products of matrices. Without G the entries of a column don't depend on each other either.

    Args:
        W: (d_out, d_in).
        grid: the allowed values of the entries.
        C: (d_in, d_in), positive semidefinite, the second moment of the inputs.
        G: (d_out, d_out), positive semidefinite, what an error of the outputs costs. Its diagonal (d_out,) alone
            changes nothing, since rows of W don't depend on each other then.

    Returns:
        (d_out, d_in), float32, the integers.
    """
    if G is not None and (G.dim() == 1 or len(G) > _LARGEST_OUTPUT):
        G = None
    columns = _pairs_first(C) if grid.paired else C.diagonal().argsort(descending=True)
    across = _feedback(damped(C, INPUT_DAMPING), columns)
    Q = torch.empty(W.shape, dtype=torch.float32, device=W.device)
    if G is None:
        Q[:, columns] = _by_columns(W, grid, columns, across).t()
        return Q
    rows = G.diagonal().argsort(descending=True)
    tiles = _Tiles(W[rows][:, columns], grid, rows, columns, across, _feedback(damped(G, OUTPUT_DAMPING), rows))
    tiles.round()
    Q[rows.unsqueeze(1), columns] = tiles.integers
    return Q


def _by_columns(W: Tensor, grid: Grid, columns: Tensor, across: Tensor) -> Tensor:
    """(d_in, d_out): the integers of each column, in the given order, with feedback from the columns before."""
    count = len(columns)
    V, step, low, high = (
        M[:, columns].t().float().contiguous()
        for M in (W, *(grid.each(t, count) for t in (grid.step, grid.low, grid.high)))
    )
    Q, fed = torch.zeros_like(V), torch.zeros_like(V)
    for start in range(0, count, _TILE):
        stop = min(start + _TILE, count)
        for j in range(start, stop):
            # a row of V holds weights until it is rounded, and then their errors
            integers = torch.round((V[j] + fed[j] + across[start:j, j] @ V[start:j]) / step[j])
            integers = torch.minimum(torch.maximum(integers, low[j]), high[j])
            if grid.paired and j % 2:
                integers = within_pair(integers, Q[j - 1])
            Q[j] = integers
            V[j] -= integers * step[j]
        fed[stop:] += across[start:stop, stop:].t() @ V[start:stop]
    return Q


def _pairs_first(C: Tensor) -> Tensor:
    """Columns by falling variance with each pair 2i, 2i + 1 together, and one without a partner last."""
    pairs = len(C) // 2
    variance = C.diagonal()[: 2 * pairs].reshape(pairs, 2).sum(1)
    first = 2 * variance.argsort(descending=True)
    paired = torch.stack([first, first + 1], dim=1).flatten()
    return torch.cat([paired, torch.arange(2 * pairs, len(C), device=C.device)])


def _feedback(C: Tensor | None, order: Tensor) -> Tensor:
    """(d, d) strictly upper triangular: row j says how an error in j moves the target of each entry after it."""
    if C is None:
        return torch.zeros(len(order), len(order), device=order.device)
    backwards = order.flip(0)
    L = torch.linalg.cholesky(C.double()[backwards.unsqueeze(1), backwards])
    L /= L.diagonal().clone()
    factor: Tensor = L.float().flip(0, 1).triu_(1)
    return factor


class _Tiles:
    """A weight in tiles, filled up with entries that are zero."""

    def __init__(self, V: Tensor, grid: Grid, rows: Tensor, columns: Tensor, across: Tensor, down: Tensor) -> None:
        self._rows, self._columns = V.shape
        self._paired = grid.paired
        step, low, high = (grid.each(t, len(columns))[rows][:, columns] for t in (grid.step, grid.low, grid.high))
        self._V, self._low, self._high = (_filled(tensor) for tensor in (V, low, high))
        self._step = _filled(step, 1.0)
        self._across, self._down = _filled(across), _filled(down)
        # error feedback on the target of each entry: from its own row, and from other rows
        self._from_row, self._from_rows = torch.zeros_like(self._V), torch.zeros_like(self._V)
        self._Q = torch.zeros_like(self._V)

    @property
    def integers(self) -> Tensor:
        """(d_out, d_in)."""
        return self._Q[: self._rows, : self._columns]

    def round(self) -> None:
        """All tiles, those of an antidiagonal together."""
        tall, wide = (size // _TILE for size in self._V.shape)
        for number in range(tall + wide - 1):
            i = torch.arange(max(0, number - wide + 1), min(tall, number + 1), device=self._V.device)
            self._diagonal(i, number - i)

    def _diagonal(self, i: Tensor, j: Tensor) -> None:
        """Round the tiles at (i, j), whose entries (k, l) with the same k + l are views with a constant stride."""
        V, step, low, high, P, U = (
            _tiles(M, i, j) for M in (self._V, self._step, self._low, self._high, self._from_row, self._from_rows)
        )
        # l is reversed, so that a wave reads and writes consecutive rows
        across, down = _tiles(self._across, j, j).flip(1), _tiles(self._down, i, i)
        U = U.transpose(1, 2).flip(1).contiguous()
        Q, E = torch.zeros_like(V), torch.zeros_like(V)
        v, s, a, b, p, u, q, e = (M.flatten(1) for M in (V, step, low, high, P, U, Q, E))
        for t in range(2 * _TILE - 1):
            first, last = max(0, t - _TILE + 1), min(_TILE, t + 1) - 1
            wave = slice(t + first * (_TILE - 1), t + last * (_TILE - 1) + 1, _TILE - 1)
            start = (_TILE - 1 - t) * _TILE
            turned = slice(start + first * (_TILE + 1), start + last * (_TILE + 1) + 1, _TILE + 1)
            integers = torch.round((v[:, wave] + p[:, wave] + u[:, turned]) / s[:, wave])
            integers = torch.minimum(torch.maximum(integers, a[:, wave]), b[:, wave])
            if self._paired:
                integers = _paired(integers, Q, t, first, last)
            q[:, wave] = integers
            error = v[:, wave] - integers * s[:, wave]
            e[:, wave] = error
            reached = error + p[:, wave]
            rows, reversed_columns = slice(first, last + 1), slice(_TILE - 1 - t + first, _TILE - t + last)
            P[:, rows] += error.unsqueeze(2) * across[:, reversed_columns]
            U[:, reversed_columns] += reached.unsqueeze(2) * down[:, rows]
        _in_tiles(self._Q)[i, :, j] = Q
        self._pass_on(i.tolist(), j.tolist(), E, E + P)

    def _pass_on(self, i: list[int], j: list[int], E: Tensor, R: Tensor) -> None:
        """Feed the errors of rounded tiles back to the tiles to their right and below."""
        for number, (row, column) in enumerate(zip(i, j, strict=True)):
            rows = slice(row * _TILE, (row + 1) * _TILE)
            columns = slice(column * _TILE, (column + 1) * _TILE)
            self._from_row[rows, columns.stop :] += E[number] @ self._across[columns, columns.stop :]
            self._from_rows[rows.stop :, columns] += self._down[rows, rows.stop :].t() @ R[number]


def _paired(integers: Tensor, Q: Tensor, t: int, first: int, last: int) -> Tensor:
    """Integers of the wave t of tiles Q, those in odd columns brought within their pair."""
    k = torch.arange(first, last + 1, device=Q.device)
    before = Q[:, k, (t - k - 1).clamp_min(0)]
    return torch.where((t - k) % 2 == 1, within_pair(integers, before), integers)


def _tiles(M: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """(n, tile, tile), a copy."""
    return _in_tiles(M)[i, :, j]


def _in_tiles(M: Tensor) -> Tensor:
    """(rows, tile, columns, tile), a view."""
    rows, columns = M.shape
    return M.view(rows // _TILE, _TILE, columns // _TILE, _TILE)


def _filled(M: Tensor, value: float = 0.0) -> Tensor:
    """Pad a matrix with zeros to whole tiles."""
    rows, columns = M.shape
    padded = torch.full((-(-rows // _TILE) * _TILE, -(-columns // _TILE) * _TILE), value, device=M.device)
    padded[:rows, :columns] = M
    return padded
