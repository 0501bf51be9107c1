"""Encoders of text from transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from architectures.family import CLASSES, VOCABULARY, WIDTH, Family, along, tokens

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "num_labels": CLASSES,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def model(kind: str, config: str, **changes: Any) -> Callable[[], nn.Module]:
    """A model of a class of transformers, by its configuration alone; None leaves a size out."""

    def make() -> nn.Module:
        import transformers

        sizes = {key: value for key, value in {**SIZES, **changes}.items() if value is not None}
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()

    return make


def encoder(name: str, kind: str, config: str, *, like: str | None = None, **changes: Any) -> Family:
    """A family of encoders."""
    lengths = along("input_ids", "attention_mask")
    return Family(name, "text", model(kind, config, **changes), tokens("input_ids"), lengths, like=like)


FAMILIES = (
    encoder("BERT", "BertForSequenceClassification", "BertConfig"),
    encoder("RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", like="BERT"),
    encoder(
        "DistilBERT",
        "DistilBertModel",
        "DistilBertConfig",
        like="BERT",
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        n_layers=1,
        n_heads=4,
    ),
    encoder("ALBERT", "AlbertModel", "AlbertConfig", embedding_size=32, num_hidden_layers=2),
    encoder("ELECTRA", "ElectraModel", "ElectraConfig", like="BERT", embedding_size=32),
    encoder(
        "DeBERTa-v2",
        "DebertaV2Model",
        "DebertaV2Config",
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    ),
    encoder("MPNet", "MPNetModel", "MPNetConfig", like="BERT"),
    encoder("XLM-RoBERTa", "XLMRobertaModel", "XLMRobertaConfig", like="BERT"),
    encoder("CamemBERT", "CamembertForTokenClassification", "CamembertConfig", like="BERT"),
    encoder("ModernBERT", "ModernBertModel", "ModernBertConfig", num_hidden_layers=2),
    encoder("RoFormer", "RoFormerModel", "RoFormerConfig", like="ESM"),
    encoder("ESM", "EsmModel", "EsmConfig", mask_token_id=3, position_embedding_type="rotary"),
    encoder(
        "MobileBERT", "MobileBertModel", "MobileBertConfig", like="BERT", embedding_size=32, intra_bottleneck_size=WIDTH
    ),
    encoder(
        "T5 encoder",
        "T5EncoderModel",
        "T5Config",
        d_model=WIDTH,
        d_ff=2 * WIDTH,
        d_kv=16,
        num_layers=1,
        num_heads=4,
        max_position_embeddings=None,
    ),
)
