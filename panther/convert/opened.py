"""Opened modules: the packed weights that a module reads as tensors become layers, and stay so if one is converted.

See docs/decisions/0047-conversion-budgets.md and docs/decisions/0079-experts-as-layers.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from panther.convert.attention import is_plain_attention, within_transformers
from panther.convert.experts import gated_weights, opened_experts
from panther.convert.layers import Place
from panther.convert.recurrent import is_plain_recurrent
from panther.convert.swap import Swap
from panther.nn.attention import ProjectedAttention
from panther.nn.experts import EVERY_LIST, OpenedExperts
from panther.nn.recurrent import ProjectedRNN

Opened = ProjectedAttention | OpenedExperts | ProjectedRNN
Replacement = tuple[Place, nn.Module]


def opened(model: nn.Module, *, recurrent: bool = False) -> list[Replacement]:
    """An opened module, with a layer for each matrix, for every attention and all experts that allow it.

    Left alone are those that share parameters with other modules.

    Args:
        model: is not changed.
        recurrent: also recurrent layers; their input weights become layers.
    """
    holders = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    foreign = within_transformers(model)
    found: dict[int, tuple[Place, Opened] | None] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not name:
            continue
        if id(module) not in found:
            held = (*module._parameters.values(), *gated_weights(module))
            shares = any(holders[id(parameter)] > 1 for parameter in held if parameter is not None)
            made = None if shares else _opened(module, foreign, recurrent=recurrent)
            found[id(module)] = None if made is None else (Place(module, []), made)
        known = found[id(module)]
        if known is not None:
            known[0].names.append(name)
    return [each for each in found.values() if each is not None]


def _opened(module: nn.Module, foreign: set[int], *, recurrent: bool) -> Opened | None:
    if isinstance(module, nn.RNNBase):
        plain = recurrent and is_plain_recurrent(module) and id(module) not in foreign
        return ProjectedRNN(module) if plain else None
    if isinstance(module, nn.MultiheadAttention):
        return ProjectedAttention(module) if is_plain_attention(module) and id(module) not in foreign else None
    return opened_experts(module)


def closed(modules: Sequence[Replacement], replacements: Sequence[Replacement]) -> list[Replacement]:
    """The replacements of a conversion in the model as it was: layers by the opened module that holds them.

    Args:
        modules: as `opened` gave them; those without a converted layer are left out, and stay as they were.
        replacements: what the conversion puts in, by the names in the opened model.
    """
    found: list[Replacement] = []
    inside: dict[int, list[tuple[str, nn.Module]]] = {}
    holders = {name: place for place, _ in modules for name in place.names}
    for place, new in replacements:
        holder, within = _split(place.names[0], holders)
        if holder:
            inside.setdefault(id(holders[holder]), []).append((within, new))
        else:
            found.append((place, new))
    for place, module in modules:
        if id(place) not in inside:
            continue
        for within, new in inside[id(place)]:
            parent, _, child = within.rpartition(".")
            module.get_submodule(parent)._modules[child] = new
        if isinstance(module, Opened):
            module.own_memory()
        found.append((place, module))
    return found


def close_unchanged(model: nn.Module, modules: Sequence[Replacement], layers: Sequence[set[int]]) -> None:
    """Close the opened modules in which no layer was replaced.

    Args:
        model: opened, and converted since.
        modules: as `opened` gave them.
        layers: what `layers_of` said before the conversion.
    """
    back: list[Replacement] = []
    for (place, module), before in zip(modules, layers, strict=True):
        if {id(inner) for inner in module.modules()} == before:
            back.append((Place(module, place.names), place.module))
        elif isinstance(module, Opened):
            module.own_memory()
    Swap(model, back).do()


def layers_of(modules: Sequence[Replacement]) -> list[set[int]]:
    """The modules within each, by id."""
    return [{id(inner) for inner in module.modules()} for _, module in modules]


def needed(modules: Iterable[Replacement], keys: Iterable[str]) -> list[Replacement]:
    """The modules that a file holds opened, by the names of its tensors."""
    held = {key.rpartition(".")[0] for key in keys}
    return [
        (place, module)
        for place, module in modules
        if any(f"{name}.{first}" in held for name in place.names for first in _layers_of(module))
    ]


def open_named(model: nn.Module, names: Iterable[str]) -> None:
    """Open the modules that hold layers of these names, for a loader to fill."""
    Swap(model, needed(opened(model), [f"{name}.weight" for name in names])).do()


def _layers_of(module: nn.Module) -> list[str]:
    """The layers that only an opened module has."""
    if isinstance(module, OpenedExperts):
        lists = [name for name in EVERY_LIST if name in module._modules]
        return [f"{name}.{index}" for name in lists for index in range(len(module.down))]
    return [f"input_l{layer}" for layer in range(module.num_layers)] if isinstance(module, ProjectedRNN) else ["q_proj"]


def _split(name: str, holders: dict[str, Place]) -> tuple[str, str]:
    """The name of the opened module around a layer, and the name within it; two empty texts where there is none."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        holder = ".".join(parts[:count])
        if holder in holders:
            return holder, ".".join(parts[count:])
    return "", ""
