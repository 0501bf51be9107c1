"""Loading a converted model: its architecture, with sketched layers where the file has them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from panther import checkpoint
from panther.convert.convolutions import is_convolution
from panther.convert.layers import Place, is_conv1d, weight_of
from panther.convert.opened import closed, needed, opened
from panther.convert.swap import Swap
from panther.nn import SKConv1d, SKConv2d, SKLinear
from panther.nn.hooks import take_hooks
from panther.nn.sketched_conv import SketchedConv

_TERMS = ("S1s", "S2s", "U1s", "U2s")
# what a file holds of a convolution, and the kind of its terms
_CONV_TERMS = {_TERMS: "both", ("S1s", "U1s"): "output", ("S2s", "U2s"): "input"}


def describe_for_transformers(model: nn.Module) -> None:
    """Give a model of transformers the config entry by which `from_pretrained` loads it again."""
    if "transformers.modeling_utils" in sys.modules and importlib.util.find_spec("transformers.quantizers") is not None:
        importlib.import_module("panther.huggingface").describe(model)


def restore_(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Make a dense model the converted one that `panther.save` wrote; on any error the model is as it was.

    Linear layers and convolutions for which the file holds S1s, S2s, U1s and U2s (or one kind of them, of a
    convolution) are replaced by sketched ones of the sizes found there, and the whole state is loaded.

    Args:
        model: of the architecture before the conversion, as its factory makes it.
        path: a file of `panther.save`.

    Returns:
        The names of the replaced layers.

    Raises:
        CheckpointError: the file can't be read, or does not fit the model.
    """
    state = checkpoint.read(path)
    attentions = needed(opened(model, recurrent=True), state)
    with Swap(model, attentions):
        replacements = _replacements(model, state)
    swap = Swap(model, closed(attentions, replacements))
    swap.do()
    try:
        checkpoint.load(model, path)
        describe_for_transformers(model)
    except BaseException:
        swap.undo()
        raise
    return tuple(name for place, _ in replacements for name in place.names)


def _replacements(model: nn.Module, state: Mapping[str, Tensor]) -> list[tuple[Place, nn.Module]]:
    places: dict[int, tuple[Place, nn.Module]] = {}
    shared: dict[tuple[int, ...], SKLinear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        terms = {term: state[f"{name}.{term}"] for term in _TERMS if f"{name}.{term}" in state}
        convolution = is_convolution(module)
        wanted = _CONV_TERMS if convolution else {_TERMS: "both"}
        if not (isinstance(module, nn.Linear) or is_conv1d(module) or convolution) or tuple(terms) not in wanted:
            continue
        if id(module) in places:
            places[id(module)][0].names.append(name)
            continue
        device = weight_of(module).device
        layer = _of_sizes(module, _sizes(terms)).to_empty(device="cpu" if device.type == "meta" else device)
        if isinstance(layer, SKLinear):
            key = tuple(term.data_ptr() for term in terms.values())
            if key in shared:
                layer.tie_to(shared[key])
            shared.setdefault(key, layer)
        places[id(module)] = (Place(module, [name]), _standing_in(layer, module))
    return list(places.values())


def _sizes(terms: Mapping[str, Tensor]) -> list[int | str]:
    """num_terms, low_rank and, where not both, the kind of the terms that a file holds for a layer."""
    kind = _CONV_TERMS[tuple(terms)]
    # U1s is (L, k, d_out), U2s (L, d_in, k)
    L, k = terms["U1s"].shape[:2] if "U1s" in terms else terms["U2s"].shape[::2]
    return [L, k] if kind == "both" else [L // 2, k, kind]


def replace_layers(model: nn.Module, sizes: Mapping[str, Sequence[int | str]]) -> None:
    """Put sketched layers without values in the places of dense ones, on ``meta``, for a loader to fill.

    Args:
        model: whose modules are replaced.
        sizes: (num_terms, low_rank) by the dotted name of a layer, and the terms of a convolution that has one kind.

    Raises:
        CheckpointError: a name is that of no linear layer and no convolution.
    """
    places: dict[int, tuple[Place, nn.Module]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, of_layer in sizes.items():
        module = modules.get(name)
        if module is None or not (isinstance(module, nn.Linear) or is_conv1d(module) or is_convolution(module)):
            raise checkpoint.CheckpointError(f"{name!r} is no linear layer or convolution of {type(model).__name__}")
        if id(module) in places:
            places[id(module)][0].names.append(name)
            continue
        places[id(module)] = (Place(module, [name]), _standing_in(_of_sizes(module, of_layer), module))
    Swap(model, list(places.values())).do()


def _of_sizes(module: nn.Module, sizes: Sequence[int | str]) -> SKLinear | SketchedConv:
    """A layer without values, on ``meta``, for the place of a dense one; a model that is loaded keeps its own type."""
    num_terms, low_rank = int(sizes[0]), int(sizes[1])
    if is_convolution(module):
        kind = SKConv2d if isinstance(module, nn.Conv2d) else SKConv1d
        terms = "both" if len(sizes) == 2 else str(sizes[2])
        return kind.like(module, num_terms, low_rank, terms=terms, device="meta")  # type: ignore[arg-type]
    weight = weight_of(module)
    d_in, d_out = weight.shape if is_conv1d(module) else weight.shape[::-1]
    bias = module.bias is not None
    return SKLinear(
        d_in, d_out, num_terms, low_rank, bias=bias, dtype=weight.dtype, device="meta", sketch="orthonormal"
    )


def _standing_in(layer: SKLinear | SketchedConv, module: nn.Module) -> SKLinear | SketchedConv:
    trained = weight_of(module).requires_grad
    for S in (layer.S1s, layer.S2s):
        if S is not None:
            S.requires_grad_(trained)
    take_hooks(layer, module)
    return layer.train(module.training)
