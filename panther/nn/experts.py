"""Mixtures of experts whose matrices are separate layers, so that each expert can be sketched.

See docs/decisions/0079-experts-as-layers.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from panther.nn.hooks import take_hooks

# method of transformers' experts that combines gate and values
_GATE = "_apply_gate"
# names of the layer lists, by the name of the weight that they are cut from
LISTS = {"gate_up_proj": "gate_up", "up_proj": "up", "down_proj": "down"}
EVERY_LIST = (*LISTS.values(), "gate")


class OpenedExperts(nn.Module):
    """Experts whose weights were packed into tensors (E, d_out, d_in), with a layer for each matrix.

    The lists are ``gate_up`` (``up`` for experts without a gate) and ``down``. Activations, options and the combination
    of gate and values are those of the replaced module.

    Args:
        experts: the replaced module, source of weights, options, hooks and mode. Its weights are read through views.
        transposed: whether the weights are packed as (E, d_in, d_out).
    """

    down: nn.ModuleList

    def __init__(self, experts: nn.Module, *, transposed: bool) -> None:
        super().__init__()
        # code of the model may read its options
        self.__dict__.update({key: value for key, value in experts.__dict__.items() if not key.startswith("_")})
        for name, child in experts._modules.items():
            self.add_module(name, child)
        for name, list_name in LISTS.items():
            weight, bias = experts._parameters.get(name), experts._parameters.get(f"{name}_bias")
            if weight is not None:
                self.add_module(list_name, _layers(weight, bias, transposed=transposed))
        gate: Callable[[Any, Tensor], Tensor] | None = getattr(type(experts), _GATE, None)
        self._gate = gate
        take_hooks(self, experts)
        self.train(experts.training)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """One expert's outputs for rows, (n, d_model) → (n, d_model)."""
        if "gate_up" not in self._modules:
            return self.down[index](self.act_fn(self.up[index](x)))  # type: ignore[operator,index,no-any-return]
        both: Tensor = self.gate_up[index](x)  # type: ignore[operator,index]
        if self._gate is not None:
            return self.down[index](self._gate(self, both))  # type: ignore[no-any-return]
        gate, up = both.chunk(2, dim=-1)
        return self.down[index](self.act_fn(gate) * up)  # type: ignore[operator,no-any-return]

    def layers(self, name: str) -> list[nn.Module]:
        """The layers of a list, ``gate_up``, ``up`` or ``down``; empty if there is no such list."""
        return list(self._modules[name].children()) if name in self._modules else []  # type: ignore[union-attr]

    def own_memory(self) -> None:
        """Give layers that are views into packed weights separate memory."""
        for layer in self.modules():
            for kind in ("weight", "bias") if isinstance(layer, nn.Linear) else ():
                old = getattr(layer, kind)
                if old is not None and old.untyped_storage().nbytes() > old.nbytes:
                    setattr(layer, kind, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))


class RoutedExperts(OpenedExperts):
    """Experts that are called with the rows and the experts of each row."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Add up the outputs of each row's experts.

        Args:
            hidden_states: (n, d_model).
            top_k_index: (n, k), the experts of each row; an index without an expert is ignored.
            top_k_weights: (n, k), the weights of these experts.

        Returns:
            (n, d_model).
        """
        experts = torch.arange(len(self.down), device=top_k_index.device)
        hits = top_k_index.unsqueeze(-1) == experts
        chosen, shares = hits.any(1), (top_k_weights.unsqueeze(-1) * hits).sum(1)
        y = torch.zeros_like(hidden_states)
        # a graph holds every expert
        fixed = torch.compiler.is_compiling()
        for index in range(len(self.down)):
            rows = chosen[:, index].nonzero().squeeze(-1)
            if fixed or len(rows):
                share = shares[rows, index].unsqueeze(-1)
                y = y.index_add(0, rows, (self.expert(index, hidden_states[rows]) * share).to(y.dtype))
        return y


class GatedExperts(RoutedExperts):
    """Experts of DBRX: three tensors with two axes, each (E·d_ff, d_model), in a submodule.

    Args:
        experts: module with a submodule ``mlp`` with the weights ``w1`` (gates), ``v1`` and ``w2``; it is not changed.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__(experts, transposed=False)
        packed = experts.get_submodule("mlp")
        del self._modules["mlp"]
        count = int(experts.num_experts)  # type: ignore[arg-type]
        for name, list_name in (("w1", "gate"), ("v1", "up"), ("w2", "down")):
            weight = packed.get_parameter(name)
            by_expert = weight.view(count, -1, weight.shape[1])
            self.add_module(list_name, _layers(by_expert, None, transposed=name == "w2"))
        self.act_fn = packed.activation_fn

    def expert(self, index: int, x: Tensor) -> Tensor:
        """One expert's outputs for rows, (n, d_model) → (n, d_model)."""
        gate, up = self.gate[index](x), self.up[index](x)  # type: ignore[operator,index]
        return self.down[index](self.act_fn(gate) * up)  # type: ignore[operator,no-any-return]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Add up the outputs of each row's experts; (batch, length, d_model), or (n, d_model), → three axes."""
        width = hidden_states.shape[-1]
        y = super().forward(hidden_states.reshape(-1, width), top_k_index, top_k_weights)
        return y.view(hidden_states.shape[0], -1, width)


class StackedExperts(OpenedExperts):
    """Experts with equal numbers of rows, sorted by expert."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (E·n, d_model) to the same shape; each expert takes n rows."""
        parts = hidden_states.view(len(self.down), -1, hidden_states.shape[-1]).unbind(0)
        return torch.cat([self.expert(index, part) for index, part in enumerate(parts)])


def _layers(weight: Tensor, bias: nn.Parameter | None, *, transposed: bool) -> nn.ModuleList:
    """A layer for each expert, with views of the packed weights."""
    made = nn.ModuleList()
    for index, packed in enumerate(weight.detach().unbind(0)):
        W = packed.t() if transposed else packed
        layer = nn.Linear(W.shape[1], W.shape[0], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(W, requires_grad=weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[index], requires_grad=bias.requires_grad)
        made.append(layer)
    return made
