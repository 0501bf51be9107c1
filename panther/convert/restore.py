"""Loading a converted model: the same architecture anew, its layers sketched where the file's are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from panther import checkpoint
from panther.convert.swap import Swap
from panther.convert.units import Place, is_conv1d, weight_of
from panther.nn import SKLinear
from panther.nn.hooks import take_hooks

_TERMS = ("S1s", "S2s", "U1s", "U2s")


def restore_(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Make a dense model the converted one that `panther.save` wrote; on any error the model is as it was.

    Linear layers for which the file holds S1s, S2s, U1s and U2s are replaced by sketched ones of the sizes found there,
    and the whole state is loaded.

    Args:
        model: of the architecture before the conversion, as its factory makes it.
        path: a file of `panther.save`.

    Returns:
        The names of the replaced layers.

    Raises:
        CheckpointError: the file can't be read, or does not fit the model.
    """
    state = checkpoint.read(path)
    replacements = _replacements(model, state)
    swap = Swap(model, replacements)
    swap.do()
    try:
        checkpoint.load(model, path)
    except BaseException:
        swap.undo()
        raise
    return tuple(name for place, _ in replacements for name in place.names)


def _replacements(model: nn.Module, state: Mapping[str, Tensor]) -> list[tuple[Place, nn.Module]]:
    places: dict[int, tuple[Place, SKLinear]] = {}
    shared: dict[tuple[int, ...], SKLinear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        terms = [state.get(f"{name}.{term}") for term in _TERMS]
        if not (isinstance(module, nn.Linear) or is_conv1d(module)) or any(term is None for term in terms):
            continue
        if id(module) in places:
            places[id(module)][0].names.append(name)
            continue
        S1s, S2s, U1s, U2s = (term for term in terms if term is not None)
        L, d_in, k = S1s.shape
        weight = weight_of(module)
        device = weight.device
        layer = SKLinear(
            d_in,
            S2s.shape[-1],
            L,
            k,
            bias=module.bias is not None,
            # a model that is loaded keeps its own type
            dtype=weight.dtype,
            device="meta",
            sketch="orthonormal",
        ).to_empty(device="cpu" if device.type == "meta" else device)
        key = tuple(term.data_ptr() for term in (S1s, S2s, U1s, U2s))
        if key in shared:
            first = shared[key]
            layer.S1s, layer.S2s, layer.U1s, layer.U2s = first.S1s, first.S2s, first.U1s, first.U2s
            layer._pack()
        shared.setdefault(key, layer)
        layer.S1s.requires_grad_(weight.requires_grad)
        layer.S2s.requires_grad_(weight.requires_grad)
        take_hooks(layer, module)
        places[id(module)] = (Place(module, [name]), layer.train(module.training))
    return list(places.values())
