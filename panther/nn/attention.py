"""Multi-head attention whose four projections are separate layers, so that each can be sketched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from panther.nn.hooks import take_hooks

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class ProjectedAttention(nn.Module):
    """nn.MultiheadAttention with layers ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    nn.MultiheadAttention reads the weights of its projections as tensors, the first three often packed into one; here
    each projection is called. Arguments, masks, dropout and what is returned are the same; the softmax is exact.

    Args:
        attention: source of projections, options, hooks and mode. Its packed weights are read through views.
    """

    # nn.TransformerEncoderLayer reads it, and skips its fused kernel if there is no packed bias
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.kdim, self.vdim = attention.kdim, attention.vdim
        self.batch_first, self.dropout, self.add_zero_attn = (
            attention.batch_first,
            attention.dropout,
            attention.add_zero_attn,
        )
        widths = (self.embed_dim, self.kdim, self.vdim)
        weights, biases = _projections(attention)
        for name, width, weight, bias in zip(PROJECTIONS, widths, weights, biases, strict=False):
            layer = nn.Linear(width, self.embed_dim, bias=bias is not None, device="meta")
            layer.weight = weight
            if bias is not None:
                layer.bias = bias
            self.add_module(name, layer.train(attention.training))
        self.out_proj = attention.out_proj
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        take_hooks(self, attention)
        self.training = attention.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as nn.MultiheadAttention does.

        Args:
            query, key, value: (L, N, E), (S, N, kdim) and (S, N, vdim); N first where batch_first; or without N.
            key_padding_mask: (N, S), True (or -inf) for keys that don't count.
            need_weights: whether to return the weights of the attention.
            attn_mask: (L, S) or (N·heads, L, S), True where there is no attention, or added to the scores.
            average_attn_weights: whether their mean over heads is returned.
            is_causal: says that attn_mask is causal.

        Returns:
            The output, shaped as query, and the weights (N, L, S) or (N, heads, L, S), or None.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which must be given with it")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        # as in torch: without other masks and weights to return, the hint replaces the mask, added keys included
        by_hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if by_hint else self._mask(q, k, key_padding_mask, attn_mask)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = nn.functional.pad(k, (0, 0, 0, 1)), nn.functional.pad(v, (0, 0, 0, 1))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q / math.sqrt(self.head_dim) @ k.transpose(-1, -2)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = nn.functional.dropout(weights, p) if p > 0 else weights
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            heads = nn.functional.scaled_dot_product_attention(q, k, v, mask, p, is_causal=by_hint)
        y: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        y = y if self.batch_first else y.transpose(0, 1)
        return (y if batched else y.squeeze(0 if self.batch_first else 1)), weights

    def own_memory(self) -> None:
        """Give separate memory to projections that are views into a packed weight."""
        for name in PROJECTIONS[:3]:
            layer = getattr(self, name)
            for kind in ("weight", "bias") if isinstance(layer, nn.Linear) else ():
                old = getattr(layer, kind)
                if old is not None and old.untyped_storage().nbytes() > old.nbytes:
                    setattr(layer, kind, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, attention: Tensor | None) -> Tensor | None:
        """Values to add to the scores, (N or 1, heads or 1, L or 1, S), including added keys; None for none."""
        mask = None
        if attention is not None:
            mask = _added(attention, q.dtype)
            mask = mask.view(1, 1, *mask.shape) if mask.dim() == 2 else mask.view(-1, self.num_heads, *mask.shape[1:])
        if padding is not None:
            hidden = _added(padding, q.dtype).view(k.shape[0], 1, 1, k.shape[1])
            mask = hidden if mask is None else mask + hidden
        more = int(self.bias_k is not None) + int(self.add_zero_attn)
        return mask if mask is None or not more else nn.functional.pad(mask, (0, more))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as values to add to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _projections(attention: nn.MultiheadAttention) -> tuple[list[nn.Parameter], list[nn.Parameter | None]]:
    """The weights and biases of the first three projections; views of what is packed."""
    packed: nn.Parameter | None = attention._parameters["in_proj_weight"]
    bias: nn.Parameter | None = attention._parameters["in_proj_bias"]
    if packed is None:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        weights = [nn.Parameter(part, requires_grad=packed.requires_grad) for part in packed.detach().chunk(3)]
    if bias is None:
        return weights, [None, None, None]
    return weights, [nn.Parameter(part, requires_grad=bias.requires_grad) for part in bias.detach().chunk(3)]
