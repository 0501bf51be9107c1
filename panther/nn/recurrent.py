"""Recurrent layers whose input weights are separate layers, so that each can be sketched.

See docs/decisions/0080-input-weights-of-recurrent-layers.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from panther.nn.hooks import take_hooks
from panther.nn.linear import SKLinear

_KERNELS = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}
_GATES = {"LSTM": 4, "GRU": 3}
State = Tensor | tuple[Tensor, ...]


class ProjectedRNN(nn.Module):
    """A recurrent layer like nn.LSTM, nn.GRU or nn.RNN, with layers ``input_l0``, ``input_l1`` … for the input weights.

    Such a layer maps the input of a layer of the network to all gates of its directions, bias included. Where it is
    sketched, its first factor is one product over all steps, and torch's own kernel takes the second one as the input
    weight. The weights of the state stay as they are.

    Args:
        rnn: whose weights, options, hooks and mode are taken over; without a projection (proj_size).
    """

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = rnn.mode, rnn.input_size, rnn.hidden_size
        self.num_layers, self.bias, self.batch_first = rnn.num_layers, rnn.bias, rnn.batch_first
        self.dropout, self.bidirectional, self.proj_size = rnn.dropout, rnn.bidirectional, 0
        for layer in range(self.num_layers):
            suffixes = self.suffixes(layer)
            self.add_module(f"input_l{layer}", _input_layer(rnn, suffixes))
            for suffix in suffixes:
                self.register_parameter(f"weight_hh_{suffix}", rnn._parameters[f"weight_hh_{suffix}"])
                self.register_parameter(f"bias_hh_{suffix}", rnn._parameters.get(f"bias_hh_{suffix}"))
        take_hooks(self, rnn)
        self.train(rnn.training)

    def suffixes(self, layer: int) -> list[str]:
        """Torch's suffix of a layer's weights, for each direction."""
        return [f"l{layer}", *([f"l{layer}_reverse"] if self.bidirectional else [])]

    def flatten_parameters(self) -> None:
        """Do nothing, for models that call this method of nn.RNNBase."""

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002  torch's name, which callers may use
        hx: State | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run over a sequence, as the layer that is replaced.

        Args:
            input: (T, N, d_in), (N, T, d_in) where batch_first, (T, d_in), or a packed sequence.
            hx: the first states, as of nn.LSTM, nn.GRU and nn.RNN.

        Returns:
            The outputs, shaped as the input, and the last states.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if self.batch_first else 1)
        starts = self._starts(hx, x, x.shape[0 if self.batch_first else 1], batched=batched)
        x, ends = self._run(x, starts, None)
        if not batched:
            x, ends = x.squeeze(0 if self.batch_first else 1), [end.squeeze(1) for end in ends]
        return x, self._ended(ends)

    def _packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        starts = self._starts(hx, packed.data, int(packed.batch_sizes[0]), batched=True)
        if packed.sorted_indices is not None:
            starts = [start.index_select(1, packed.sorted_indices) for start in starts]
        x, ends = self._run(packed.data, starts, packed.batch_sizes)
        if packed.unsorted_indices is not None:
            ends = [end.index_select(1, packed.unsorted_indices) for end in ends]
        made = PackedSequence(x, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return made, self._ended(ends)

    def _starts(self, hx: State | None, x: Tensor, batch: int, *, batched: bool) -> list[Tensor]:
        """The first states, (layers · directions, N, d_hidden) each."""
        if hx is None:
            shape = (self.num_layers * (1 + self.bidirectional), batch, self.hidden_size)
            return [x.new_zeros(shape)] * (2 if self.mode == "LSTM" else 1)
        given = list(hx) if isinstance(hx, tuple | list) else [hx]
        return given if batched else [start.unsqueeze(1) for start in given]

    def _ended(self, ends: Sequence[Tensor]) -> State:
        return tuple(ends) if self.mode == "LSTM" else ends[0]

    def _run(self, x: Tensor, starts: Sequence[Tensor], batch_sizes: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """All layers, over (T, N, d_in), (N, T, d_in) or the rows of a packed sequence."""
        directions, kernel = 1 + self.bidirectional, _KERNELS[self.mode]
        finals: list[Sequence[Tensor]] = []
        for layer in range(self.num_layers):
            rows = slice(layer * directions, (layer + 1) * directions)
            states = [start[rows].contiguous() for start in starts]
            given: Any = tuple(states) if self.mode == "LSTM" else states[0]
            x, flat = self._weights(layer, x)
            # one layer, without dropout inside
            options = (len(flat) > 2 * directions, 1, 0.0, self.training, self.bidirectional)
            if batch_sizes is None:
                x, *last = kernel(x, given, flat, *options, self.batch_first)  # type: ignore[operator]
            else:
                x, *last = kernel(x, batch_sizes, given, flat, *options)  # type: ignore[operator]
            finals.append(last)
            if self.dropout and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, [torch.cat(parts) for parts in zip(*finals, strict=True)]

    def _weights(self, layer: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The inputs of the kernel and its weights, direction by direction."""
        into: Any = self.get_submodule(f"input_l{layer}")
        directions = 1 + self.bidirectional
        bias = into.bias if self.bias else None
        if isinstance(into, SKLinear):
            A, B = into.factors()
            x, W = x @ A, B.t() / (2 * into.num_terms)
        elif type(into) is nn.Linear and not into._forward_hooks and not into._forward_pre_hooks:
            W = into.weight
        else:
            # called as a module, so that its hooks run
            x = into(x)
            W = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            bias = torch.zeros_like(W[0]) if self.bias else None
        flat: list[Tensor] = []
        inputs, biases = W.chunk(directions), [None] * directions if bias is None else bias.chunk(directions)
        for suffix, of_input, of_bias in zip(self.suffixes(layer), inputs, biases, strict=True):
            flat += [of_input, getattr(self, f"weight_hh_{suffix}")]
            if of_bias is not None:
                flat += [of_bias, getattr(self, f"bias_hh_{suffix}")]
        return x, flat

    def own_memory(self) -> None:
        """Give separate memory to layers that are views into larger memory, as of cuDNN."""
        for layer in self.children():
            for kind in ("weight", "bias") if isinstance(layer, nn.Linear) else ():
                old = getattr(layer, kind)
                if old is not None and old.untyped_storage().nbytes() > old.nbytes:
                    setattr(layer, kind, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))


def _input_layer(rnn: nn.RNNBase, suffixes: Sequence[str]) -> nn.Linear:
    """The input weights and biases of a layer, those of both directions in one."""

    def joint(name: str) -> nn.Parameter:
        found = [rnn.get_parameter(f"{name}_{suffix}") for suffix in suffixes]
        if len(found) == 1:
            return found[0]
        return nn.Parameter(torch.cat([each.detach() for each in found]), requires_grad=found[0].requires_grad)

    weight = joint("weight_ih")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=rnn.bias, device="meta")
    layer.weight = weight
    if rnn.bias:
        layer.bias = joint("bias_ih")
    return layer
