"""Which layers of a model can be converted, and why the others can't."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from panther.convert.convolutions import (
    Convolution,
    is_convolution,
    patch_entries,
    reason_not_factored,
    reason_of_convolution,
)
from panther.convert.embeddings import Kinds, is_embedding, reason_of_embedding
from panther.convert.subclasses import computes_linear
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks
from panther.nn.sketched_conv import SketchedConv

Filter = Callable[[nn.Module, str], bool]


@dataclass
class Place:
    """A module that holds a weight, and its place in the model.

    Attributes:
        module: an nn.Linear, a Conv1D of transformers, a convolution or an embedding.
        names: its dotted names; more than one if the model holds it several times.
    """

    module: nn.Module
    names: list[str]


@dataclass
class Unit:
    """A weight that can be converted, with every module that holds it.

    Attributes:
        places: the modules; several if they share (tie) the weight. Heads come after their embedding.
        reason: why it stays dense; None if it is to be converted.
        bias_is_shared: whether a module outside this unit also has the bias, so the bias must not change.
        pooled: whether its moments are shrunk towards those of other units, as for experts.
    """

    places: list[Place]
    reason: str | None = None
    bias_is_shared: bool = False
    pooled: bool = False
    transposed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.transposed = _is_transposed(self.places[0].module)

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.places[0].names[0]

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features), also of a Conv1D and, as a layer on one-hot rows, of an embedding.

        Of a convolution it is (out_channels, entries of a patch).
        """
        weight = weight_of(self.places[0].module).detach()
        if self.convolution is not None:
            return weight.flatten(1)
        return weight.t() if self.transposed else weight

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return weight_of(self.places[0].module).device

    @property
    def convolution(self) -> Convolution | None:
        """The module if it is a convolution."""
        module = self.places[0].module
        return module if is_convolution(module) else None

    @property
    def heads(self) -> list[nn.Linear]:
        """The linear layers among its places that share the weight of an embedding."""
        every = [place.module for place in self.places] if is_embedding(self.places[0].module) else []
        return [module for module in every if isinstance(module, nn.Linear)]

    @property
    def takes_moments(self) -> bool:
        """Whether calibration keeps full moments of it; for other layers, sums over the smaller side are enough."""
        return self.pooled or self.convolution is not None or is_embedding(self.places[0].module)

    @property
    def in_features(self) -> int:
        """Width of the input; of a convolution the entries of a patch of one group."""
        module = self.places[0].module
        if is_convolution(module):
            return patch_entries(module)
        return self.weight.shape[1] if self.transposed else int(module.in_features)  # type: ignore[arg-type]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        module = self.places[0].module
        if is_convolution(module):
            return module.out_channels
        return self.weight.shape[0] if self.transposed else int(module.out_features)  # type: ignore[arg-type]

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.in_features * self.out_features

    @property
    def element_bytes(self) -> int:
        """Bytes of an entry of the weight; it may be computed from parameters, or have no values yet."""
        dtype: torch.dtype = self.places[0].module.weight.dtype  # type: ignore[assignment]
        return dtype.itemsize

    @property
    def biases(self) -> list[Tensor]:
        """The biases of its modules, each once."""
        found = {id(bias): bias for place in self.places if (bias := bias_of(place.module)) is not None}
        return list(found.values())

    @property
    def dense_parameters(self) -> int:
        """Weight and biases."""
        # a head has one output for each row of the table
        return self.weights + (self.in_features if self.heads else self.out_features) * len(self.biases)


def weight_of(module: nn.Module) -> Tensor:
    """The weight as the module holds it."""
    return module.get_parameter("weight")


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear module, or None."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def find_units(
    model: nn.Module,
    filter_fn: Filter | None,
    skip: Iterable[str],
    *,
    convolutions: bool = False,
    embeddings: Kinds = (),
) -> list[Unit]:
    """Every linear layer that the caller wants converted, with the reason if it can't be.

    Args:
        model: is searched with all that it contains.
        filter_fn: takes (module, name) and says whether the layer is to be converted.
        skip: names of layers, or of modules that contain them, or patterns of the shell's kind (``*.query``).
        convolutions: also every convolution.
        embeddings: also every embedding of these kinds.

    Raises:
        ValueError: a pattern of skip matches no layer.
    """
    patterns = [skip] if isinstance(skip, str) else list(skip)
    matched: set[str] = set()
    places: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        others = (convolutions and is_convolution(module)) or is_embedding(module, embeddings)
        if not (isinstance(module, nn.Linear) or is_conv1d(module) or others):
            continue
        hits = [pattern for pattern in patterns if _matches(name, pattern)]
        matched.update(hits)
        if hits or (filter_fn is not None and not filter_fn(module, name)):
            continue
        places.setdefault(id(module), Place(module, [])).names.append(name)
    for pattern in patterns:
        if pattern not in matched:
            kinds = kinds_in_play(convolutions=convolutions, embeddings=embeddings)
            raise ValueError(f"skip pattern {pattern!r} matches no {kinds} of the model")
    units = _by_weight(places.values())
    reading = _fused_attention(model)
    holders = _holders(model)
    for unit in units:
        unit.reason = _reason(model, unit, reading)
        own = {id(place.module) for place in unit.places}
        unit.bias_is_shared = any(holders.get(id(bias), own) - own for bias in unit.biases)
    return units


def _by_weight(places: Iterable[Place]) -> list[Unit]:
    """Units: places with the same weight in the same form; the heads of an embedding come after it."""
    found: dict[tuple[int, bool], list[Place]] = {}
    for place in places:
        weight = getattr(place.module, "weight", None)
        key = id(weight) if isinstance(weight, nn.Parameter) else id(place.module)
        # a Conv1D has the transpose of a linear layer's weight
        found.setdefault((key, is_conv1d(place.module)), []).append(place)
    return [Unit(sorted(group, key=lambda place: not is_embedding(place.module))) for group in found.values()]


def _holders(model: nn.Module) -> dict[int, set[int]]:
    """Ids of the modules that hold each parameter, by the id of the parameter."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), set()).add(id(module))
    return holders


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers: a linear layer whose weight is (in_features, out_features)."""
    return any(
        base.__name__ == "Conv1D" and base.__module__ == "transformers.pytorch_utils" for base in type(module).__mro__
    )


def kinds_in_play(*, convolutions: bool, embeddings: Kinds) -> str:
    """The kinds of layers that are examined, in words."""
    kinds = ["linear layer", *(["convolution"] if convolutions else []), *(["embedding"] if embeddings else [])]
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def _is_transposed(module: nn.Module) -> bool:
    return is_conv1d(module) or is_embedding(module)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _reason(model: nn.Module, unit: Unit, fused: dict[int, str]) -> str | None:
    """Why a unit can't be converted, or None."""
    for place in unit.places:
        reason = _reason_of_module(place.module)
        if reason is not None:
            return reason
        if id(place.module) in fused:
            return f"{fused[id(place.module)]} uses its weight as a tensor and never calls it"
    weight = weight_of(unit.places[0].module)
    if weight.is_meta:
        return "its weight is on the device 'meta' and has no values; load the weights first"
    if not bool(torch.isfinite(weight.detach()).all()):
        return "its weight holds values that are not finite"
    own = {id(place.module) for place in unit.places}
    for name, module in model.named_modules():
        if id(module) not in own and any(parameter is weight for parameter in module._parameters.values()):
            both = (
                "; it is converted with that embedding, where embeddings are eligible" if is_embedding(module) else ""
            )
            return f"its weight is also that of {name or 'the model'}, and would have to be kept besides{both}"
    return None if unit.convolution is None else _reason_of_kernel(unit, unit.convolution)


def _reason_of_kernel(unit: Unit, conv: Convolution) -> str | None:
    """Why a convolution with a readable weight stays dense, or None; groups come last, as they allow fewer bits."""
    if len(unit.places) > 1:
        names = ", ".join(place.names[0] for place in unit.places)
        return f"convolutions that share one weight ({names}) stay dense; untie them to convert each"
    return reason_not_factored(conv)


def _reason_of_module(module: nn.Module) -> str | None:  # noqa: C901, PLR0911  one return for each reason
    kind = type(module).__name__
    known = ("Conv2d", "Conv1d", "Embedding", "EmbeddingBag")
    dense = next((name for name in known if isinstance(module, getattr(nn, name))), "Linear")
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript; convert the model before it is scripted or traced"
    if "_hf_hook" in module.__dict__:
        return (
            "accelerate moves its inputs or its weight (device_map, cpu_offload); convert it before, or after "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)"
        )
    if parametrize.is_parametrized(module):
        return (
            "it is parametrised: its weight is computed from other parameters; "
            "torch.nn.utils.parametrize.remove_parametrizations gives it a plain one"
        )
    weight = module._parameters.get("weight")
    if weight is None:
        return (
            "its weight is computed from other parameters, as by weight_norm or pruning; "
            "torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove gives it a plain one"
        )
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "it is not initialized: its input width is unknown before the first call; call the model once before"
    plain = type(weight.data) is Tensor and weight.layout is torch.strided
    if not (plain and weight.is_floating_point()):
        return f"its weight is a {type(weight.data).__name__} of {weight.dtype}, not an ordinary floating-point tensor"
    more = [
        name
        for held in (module._parameters, module._buffers, module._modules)
        for name in held
        if name not in ("weight", "bias")
    ]
    if more:
        return f"{kind} holds more than nn.{dense} does: {', '.join(more)}"
    if is_convolution(module):
        return reason_of_convolution(module)
    if is_embedding(module):
        return reason_of_embedding(module)
    own_forward = isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    if _has_forward_of_its_own(module) or (own_forward and not computes_linear(cast(nn.Linear, module))):
        return f"{kind} does more than nn.Linear in its forward"
    return None


def _has_forward_of_its_own(module: nn.Module) -> bool:
    """Whether its forward was replaced; accelerate leaves the forward of the class behind."""
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _fused_attention(model: nn.Module) -> dict[int, str]:
    """The output projections of nn.MultiheadAttention by id, with the name of the attention."""
    return {
        id(module.out_proj): f"nn.MultiheadAttention ({name or 'the model'})"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }


def take_place(layer: SKLinear | SketchedConv, unit: Unit, place: Place) -> None:
    """Give a new layer the hooks and the mode of the module that it replaces, and a bias that others share."""
    bias = bias_of(place.module)
    if unit.bias_is_shared and isinstance(bias, nn.Parameter):
        layer.bias = bias
    take_hooks(layer, place.module)
    layer.train(place.module.training)


def sketched_from(
    unit: Unit,
    left: Tensor,
    right: Tensor,
    biases: dict[int, Tensor | None],
    *,
    largest_input: Tensor | None = None,
) -> list[SKLinear]:
    """A sketched layer for each module of a unit; tied ones share their four matrices, and shared biases stay shared.

    Args:
        unit: what is replaced.
        left: (in_features, r).
        right: (r, out_features), r = 2k with one term.
        biases: the new bias by the id of the old one.
        largest_input: as for `SKLinear.from_factors`.
    """
    layers: list[SKLinear] = []
    for place in unit.places:
        module = place.module
        bias = bias_of(module)
        new_bias = None if bias is None else biases.get(id(bias), bias)
        layer = SKLinear.from_factors(
            left, right, new_bias, 1, left.shape[1] // 2, dtype=unit.weight.dtype, largest_input=largest_input
        )
        if layers:
            layer.tie_to(layers[0])
        else:
            trained = weight_of(module).requires_grad
            layer.S1s.requires_grad_(trained)
            layer.S2s.requires_grad_(trained)
        if not unit.bias_is_shared and bias is not None and layer.bias is not None:
            layer.bias.requires_grad_(bias.requires_grad)
            for other, old in zip(layers, unit.places, strict=False):
                if bias_of(old.module) is bias:
                    layer.bias = other.bias
        take_place(layer, unit, place)
        layers.append(layer)
    return layers
