"""Load a converted model: replace layers of its architecture by the sketched ones of the file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from panther import checkpoint
from panther.convert.convolutions import is_convolution
from panther.convert.embedding_candidates import table_like
from panther.convert.embeddings import is_embedding
from panther.convert.layers import Place, is_conv1d, weight_of
from panther.convert.opened import closed, needed, opened
from panther.convert.swap import Swap
from panther.nn import SKConv1d, SKConv2d, SKLinear
from panther.nn.embedding import LowRankTable
from panther.nn.hooks import take_hooks
from panther.nn.sketched_conv import SketchedConv

_TERMS = ("S1s", "S2s", "U1s", "U2s")
_FACTORS = ("A", "B")
# keys of a convolution in the file, and the kind of its terms
_CONV_TERMS = {_TERMS: "both", ("S1s", "U1s"): "output", ("S2s", "U2s"): "input"}

Replacement = SKLinear | SketchedConv | LowRankTable


def describe_for_transformers(model: nn.Module) -> None:
    """Give a transformers model the config entry by which `from_pretrained` loads it again."""
    if "transformers.modeling_utils" in sys.modules and importlib.util.find_spec("transformers.quantizers") is not None:
        importlib.import_module("panther.huggingface").describe(model)


def restore_(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Turn a dense model into the converted one that `panther.save` wrote; on any error the model is unchanged.

    Linear layers and convolutions for which the file holds S1s, S2s, U1s and U2s (or one kind of them, of a
    convolution) are replaced by sketched ones of the sizes found there, and embeddings and heads for which it holds A
    and B by those of low rank; then the whole state is loaded.

    Args:
        model: of the architecture before the conversion, as its factory makes it.
        path: a file of `panther.save`.

    Returns:
        The names of the replaced layers.

    Raises:
        CheckpointError: the file can't be read, or does not fit the model.
    """
    return _become(model, checkpoint.read(path), lambda: checkpoint.load(model, path))


def restore_state_(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Turn a dense model into the converted one of a state_dict, as `restore_` does.

    Tensors that share their memory there are tied in the model.

    Raises:
        RuntimeError: the state does not fit the model.
    """
    return _become(model, state, lambda: model.load_state_dict(state))


def _become(model: nn.Module, state: Mapping[str, Tensor], load: Callable[[], object]) -> tuple[str, ...]:
    attentions = needed(opened(model, recurrent=True), state)
    with Swap(model, attentions):
        replacements = _replacements(model, state)
    swap = Swap(model, closed(attentions, replacements))
    swap.do()
    try:
        load()
        describe_for_transformers(model)
    except BaseException:
        swap.undo()
        raise
    return tuple(name for place, _ in replacements for name in place.names)


def _replacements(model: nn.Module, state: Mapping[str, Tensor]) -> list[tuple[Place, nn.Module]]:
    places: dict[int, tuple[Place, nn.Module]] = {}
    shared: dict[tuple[int, ...], SKLinear | LowRankTable] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        tied = isinstance(module, nn.Linear) and f"{name}.A" in state
        of_kind = _FACTORS if is_embedding(module) or tied else _TERMS
        terms = {term: state[f"{name}.{term}"] for term in of_kind if f"{name}.{term}" in state}
        wanted = _CONV_TERMS if is_convolution(module) else {of_kind: "both"}
        if not _can_be_replaced(module) or tuple(terms) not in wanted:
            continue
        if id(module) in places:
            places[id(module)][0].names.append(name)
            continue
        device = weight_of(module).device
        layer = _of_sizes(module, _sizes(terms)).to_empty(device="cpu" if device.type == "meta" else device)
        if not isinstance(layer, SketchedConv):
            key = tuple(term.data_ptr() for term in terms.values())
            if key in shared:
                layer.tie_to(shared[key])  # type: ignore[arg-type]
            shared.setdefault(key, layer)
        places[id(module)] = (Place(module, [name]), _standing_in(layer, module))
    return list(places.values())


def _sizes(terms: Mapping[str, Tensor]) -> list[int | str]:
    """num_terms, low_rank and, where not both, the kind of the terms that a file holds; of a table its rank."""
    if tuple(terms) == _FACTORS:
        return [terms["B"].shape[0]]
    kind = _CONV_TERMS[tuple(terms)]
    # U1s is (L, k, d_out), U2s (L, d_in, k)
    L, k = terms["U1s"].shape[:2] if "U1s" in terms else terms["U2s"].shape[::2]
    return [L, k] if kind == "both" else [L // 2, k, kind]


def replace_layers(model: nn.Module, sizes: Mapping[str, Sequence[int | str]]) -> None:
    """Put sketched layers without values in the places of dense ones, on ``meta``, for a loader to fill.

    Args:
        model: the model; its modules are replaced.
        sizes: (num_terms, low_rank) by the dotted name of a layer, and the terms of a convolution with one kind;
            only the rank for an embedding, and for a head on its factors.

    Raises:
        CheckpointError: a name does not belong to a layer of these kinds.
    """
    places: dict[int, tuple[Place, nn.Module]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, of_layer in sizes.items():
        module = modules.get(name)
        if module is None or not _can_be_replaced(module):
            kinds = "linear layer, convolution or embedding"
            raise checkpoint.CheckpointError(f"{name!r} is not a {kinds} of {type(model).__name__}")
        if id(module) in places:
            places[id(module)][0].names.append(name)
            continue
        places[id(module)] = (Place(module, [name]), _standing_in(_of_sizes(module, of_layer), module))
    Swap(model, list(places.values())).do()


def _can_be_replaced(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_convolution(module) or is_embedding(module)


def _of_sizes(module: nn.Module, sizes: Sequence[int | str]) -> Replacement:
    """A layer without values, on ``meta``, for the place of a dense one; a model that is loaded keeps its own type."""
    if len(sizes) == 1:
        return table_like(module, int(sizes[0]), device="meta")
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


def _standing_in(layer: Replacement, module: nn.Module) -> Replacement:
    trained = weight_of(module).requires_grad
    for S in (layer.A, layer.B) if isinstance(layer, LowRankTable) else (layer.S1s, layer.S2s):
        if S is not None:
            S.requires_grad_(trained)
    take_hooks(layer, module)
    return layer.train(module.training)
