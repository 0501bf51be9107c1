"""torch's recurrent layers as the LSTM, GRU and RNN of ONNX, so that the number of steps can vary.

While torch traces one of them, it unrolls the steps of the example and fixes their number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from panther.export.errors import ExportError

# torch's gates as indices in ONNX order: LSTM i o f c, GRU z r h
_GATES: dict[type[nn.RNNBase], tuple[str, tuple[int, ...]]] = {
    nn.LSTM: ("LSTM", (0, 3, 1, 2)),
    nn.GRU: ("GRU", (1, 0, 2)),
    nn.RNN: ("RNN", (0,)),
}


def make_traceable(model: nn.Module) -> None:
    """Make recurrent layers trace to one ONNX node a layer; changes the model in place.

    Layers stay unchanged if they have a custom forward, or weights that are computed from others (parametrizations).
    """
    for module in model.modules():
        kind = next((kind for kind in _GATES if type(module).forward is kind.forward), None)
        if kind is None or not isinstance(module, nn.RNNBase) or "forward" in module.__dict__:
            continue
        parameters = {id(parameter) for parameter in module._parameters.values()}
        computed = parametrize.is_parametrized(module) or any(id(w) not in parameters for w in module._flat_weights)
        if computed:
            continue
        object.__setattr__(module, "forward", functools.partial(_forward, module, kind))


def refuse_what_onnx_lacks(name: str, module: nn.Module, arguments: Sequence[Any]) -> None:
    """Raise ExportError where a recurrent layer has a projection, or is called with a packed sequence."""
    if not isinstance(module, nn.RNNBase):
        return
    if module.proj_size:
        raise ExportError(
            f"layer {name!r} ({type(module).__name__}) has proj_size={module.proj_size}, for which ONNX has no "
            "operator; train it with proj_size=0 and an nn.Linear behind it"
        )
    if any(isinstance(argument, PackedSequence) for argument in arguments):
        raise ExportError(
            f"layer {name!r} ({type(module).__name__}) is called with a packed sequence, whose sizes depend on the "
            "lengths; a graph can't hold that: call it with the padded tensor, and take the steps that count from its "
            "output, by torch.gather at lengths - 1 or by a mask (a bidirectional layer then reads the padding too)"
        )


def _forward(
    module: nn.RNNBase,
    kind: type[nn.RNNBase],
    input: Tensor,  # noqa: A002  torch's name, which callers may use
    hx: Any = None,
) -> tuple[Tensor, Any]:
    op, gates = _GATES[kind]
    directions = 2 if module.bidirectional else 1
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(0 if module.batch_first else 1)
    x = x.transpose(0, 1) if module.batch_first else x
    starts = None if hx is None else tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    if starts is not None and not batched:
        starts = tuple(start.unsqueeze(1) for start in starts)
    finals: list[Sequence[Tensor]] = []
    for layer in range(module.num_layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        start = [None] * (2 if op == "LSTM" else 1) if starts is None else [part[rows] for part in starts]
        x, *final = _layer(module, op, gates, layer, x, start)
        finals.append(final)
    ends = [torch.cat(parts) for parts in zip(*finals, strict=True)]
    out = x.transpose(0, 1) if module.batch_first else x
    if not batched:
        out, ends = out.squeeze(0 if module.batch_first else 1), [end.squeeze(1) for end in ends]
    return out, tuple(ends) if op == "LSTM" else ends[0]


def _layer(
    module: nn.RNNBase, op: str, gates: tuple[int, ...], layer: int, x: Tensor, start: Sequence[Tensor | None]
) -> list[Tensor]:
    """One layer over x of (steps, batch, features): its output in the same order, and the last state of each kind."""
    suffixes = [f"l{layer}", *([f"l{layer}_reverse"] if module.bidirectional else [])]

    def gathered(name: str) -> Tensor:
        weights = [getattr(module, f"{name}_{suffix}") for suffix in suffixes]
        size = module.hidden_size
        return torch.stack([torch.cat([w[gate * size : (gate + 1) * size] for gate in gates]) for w in weights])

    biases = torch.cat([gathered("bias_ih"), gathered("bias_hh")], dim=1) if module.bias else None
    attributes: dict[str, Any] = {
        "hidden_size": module.hidden_size,
        "direction": "bidirectional" if module.bidirectional else "forward",
    }
    if op == "GRU":
        # torch applies the reset gate after the product with the state
        attributes["linear_before_reset"] = 1
    if op == "RNN":
        attributes["activations"] = [str(module.nonlinearity).capitalize()] * len(suffixes)
    steps, batch = x.shape[0], x.shape[1]
    state = (len(suffixes), batch, module.hidden_size)
    symbolic: Callable[..., Sequence[Tensor]] = torch.onnx.ops.symbolic_multi_out
    every, *last = symbolic(
        op,
        (x, gathered("weight_ih"), gathered("weight_hh"), biases, None, *start),
        attrs=attributes,
        dtypes=[x.dtype] * (1 + len(start)),
        shapes=[(steps, len(suffixes), batch, module.hidden_size), *[state] * len(start)],
    )
    # (steps, directions, batch, hidden) → (steps, batch, directions · hidden)
    return [every.transpose(1, 2).flatten(2), *last]
