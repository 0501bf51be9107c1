"""The two products of a sketched layer and their gradients as Triton kernels; imported only where they are used.

A product with a factor is one of two kinds: `_shrink` goes from many features to few columns (x @ A, grad @ Bᵀ) and
`_expand` from few columns to many features (H @ B + bias, dH @ Aᵀ). A third, `_reduce_rows`, makes the gradients of
the learnable halves. A factor is read where its terms lie, cast as it is read, so nothing is laid out or cast before.

Each kernel computes everything that depends only on the kernel before it: two launches forward, two backward.

Shapes: x (rows, features); W (features, columns), given by three strides, since column c is entry c % K of term c // K;
part (SPLITS, rows, columns), split-K partial sums over the features, which the consumer kernel reduces.

See docs/decisions/0042-two-triton-kernels-each-way.md.
"""

# Kernel arguments are pointers, numbers and compile-time constants.
# ruff: noqa: ANN001, ANN201, ANN202, D403, FBT003

from __future__ import annotations

import triton
import triton.language as tl

# numbers that change with the length of a batch: kernels are not compiled for their divisors
VARYING = ("rows", "shrinking", "expanding")


@triton.jit
def _shrink(
    x, W, part, pid, rows, features, columns, x_stride, W_feature, W_term, W_rank, split_size, scale,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr,
):  # fmt: skip
    """part[s] = scale · x @ W over the s-th split of the features."""
    c_tiles = tl.cdiv(columns, BC)
    m_tiles = tl.cdiv(rows, BM)
    c = (pid % c_tiles) * BC + tl.arange(0, BC)
    m = (pid // c_tiles) % m_tiles * BM + tl.arange(0, BM)
    s = pid // (c_tiles * m_tiles)
    c_read = c if FULL_C else tl.minimum(c, columns - 1)
    x_rows = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_stride
    W_columns = W + ((c_read // K) * W_term + (c_read % K) * W_rank)[None, :]
    acc = tl.zeros((BM, BC), dtype=tl.float32)
    last = tl.minimum((s + 1) * split_size, features)
    for first in tl.range(s * split_size, last, BF, num_stages=STAGES):
        f = first + tl.arange(0, BF)
        if FULL_F:
            a = tl.load(x_rows + f[None, :])
            w = tl.load(W_columns + f[:, None] * W_feature)
        else:
            a = tl.load(x_rows + f[None, :], mask=(f < last)[None, :], other=0.0)
            w = tl.load(W_columns + f[:, None] * W_feature, mask=(f < last)[:, None], other=0.0)
        acc = tl.dot(a.to(DTYPE), w.to(DTYPE), acc, input_precision=PRECISION)
    inside = (m < rows)[:, None] & (c < columns)[None, :]
    place = part + (s * rows + m).to(tl.int64)[:, None] * columns + c[None, :]
    tl.store(place, (acc * scale).to(part.dtype.element_ty), mask=inside)


@triton.jit
def _sum_of_splits(
    part, n, c, n_end, c_end, rows, columns, SPLITS: tl.constexpr, DTYPE: tl.constexpr, FULL_C: tl.constexpr
):
    """Entries (n, c) of the sum over the splits; zeros from n_end and c_end on; FULL_C: c stays below c_end."""
    inside = (n < n_end)[:, None]
    if not FULL_C:
        inside = inside & (c < c_end)[None, :]
    place = part + n.to(tl.int64)[:, None] * columns + c[None, :]
    h = tl.load(place, mask=inside, other=0.0)
    if SPLITS > 1:
        for s in tl.static_range(1, SPLITS):
            h += tl.load(place + s * rows * columns, mask=inside, other=0.0)
    return h.to(DTYPE)


@triton.jit
def _panel(W_features, c, columns, W_term, W_rank, K: tl.constexpr, FULL_C: tl.constexpr):
    """Columns c of W, transposed, of the features that W_features, (1, BF), points to."""
    place = W_features + ((c // K) * W_term + (c % K) * W_rank)[:, None]
    return tl.load(place) if FULL_C else tl.load(place, mask=(c < columns)[:, None], other=0.0)


@triton.jit
def _expand(
    part, W, bias, y, pid, rows, features, columns, W_feature, W_term, W_rank, rows_each,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr, ONE_TILE: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """y = part @ Wᵀ + bias, for W with features as rows."""
    panels = tl.cdiv(features, BF)
    f = (pid % panels) * BF + tl.arange(0, BF)
    f_read = f if FULL_F else tl.minimum(f, features - 1)
    first = (pid // panels) * rows_each
    last = tl.minimum(first + rows_each, rows)
    W_features = W + (f_read * W_feature)[None, :]
    if HAS_BIAS:
        b = tl.load(bias + f_read).to(tl.float32)[None, :]
    if ONE_TILE:
        # the panel of W and the bias stay in place while rows stream by
        c = tl.arange(0, BC)
        w = _panel(W_features, c, columns, W_term, W_rank, K, FULL_C).to(DTYPE)
        for at in tl.range(first, last, BM, num_stages=STAGES):
            m = at + tl.arange(0, BM)
            h = _sum_of_splits(part, m, c, last, columns, rows, columns, SPLITS, DTYPE, FULL_C)
            acc = tl.dot(h, w, input_precision=PRECISION)
            if HAS_BIAS:
                acc += b
            inside = (m < last)[:, None] if FULL_F else (m < last)[:, None] & (f < features)[None, :]
            place = y + m.to(tl.int64)[:, None] * features + f[None, :]
            tl.store(place, acc.to(y.dtype.element_ty), mask=inside, cache_modifier=STORE)
    else:
        m = first + tl.arange(0, BM)
        acc = tl.zeros((BM, BF), dtype=tl.float32)
        for at in tl.range(0, columns, BC, num_stages=STAGES):
            c = at + tl.arange(0, BC)
            w = _panel(W_features, c, columns, W_term, W_rank, K, FULL_C).to(DTYPE)
            h = _sum_of_splits(part, m, c, last, columns, rows, columns, SPLITS, DTYPE, FULL_C)
            acc = tl.dot(h, w, acc, input_precision=PRECISION)
        if HAS_BIAS:
            acc += b
        inside = (m < last)[:, None] & (f < features)[None, :]
        tl.store(y + m.to(tl.int64)[:, None] * features + f[None, :], acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _reduce_rows(
    part, big, out, sums, pid, rows, features, columns, from_column, to_column, big_stride,
    out_feature, out_term, out_rank,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SPLITS: tl.constexpr, HAS_SUMS: tl.constexpr,
    BR: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr, FULL_F: tl.constexpr,
):  # fmt: skip
    """out = bigᵀ @ part[:, from_column:to_column], laid out as terms; sums = big.sum(0)."""
    c_tiles = tl.cdiv(to_column - from_column, BC)
    c = (pid % c_tiles) * BC + tl.arange(0, BC)
    f = (pid // c_tiles) * BF + tl.arange(0, BF)
    f_read = f if FULL_F else tl.minimum(f, features - 1)
    in_columns = (from_column + c < to_column)[None, :]
    acc = tl.zeros((BF, BC), dtype=tl.float32)
    if HAS_SUMS:
        total = tl.zeros((BR, BF), dtype=tl.float32)
    for at in tl.range(0, rows, BR, num_stages=STAGES):
        n = at + tl.arange(0, BR)
        inside = (n < rows)[:, None]
        g = tl.load(big + n.to(tl.int64)[:, None] * big_stride + f_read[None, :], mask=inside, other=0.0)
        h = _sum_of_splits(part, n, from_column + c, rows, to_column, rows, columns, SPLITS, DTYPE, False)
        acc = tl.dot(tl.trans(g.to(DTYPE)), h, acc, input_precision=PRECISION)
        if HAS_SUMS:
            total += g.to(tl.float32)
    place = out + f[:, None] * out_feature + ((c // K) * out_term + (c % K) * out_rank)[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(f < features)[:, None] & in_columns)
    if HAS_SUMS:
        tl.store(sums + f, tl.sum(total, 0).to(sums.dtype.element_ty), mask=(f < features) & (pid % c_tiles == 0))


@triton.jit
def reduce_splits(part, H, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """H = the sum over the splits of part, size entries each."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(part + at, mask=inside, other=0.0)
    for s in tl.static_range(1, SPLITS):
        total += tl.load(part + at + s * size, mask=inside, other=0.0)
    tl.store(H + at, total.to(H.dtype.element_ty), mask=inside)


@triton.jit
def lay_out(
    A, B, bias, A_side, B_side, bias_cast, of_A, of_A_and_B, d_in, columns, d_out, scale,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A side by side, by the first programs, B by the next and the bias by the last; the fixed halves are scaled."""
    pid = tl.program_id(0)
    if pid < of_A:
        at = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < d_in * columns
        f = at // columns
        c = at % columns
        a = tl.load(A + (c // K * d_in + f) * K + c % K, mask=inside, other=0.0).to(tl.float32)
        a = tl.where(c < columns // 2, a, a * scale)
        tl.store(A_side + at, a.to(A_side.dtype.element_ty), mask=inside)
    elif pid < of_A_and_B:
        at = (pid - of_A).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < columns * d_out
        b = tl.load(B + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.where(at < columns // 2 * d_out, b * scale, b)
        tl.store(B_side + at, b.to(B_side.dtype.element_ty), mask=inside)
    else:
        at = (pid - of_A_and_B).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < d_out
        v = tl.load(bias + at, mask=inside, other=0.0)
        tl.store(bias_cast + at, v.to(bias_cast.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def forward_shrink(
    x, A, part, rows, d_in, columns, x_stride, A_feature, A_term, A_rank, split_size, scale,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr,
):  # fmt: skip
    """part = scale · x @ A."""
    _shrink(
        x, A, part, tl.program_id(0), rows, d_in, columns, x_stride, A_feature, A_term, A_rank, split_size, scale,
        K, DTYPE, PRECISION, BM, BF, BC, STAGES, FULL_F, FULL_C,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def forward_expand(
    part, B, bias, y, rows, d_out, columns, B_feature, B_term, B_rank, rows_each,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr, ONE_TILE: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """y = part @ B + bias."""
    _expand(
        part, B, bias, y, tl.program_id(0), rows, d_out, columns, B_feature, B_term, B_rank, rows_each,
        K, DTYPE, PRECISION, SPLITS, HAS_BIAS, BM, BF, BC, STAGES, FULL_F, FULL_C, ONE_TILE, STORE,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def backward_shrink(
    grad, B, part, H, dS2, dbias, shrinking, rows, d_out, columns, H_columns, g_stride, B_feature, B_term, B_rank,
    split_size, scale, S2_feature, S2_term, S2_rank,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, H_SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr,
    R_BR: tl.constexpr, R_BF: tl.constexpr, R_BC: tl.constexpr, R_STAGES: tl.constexpr, R_FULL_F: tl.constexpr,
):  # fmt: skip
    """part = scale · grad @ Bᵀ by the first programs; dS2 = H2ᵀ @ grad and dbias by the others."""
    pid = tl.program_id(0)
    if pid < shrinking:
        _shrink(
            grad, B, part, pid, rows, d_out, columns, g_stride, B_feature, B_term, B_rank, split_size, scale,
            K, DTYPE, PRECISION, BM, BF, BC, STAGES, FULL_F, FULL_C,
        )  # fmt: skip
    else:
        _reduce_rows(
            H, grad, dS2, dbias, pid - shrinking, rows, d_out, H_columns, H_columns // 2, H_columns, g_stride,
            S2_feature, S2_term, S2_rank, K, DTYPE, PRECISION, H_SPLITS, HAS_BIAS,
            R_BR, R_BF, R_BC, R_STAGES, R_FULL_F,
        )  # fmt: skip


@triton.jit(do_not_specialize=VARYING)
def backward_expand(
    part, A, dx, x, dS1, expanding, rows, d_in, columns, half, x_stride, A_feature, A_term, A_rank, rows_each,
    S1_feature, S1_term, S1_rank,
    K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
    FULL_F: tl.constexpr, FULL_C: tl.constexpr, ONE_TILE: tl.constexpr, STORE: tl.constexpr,
    R_BR: tl.constexpr, R_BF: tl.constexpr, R_BC: tl.constexpr, R_STAGES: tl.constexpr, R_FULL_F: tl.constexpr,
):  # fmt: skip
    """dx = part @ Aᵀ by the first programs; dS1 = xᵀ @ part's learnable half by the others."""
    pid = tl.program_id(0)
    if pid < expanding:
        _expand(
            part, A, dx, dx, pid, rows, d_in, columns, A_feature, A_term, A_rank, rows_each,
            K, DTYPE, PRECISION, SPLITS, False, BM, BF, BC, STAGES, FULL_F, FULL_C, ONE_TILE, STORE,
        )  # fmt: skip
    else:
        _reduce_rows(
            part, x, dS1, dS1, pid - expanding, rows, d_in, columns, 0, half, x_stride,
            S1_feature, S1_term, S1_rank, K, DTYPE, PRECISION, SPLITS, False,
            R_BR, R_BF, R_BC, R_STAGES, R_FULL_F,
        )  # fmt: skip
