"""Models of timm and torchvision, and models of transformers with the adapters of PEFT."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from architectures.family import CLASSES, WIDTH, Family, along, images, tokens
from architectures.text import model

TARGETS = {"BERT": ["query", "value", "dense"], "Llama": ["q_proj", "v_proj", "down_proj"]}


def vision(
    package: str, name: str, kind: str, *, stays_dense: str | None = None, like: str | None = None, **changes: Any
) -> Family:
    """A family by its class in timm or torchvision, without weights."""

    def make() -> nn.Module:
        module, _, attribute = f"{package}.models.{kind}".rpartition(".")
        made = getattr(importlib.import_module(module), attribute)(num_classes=CLASSES, **changes)
        for parameter in made.parameters():
            # a fresh head is zero, a trained one is not
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        return made.eval()

    named = f"{name} ({package})"
    return Family(named, "vision", make, images(32, "x"), {}, stays_dense=stays_dense, package=package, like=like)


def adapted(
    name: str, config: str, base: Callable[[], nn.Module], *, like: str | None = None, **changes: Any
) -> Family:
    """A model with adapters, as it is trained: the adapters are not merged."""

    def make() -> nn.Module:
        peft = importlib.import_module("peft")
        return peft.get_peft_model(base(), getattr(peft, config)(**changes)).eval()

    lengths = along("input_ids", "attention_mask")
    return Family(name, "adapters", make, tokens("input_ids"), lengths, package="peft", like=like)


BERT = model("BertForSequenceClassification", "BertConfig")
LLAMA = model("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2)
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 1, "num_heads": 4}

FAMILIES = (
    adapted("LoRA on BERT", "LoraConfig", BERT, r=4, target_modules=TARGETS["BERT"], init_lora_weights=False),
    adapted("LoRA on Llama", "LoraConfig", LLAMA, like="LoRA on BERT", r=4, target_modules=TARGETS["Llama"]),
    adapted(
        "DoRA on BERT",
        "LoraConfig",
        BERT,
        like="LoRA on BERT",
        r=4,
        target_modules=["query"],
        use_dora=True,
        init_lora_weights=False,
    ),
    adapted(
        "IA3 on BERT",
        "IA3Config",
        BERT,
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
        init_ia3_weights=False,
    ),
    vision("timm", "ViT", "vision_transformer.VisionTransformer", **SMALL),
    vision("timm", "EVA-02", "eva.Eva", **SMALL, use_rot_pos_emb=True, swiglu_mlp=True, like="ViT (timm)"),
    vision(
        "timm",
        "MLP-Mixer",
        "mlp_mixer.MlpMixer",
        img_size=32,
        patch_size=8,
        embed_dim=WIDTH,
        num_blocks=1,
        like="MLP-Mixer",
    ),
    vision(
        "timm", "ConvNeXt V2", "convnext.ConvNeXt", depths=[1] * 4, dims=[32, 32, 64, 64], use_grn=True, like="ConvNeXt"
    ),
    vision("timm", "MetaFormer", "metaformer.MetaFormer", depths=[1] * 4, dims=[16, 32, 32, 64]),
    vision(
        "torchvision",
        "ViT",
        "VisionTransformer",
        image_size=32,
        patch_size=8,
        num_layers=1,
        num_heads=4,
        hidden_dim=WIDTH,
        mlp_dim=2 * WIDTH,
    ),
    vision(
        "torchvision",
        "Swin",
        "SwinTransformer",
        patch_size=[4, 4],
        embed_dim=32,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=[4, 4],
        like="Swin",
    ),
    vision(
        "torchvision",
        "DenseNet",
        "DenseNet",
        growth_rate=8,
        block_config=(2, 2),
        num_init_features=16,
    ),
    vision("torchvision", "SqueezeNet", "SqueezeNet"),
)
