"""Saving and loading of converted models by transformers: `save_pretrained` and `from_pretrained`.

A converted model carries an entry ``quantization_config`` of method ``panther_sketch`` in its config, which names the
sketched layers with their sizes. `from_pretrained` then builds these layers before it reads the weights, by the same
extension point that quantized models use. `register` makes the method known; ``import panther`` arranges for that.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

if TYPE_CHECKING:
    from torch import nn

    from panther.nn import SKLinear
    from panther.nn.embedding import LowRankTable

METHOD = "panther_sketch"
# attributes of transformers with the tied parameters: as the class names them, and with full names
_KEYS, _EXPANDED = "_tied_weights_keys", "all_tied_weights_keys"


@register_quantization_config(METHOD)
class SketchConfig(QuantizationConfigMixin):  # type: ignore[misc,unused-ignore]
    """The sketched layers of a model.

    Args:
        layers: (num_terms, low_rank) by the dotted name of a layer, and the terms of a convolution with one kind;
            only the rank for an embedding, and for a head on its factors.
        tied: names of layers that share their terms, group by group.
    """

    def __init__(
        self, layers: dict[str, list[int | str]] | None = None, tied: list[list[str]] | None = None, **_: object
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment,unused-ignore]
        self.layers = {name: list(sizes) for name, sizes in (layers or {}).items()}
        self.tied = [list(group) for group in tied or []]


@register_quantizer(METHOD)
class SketchQuantizer(HfQuantizer):  # type: ignore[misc,unused-ignore]
    """Build the sketched layers of a checkpoint for `from_pretrained`, and let `save_pretrained` write them."""

    @property
    def _config(self) -> SketchConfig:
        config: Any = self.quantization_config
        return config  # type: ignore[no-any-return]

    def is_serializable(self, *_: object, **__: object) -> bool:
        """Whether `save_pretrained` may write the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model may be trained on."""
        return True

    def get_state_dict_and_metadata(
        self, model: Any, *_: object, **__: object
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The state, with a copy of shared terms for each layer, because transformers rejects shared tensors.

        Factors that transformers knows as tied are not copied.
        """
        state = model.state_dict()
        seen: set[int] = set()
        names, tied = self._config.layers, getattr(model, _EXPANDED, {})
        for key in state:
            layer, _, term = key.rpartition(".")
            if key not in tied and layer in names and term in ("S1s", "S2s", "U1s", "U2s", "A", "B", "bias"):
                address = state[key].data_ptr()
                state[key] = state[key].clone() if address in seen else state[key]
                seen.add(address)
        return state, {}

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> None:
        from panther.convert.opened import open_named
        from panther.convert.restore import replace_layers

        open_named(model, [each for name in self._config.layers for each in _names(model, name)])
        replace_layers(model, dict(_in_model(model, self._config.layers)))
        _tie_factors(model)

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:
        from panther.nn.embedding import LowRankTable

        modules = dict(model.named_modules())
        for name, _sizes in _in_model(model, self._config.layers):
            if not isinstance(modules[name], LowRankTable):
                modules[name]._loaded()
        for group in self._config.tied:
            found = [modules[name] for name, _ in _in_model(model, {name: self._config.layers[name] for name in group})]
            for other in found[1:]:
                other.tie_to(found[0])
        # transformers forbids casts of integer weights, but for these layers they are right
        model.is_quantized = False
        return model


def describe(model: nn.Module) -> None:
    """Give every converted model of transformers in a module the config entry that its checkpoint needs."""
    from panther.nn import SKLinear
    from panther.nn.embedding import LowRankTable
    from panther.nn.sketched_conv import SketchedConv

    for pretrained in _outermost(model):
        sizes: dict[str, list[int | str]] = {}
        linear: dict[str, SKLinear] = {}
        tables: dict[str, LowRankTable] = {}
        for name, module in pretrained.named_modules():
            if isinstance(module, SKLinear):
                linear[name] = module
                sizes[name] = [module.num_terms, module.low_rank]
            elif isinstance(module, SketchedConv):
                kind = [] if module.terms == "both" else [module.terms]
                sizes[name] = [module.num_terms, module.low_rank, *kind]
            elif isinstance(module, LowRankTable):
                tables[name] = module
                sizes[name] = [module.rank]
        if not sizes:
            continue
        described = SketchConfig(sizes, _tied(linear) + _tied(tables))
        # a copy: other models may be built from the same config
        old = pretrained.config
        new = copy.deepcopy(old)
        new.quantization_config = described
        for module in pretrained.modules():
            if module.__dict__.get("config") is old:
                module.config = new
        _tie_factors(pretrained)
        pretrained.hf_quantizer = SketchQuantizer(described, pre_quantized=True)


def _tie_factors(model: nn.Module) -> None:
    """Let transformers tie the factors of embeddings and heads whose weights it tied."""
    for module in model.modules():
        for attribute in (_KEYS, _EXPANDED):
            tied = getattr(module, attribute, None)
            if isinstance(tied, dict):
                setattr(module, attribute, _keys_of_factors(module, tied))


def _keys_of_factors(model: nn.Module, tied: Mapping[str, str]) -> dict[str, str]:
    from panther.nn.embedding import LowRankTable

    modules, found = dict(model.named_modules(remove_duplicate=False)), dict[str, str]()
    for target, source in tied.items():
        layer, of = target.removesuffix(".weight"), source.removesuffix(".weight")
        if isinstance(modules.get(layer), LowRankTable):
            found |= {f"{layer}.{factor}": f"{of}.{factor}" for factor in ("A", "B")}
        else:
            found[target] = source
    return found


def _tied(layers: Mapping[str, SKLinear | LowRankTable]) -> list[list[str]]:
    from panther.nn.embedding import LowRankTable

    groups: dict[int, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(id(layer.A if isinstance(layer, LowRankTable) else layer.S1s), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _outermost(model: nn.Module) -> Iterator[Any]:
    pretrained = importlib.import_module("transformers.modeling_utils").PreTrainedModel
    if isinstance(model, pretrained):
        yield model
        return
    for child in model.children():
        yield from _outermost(child)


def _in_model(model: Any, layers: dict[str, list[int | str]]) -> Iterator[tuple[str, list[int | str]]]:
    """The layers that a model has, under its names: of a base model, or of one with a head, from the other's file."""
    names = {name for name, _ in model.named_modules()}
    for name, sizes in layers.items():
        for candidate in _names(model, name):
            if candidate in names:
                yield candidate, sizes
                break


def _names(model: Any, name: str) -> tuple[str, str, str]:
    """What a layer may be called in a base model, or in one with a head."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    return name, name.removeprefix(prefix), prefix + name
