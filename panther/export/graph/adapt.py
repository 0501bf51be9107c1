"""Settings of transformers models that torch.onnx can translate, with the same values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# experts as batched products over gathered weights; other implementations branch on values, or have no ONNX operator
_EXPERTS = {"_experts_implementation": "batched_mm"}
# attention as plain products: torch's fused kernel can't be traced at these shapes; no cache is filled
_PLAIN = {"_attn_implementation": "eager", "use_cache": False}


@dataclass(frozen=True)
class Attempt:
    """Settings to trace a model with.

    Attributes:
        settings: attributes of the configurations in the model, where they have them.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    def prepare(self, model: nn.Module) -> None:
        """Put the settings into the configurations of a model."""
        for config in configs(model):
            for name, value in self.settings.items():
                if getattr(config, name, None) not in (None, value) or (name in _EXPERTS and hasattr(config, name)):
                    setattr(config, name, value)


def attempts(model: nn.Module) -> list[Attempt]:
    """Variants to try in turn: with only the experts changed, then with plain attention and without a cache."""
    first = Attempt(_EXPERTS)
    return [first, Attempt(_EXPERTS | _PLAIN)] if any(True for _ in configs(model)) else [first]


def configs(model: nn.Module) -> Iterator[Any]:
    """The transformers configurations of a model's parts, each once."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation") and id(config) not in seen:
            seen.add(id(config))
            yield config
