"""Models of images and of sound from transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from architectures.family import CLASSES, VOCABULARY, WIDTH, Family, Inputs, along, images, tokens
from architectures.generation import SEQ2SEQ
from architectures.text import model

SAMPLES = 800
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
NOTHING = dict.fromkeys(
    ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_labels")
)
PATCHES: dict[str, Any] = {"image_size": 16, "patch_size": 8}


def vision(
    name: str,
    kind: str,
    config: str,
    *,
    size: int = 16,
    stays_dense: str | None = None,
    like: str | None = None,
    **changes: Any,
) -> Family:
    """A family that reads images of a fixed size."""
    without = {"vocab_size": None, "max_position_embeddings": None}
    make = model(kind, config, **without | changes)
    return Family(name, "vision", make, images(size), {}, stays_dense=stays_dense, like=like)


def sound(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Samples of sound."""
    return {"input_values": torch.randn(batch, SAMPLES + 20 * length, generator=generator)}


def speech(name: str, kind: str, config: str, *, like: str | None = None, **changes: Any) -> Family:
    """A family that reads samples of sound."""
    lengths = along("input_values", called="samples")
    return Family(name, "audio", model(kind, config, **CONVOLUTIONS | changes), sound, lengths, like=like)


def spectrum_and_tokens(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A log-mel spectrum of fixed length, and the tokens so far."""
    return {
        "input_features": torch.randn(batch, 16, 40, generator=generator),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (batch, length), generator=generator),
    }


def text_and_images() -> Inputs:
    """As many texts as images."""
    return lambda batch, length, generator: {
        **tokens("input_ids")(batch, length, generator),
        **images(16)(batch, length, generator),
    }


TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TEXT_TOWER: dict[str, Any] = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 40, "eos_token_id": 2}
FAMILIES = (
    vision("ViT", "ViTForImageClassification", "ViTConfig", **PATCHES),
    vision("DeiT", "DeiTForImageClassification", "DeiTConfig", like="ViT", **PATCHES),
    vision("BEiT", "BeitForImageClassification", "BeitConfig", like="ViT", **PATCHES, vocab_size=VOCABULARY),
    vision("DINOv2", "Dinov2Model", "Dinov2Config", like="ViT", **PATCHES),
    vision(
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        size=32,
        image_size=32,
        patch_size=4,
        embed_dim=32,
        depths=[1, 1],
        num_heads=[2, 4],
        window_size=4,
        hidden_size=None,
        num_hidden_layers=None,
        num_attention_heads=None,
    ),
    vision(
        "ConvNeXt",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        size=32,
        hidden_sizes=[32, 32, 64, 64],
        depths=[1, 1, 1, 1],
        **NOTHING | {"num_labels": CLASSES},
    ),
    vision(
        "ResNet",
        "ResNetForImageClassification",
        "ResNetConfig",
        size=32,
        embedding_size=16,
        hidden_sizes=[16, 24],
        depths=[1, 1],
    ),
    vision(
        "SegFormer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        size=32,
        depths=[1, 1],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        hidden_sizes=[32, 64],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        decoder_hidden_size=64,
    ),
    vision("SigLIP vision", "SiglipVisionModel", "SiglipVisionConfig", like="ViT", **PATCHES),
    Family(
        "CLIP",
        "vision",
        model(
            "CLIPModel",
            "CLIPConfig",
            **NOTHING,
            max_position_embeddings=None,
            text_config=TEXT_TOWER,
            vision_config=TOWER | PATCHES,
            projection_dim=64,
        ),
        text_and_images(),
        along("input_ids", "attention_mask"),
    ),
    speech("Wav2Vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config"),
    speech("HuBERT", "HubertModel", "HubertConfig", like="Wav2Vec2"),
    Family(
        "Whisper",
        "audio",
        model(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **SEQ2SEQ | {"max_position_embeddings": None, "hidden_size": None},
            num_mel_bins=16,
            max_source_positions=20,
            max_target_positions=40,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        spectrum_and_tokens,
        along("decoder_input_ids", called="target"),
    ),
)
