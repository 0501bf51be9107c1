"""ProjectedAttention computes what nn.MultiheadAttention does, in every way that it can be called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from panther.nn.attention import ProjectedAttention

OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 12, "vdim": 20},
    {"kdim": 12, "batch_first": True, "bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
]
L, S, N, E, H = 5, 7, 3, 16, 4


def masks():
    padding = torch.zeros(N, S, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    a_head = torch.randn(N * H, L, S)
    return [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": torch.zeros(L, S).masked_fill(causal, -torch.inf), "is_causal": True},
        {"attn_mask": a_head},
        {"attn_mask": causal, "key_padding_mask": padding},
        {"attn_mask": a_head, "key_padding_mask": torch.zeros(N, S).masked_fill(padding, -torch.inf)},
    ]


def make(**options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(E, H, **options)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.3)
    return attention


def inputs(attention):
    random = torch.Generator().manual_seed(1)
    sizes = ((L, E), (S, attention.kdim), (S, attention.vdim))
    made = [torch.randn(length, N, width, generator=random) for length, width in sizes]
    return [x.transpose(0, 1) for x in made] if attention.batch_first else made


@pytest.mark.parametrize("ask", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("mask", range(7))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_weights_and_gradients(options, mask, ask):
    attention = make(**options)
    ours = ProjectedAttention(attention)
    masked = masks()[mask] | ask
    x = inputs(attention)
    theirs_x, ours_x = ([part.clone().requires_grad_() for part in x] for _ in range(2))
    expected, expected_weights = attention(*theirs_x, **masked)
    y, weights = ours(*ours_x, **masked)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights)
    theirs = torch.autograd.grad(expected.square().sum(), theirs_x)
    for a, b in zip(torch.autograd.grad(y.square().sum(), ours_x), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(*x, **masked)[0], attention.eval()(*x, **masked)[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch(batch_first):
    attention = make(batch_first=batch_first)
    ours = ProjectedAttention(attention)
    q, k = torch.randn(L, E), torch.randn(S, E)
    padding = torch.zeros(S).masked_fill(torch.arange(S) > 4, -torch.inf)
    for mask in (None, torch.randn(H, L, S)):
        found = ours(q, k, k, key_padding_mask=padding, attn_mask=mask)
        for a, b in zip(found, attention(q, k, k, key_padding_mask=padding, attn_mask=mask), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_falls_on_the_weights(need_weights):
    attention = make(dropout=0.5, batch_first=True)
    ours = ProjectedAttention(attention)
    x = inputs(attention)
    results = []
    for module in (attention, ours):
        torch.manual_seed(3)
        results.append(module(*x, need_weights=need_weights))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert not torch.allclose(ours(*x)[0], ours(*x)[0])
    torch.testing.assert_close(ours.eval()(*x)[0], attention.eval()(*x)[0])


def test_a_causal_hint_needs_its_mask():
    with pytest.raises(RuntimeError, match="is_causal is a hint about attn_mask"):
        ProjectedAttention(make())(*inputs(make()), is_causal=True)


def test_compiles_and_exports():
    ours = ProjectedAttention(make(batch_first=True)).eval()
    x = inputs(make(batch_first=True))
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*x)[0], ours(*x)[0])
    padding = masks()[1]["key_padding_mask"]
    batch = {0: torch.export.Dim("batch")}
    shapes = (batch,) * 4
    program = torch.export.export(ours, (*x, padding), dynamic_shapes=shapes)
    two = [part[:2] for part in (*x, padding)]
    torch.testing.assert_close(program.module()(*two)[0], ours(*two)[0])
    torch.compiler.reset()


def test_memory_of_its_own():
    attention = make(batch_first=True)
    ours = ProjectedAttention(attention)
    assert ours.q_proj.weight.data_ptr() == attention.in_proj_weight.data_ptr()
    ours.own_memory()
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        attention.in_proj_weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
