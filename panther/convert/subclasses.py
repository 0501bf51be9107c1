"""Check that a subclass of nn.Linear that overrides forward still computes the linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

_ATEN = torch.ops.aten
_TRANSPOSES = (_ATEN.t.default, _ATEN.numpy_T.default, _ATEN.mT.default)
_PRODUCTS = (
    ((_ATEN.matmul.default, _ATEN.mm.default), [["x", "Wᵀ"]], "xW"),
    ((_ATEN.linear.default,), [["x", "W"], ["x", "W", None]], "xW"),
    ((_ATEN.linear.default,), [["x", "W", "b"]], "xW+b"),
    ((_ATEN.addmm.default,), [["b", "x", "Wᵀ"]], "xW+b"),
    ((_ATEN.add.Tensor,), [["xW", "b"], ["b", "xW"]], "xW+b"),
)
_SAME = (_ATEN.detach.default, _ATEN.alias.default, _ATEN.contiguous.default)


def computes_linear(module: nn.Linear) -> bool:
    """Trace the module's forward over rows and over sequences, and compare its operations with x Wᵀ + b.

    Nothing is computed: the tensors are fake. Anything else in forward, such as a scale, a cast or a branch on values,
    makes it False.
    """
    return all(_is_linear(module, shape, training) for shape in ((3,), (2, 3)) for training in (False, True))


def _is_linear(module: nn.Linear, batch: tuple[int, ...], training: bool) -> bool:
    weight, bias = module.weight, module.bias

    def call(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        parameters = {"weight": W} if b is None else {"weight": W, "bias": b}
        result: Tensor = functional_call(module, parameters, (x,))
        return result

    was_training = module.training
    module.training = training
    try:
        example = torch.empty(*batch, module.in_features, dtype=weight.dtype, device=weight.device)
        traced = make_fx(call, tracing_mode="fake", pre_dispatch=True)(example, weight, bias)
    except Exception:  # noqa: BLE001  what can't be traced is not shown to be linear
        return False
    finally:
        module.training = was_training
    names = iter(("x", "W", "b"))
    known: dict[object, str | None] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(names)
        elif node.op == "output":
            return known.get(node.args[0]) == ("xW" if bias is None else "xW+b")
        else:
            known[node] = _meaning(node, [known.get(entry) if isinstance(entry, Node) else None for entry in node.args])
    return False


def _meaning(node: Node, given: list[str | None]) -> str | None:
    """The result of an operation in terms of x, W and b; None for anything else."""
    if node.kwargs:
        return None
    if node.target in _SAME:
        return given[0]
    swaps_axes = node.target == _ATEN.transpose.int and set(node.args[1:]) in ({0, 1}, {-2, -1})
    if node.target in _TRANSPOSES or swaps_axes:
        return "Wᵀ" if given[0] == "W" else None
    for targets, arguments, meaning in _PRODUCTS:
        if node.target in targets and given in arguments:
            return meaning
    return None
