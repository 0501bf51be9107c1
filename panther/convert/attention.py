"""nn.MultiheadAttention in play: its projections are layers while a model is converted, and stay so where one was.

See docs/decisions/0047-conversion-budgets.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.utils import parametrize

from panther.convert.layers import Place
from panther.nn.attention import PROJECTIONS, ProjectedAttention

Replacement = tuple[Place, nn.Module]


def opened(model: nn.Module) -> list[Replacement]:
    """A `ProjectedAttention` for every nn.MultiheadAttention that can be replaced by one, with its place.

    Left alone are subclasses, parametrised ones, those that share parameters with other modules, and those within a
    model of transformers, which builds and initialises its modules by itself.
    """
    holders = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    foreign = _within_transformers(model)
    places: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and id(module) not in foreign and _is_plain(module, holders):
            places.setdefault(id(module), Place(module, [])).names.append(name)
    return [(place, ProjectedAttention(place.module)) for place in places.values()]  # type: ignore[arg-type]


def closed(attentions: Sequence[Replacement], replacements: Sequence[Replacement]) -> list[Replacement]:
    """The replacements of a conversion in the model as it was: projections by the attention that holds them.

    Args:
        attentions: as `opened` gave them; those without a converted projection are left out, and stay as they were.
        replacements: what the conversion puts in, projections among them by their names in the opened model.
    """
    found: list[Replacement] = []
    inside: dict[int, list[tuple[str, nn.Module]]] = {}
    holders = {name: place for place, _ in attentions for name in place.names}
    for place, new in replacements:
        parent, _, child = place.names[0].rpartition(".")
        if parent in holders and child in PROJECTIONS:
            inside.setdefault(id(holders[parent]), []).append((child, new))
        else:
            found.append((place, new))
    for place, attention in attentions:
        if id(place) not in inside:
            continue
        for child, new in inside[id(place)]:
            attention._modules[child] = new
        if isinstance(attention, ProjectedAttention):
            attention.own_projections()
        found.append((place, attention))
    return found


def needed(attentions: Iterable[Replacement], keys: Iterable[str]) -> list[Replacement]:
    """Attentions that a file holds as separate projections, by the names of its tensors."""
    held = {key.rpartition(".")[0] for key in keys}
    return [
        (place, attention)
        for place, attention in attentions
        if any(f"{name}.{PROJECTIONS[0]}" in held for name in place.names)
    ]


def _is_plain(module: nn.Module, holders: Counter[int]) -> bool:
    if type(module) is not nn.MultiheadAttention or "forward" in module.__dict__ or parametrize.is_parametrized(module):
        return False
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return all(holders[id(parameter)] == 1 for parameter in own)


def _within_transformers(model: nn.Module) -> set[int]:
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return set()
    pretrained = [module for module in model.modules() if isinstance(module, library.PreTrainedModel)]
    return {id(inner) for outer in pretrained for inner in outer.modules()}
