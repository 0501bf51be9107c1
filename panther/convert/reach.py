"""Parameters outside the eligible layers, with the reason for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from panther.convert.convolutions import is_convolution
from panther.convert.embeddings import Kinds, is_embedding
from panther.convert.layers import Unit, is_conv1d
from panther.convert.report import Unreached
from panther.nn.embedding import LowRankTable
from panther.nn.quantized import Int4Kernel, Int8Embedding, Int8Kernel, Int8Linear
from panther.nn.recurrent import ProjectedRNN

_UNSKETCHED_CONVOLUTION = "a transposed or three-dimensional convolution, which has no sketched form"
_FUSED = "a recurrent layer: its kernel reads all weights; sketch_ opens nn.LSTM, nn.GRU and nn.RNN without proj_size"
_RECURRENT = (
    "state weights of a recurrent layer: its kernel reads them whole at every step; "
    "a smaller hidden_size makes them smaller"
)
_REASONS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), "a table that is looked up, not multiplied; embeddings=True converts it"),
    (
        nn.MultiheadAttention,
        "a subclass, shared, or in a transformers model: it reads its packed in_proj_weight as a tensor",
    ),
    (ProjectedRNN, _RECURRENT),
    ((nn.RNNBase, nn.RNNCellBase), _FUSED),
)
_LAZY = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def unreached(
    model: nn.Module, units: Sequence[Unit], *, convolutions: bool, embeddings: Kinds = ()
) -> tuple[Unreached, ...]:
    """Group the parameters outside the eligible layers by kind of module, the largest group first.

    Each parameter counts once, under the first module that holds it.

    Args:
        model: the whole.
        units: the eligible layers.
        convolutions: they are eligible too, unless the caller leaves them out.
        embeddings: the same of them.
    """
    seen = {id(tensor) for unit in units for place in unit.places for tensor in place.module.parameters()}
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    whole = sum(parameter.numel() for parameter in model.parameters() if not isinstance(parameter, _LAZY))
    in_play = {id(place.module) for unit in units for place in unit.places}
    for name, module in model.named_modules():
        held: list[Tensor] = []
        for tensor in (*module._parameters.values(), *_fixed_terms(module)):
            if tensor is not None and id(tensor) not in seen and not isinstance(tensor, _LAZY):
                seen.add(id(tensor))
                held.append(tensor)
        count = sum(tensor.numel() for tensor in held)
        quantized = quantized_kind(module)
        if id(module) not in in_play and (count or quantized is not None):
            reason = _why(module, convolutions=convolutions, embeddings=embeddings)
            groups.setdefault((_kind(module), reason), []).append((name or "the model", count))
    found = [
        Unreached(
            kind, tuple(name for name, _ in members), total := sum(n for _, n in members), total / max(whole, 1), reason
        )
        for (kind, reason), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -group.parameters))


def quantized_kind(module: nn.Module) -> str | None:
    """Storage type of a weight that `panther.quantize_` or torch.ao has quantized; None for others."""
    if isinstance(module, Int8Linear | Int8Embedding | Int8Kernel):
        return "int8"
    if isinstance(module, Int4Kernel):
        return "int4"
    package = type(module).__module__
    if package.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")) and hasattr(module, "weight"):
        weight = module.weight() if callable(module.weight) else module.weight
        return str(getattr(weight, "dtype", "integers")).removeprefix("torch.")
    return None


def blocking(units: Iterable[Unit]) -> str:
    """The layers that stay dense whatever the budget, the largest first, each with its reason."""
    kept = sorted((unit for unit in units if unit.reason is not None), key=lambda unit: -unit.dense_parameters)
    if not kept:
        return ""
    most = 6
    named = [f"{unit.name} ({unit.dense_parameters:,} parameters): {unit.reason}" for unit in kept[:most]]
    more = [f"and {len(kept) - most} more"] if len(kept) > most else []
    return "; these stay dense: " + "; ".join([*named, *more])


def _kind(module: nn.Module) -> str:
    """The class of a module, even while it is opened."""
    return module.mode.partition("_")[0] if isinstance(module, ProjectedRNN) else type(module).__name__


def _fixed_terms(module: nn.Module) -> list[Tensor | None]:
    return [module._buffers[name] for name in ("U1s", "U2s") if name in module._buffers]


def _why(module: nn.Module, *, convolutions: bool, embeddings: Kinds) -> str:  # noqa: PLR0911  one return for each reason
    quantized = quantized_kind(module)
    if quantized is not None:
        return f"quantized ({quantized}), left unchanged"
    others = (convolutions and is_convolution(module)) or is_embedding(module, embeddings)
    if isinstance(module, nn.Linear) or is_conv1d(module) or others:
        return "left out by skip or filter_fn"
    if {"U1s", "U2s"} <= module._buffers.keys() or isinstance(module, LowRankTable):
        return "sketched already"
    for kinds, reason in _REASONS:
        if isinstance(module, kinds):
            return reason
    if isinstance(module, nn.modules.conv._ConvNd):
        return _UNSKETCHED_CONVOLUTION if convolutions else "a convolution"
    if "Norm" in type(module).__name__:
        return "a normalization"
    if any(parameter is not None and parameter.dim() == 3 for parameter in module._parameters.values()):
        return (
            "weights of several matrices in one tensor, such as experts, in a module that can't be opened "
            "(docs/conversion.md says which can); nn.Linear layers in an nn.ModuleList are eligible"
        )
    return "not an nn.Linear"
