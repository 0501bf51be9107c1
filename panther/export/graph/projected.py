"""Recurrent layers with sketched input weights in a graph: a product by the first factor, then the operator.

See docs/decisions/0080-input-weights-of-recurrent-layers.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.nn.recurrent import ProjectedRNN

_KINDS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


class FactoredRNN(nn.Module):
    """A `ProjectedRNN` in evaluation, built of layers that an export knows.

    Args:
        projected: whose weights are copied, sketched ones as two factors.
    """

    def __init__(self, projected: ProjectedRNN) -> None:
        super().__init__()
        # code of the model may read its options
        self.__dict__.update({key: value for key, value in projected.__dict__.items() if not key.startswith("_")})
        self._states = 2 if projected.mode == "LSTM" else 1
        self._directions = 1 + projected.bidirectional
        self.down, self.layers = nn.ModuleList(), nn.ModuleList()
        for layer in range(projected.num_layers):
            down, rnn = _layer(projected, layer)
            self.down.append(down)
            self.layers.append(rnn)
        take_hooks(self, projected)
        self.train(projected.training)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:  # noqa: A002  torch's name
        """Run it like `ProjectedRNN.forward`, without packed sequences, which a graph can't hold."""
        x, ends = input, list[Any]()
        for layer, (down, rnn) in enumerate(zip(self.down, self.layers, strict=True)):
            rows = slice(layer * self._directions, (layer + 1) * self._directions)
            start = None
            if hx is not None:
                start = tuple(part[rows] for part in hx) if self._states == 2 else hx[rows]
            x, end = rnn(down(x) if isinstance(x, Tensor) else x, start)
            ends.append(end)
        if self._states == 1:
            return x, torch.cat(ends)
        return x, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))


def lower_recurrent(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Replace every `ProjectedRNN` by a `FactoredRNN`, in place.

    Returns:
        The model, and notes for the export report.
    """
    made: dict[int, FactoredRNN] = {}
    notes: list[str] = []
    for name, module in list(model.named_modules()):
        if isinstance(module, ProjectedRNN):
            made[id(module)] = FactoredRNN(module)
            children = [(key, layer) for key, layer in module.named_children() if isinstance(layer, SKLinear)]
            if children:
                ranks = ", ".join(f"{key} {2 * layer.num_terms * layer.low_rank}" for key, layer in children)
                notes.append(
                    f"{name or type(module).__name__}: input weights of low rank ({ranks}), as a product before the "
                    "operator; counted among the parameters of the model, not as sketched layers"
                )
    if isinstance(model, ProjectedRNN):
        return made[id(model)], tuple(notes)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in made:
                parent._modules[name] = made[id(child)]
    return model, tuple(notes)


@torch.no_grad()
def _layer(projected: ProjectedRNN, layer: int) -> tuple[nn.Module, nn.RNNBase]:
    """The product by the first factor (nn.Identity for a dense input weight), and one recurrent layer of torch."""
    into: Any = projected.get_submodule(f"input_l{layer}")
    down: nn.Module = nn.Identity()
    W: Tensor = into.weight
    if isinstance(into, SKLinear):
        A, B = into.factors()
        W = B.t() / (2 * into.num_terms)
        down = nn.Linear(A.shape[0], A.shape[1], bias=False, dtype=A.dtype, device=A.device)
        down.weight.copy_(A.t())
    options: dict[str, Any] = {"nonlinearity": projected.mode[4:].lower()} if projected.mode.startswith("RNN") else {}
    rnn = _KINDS[projected.mode](
        W.shape[1],
        projected.hidden_size,
        bias=projected.bias,
        batch_first=projected.batch_first,
        bidirectional=projected.bidirectional,
        dtype=W.dtype,
        device=W.device,
        **options,
    )
    suffixes = projected.suffixes(layer)
    biases = into.bias.chunk(len(suffixes)) if projected.bias else [None] * len(suffixes)
    for suffix, of_input, of_bias in zip(suffixes, W.chunk(len(suffixes)), biases, strict=True):
        end = suffix.removeprefix(f"l{layer}")
        rnn.get_parameter(f"weight_ih_l0{end}").copy_(of_input)
        rnn.get_parameter(f"weight_hh_l0{end}").copy_(projected.get_parameter(f"weight_hh_{suffix}"))
        if of_bias is not None:
            rnn.get_parameter(f"bias_ih_l0{end}").copy_(of_bias)
            rnn.get_parameter(f"bias_hh_l0{end}").copy_(projected.get_parameter(f"bias_hh_{suffix}"))
    return down, rnn
