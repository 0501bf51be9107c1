"""Decoders, and encoders with decoders, from transformers; caches as they are by default."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from architectures.family import VOCABULARY, WIDTH, Family, along, tokens
from architectures.text import model

GROUP = "text generation"


def decoder(name: str, kind: str, config: str, *, like: str | None = None, **changes: Any) -> Family:
    """A family of decoders, over token ids and a mask."""
    lengths = along("input_ids", "attention_mask")
    return Family(name, GROUP, model(kind, config, **changes), tokens("input_ids"), lengths, like=like)


def pair(name: str, kind: str, config: str, *, like: str | None = None, **changes: Any) -> Family:
    """An encoder and a decoder, each over ids of its own length."""

    def inputs(batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        target = torch.randint(3, VOCABULARY, (batch, length - 4), generator=generator)
        return {**tokens("input_ids")(batch, length, generator), "decoder_input_ids": target}

    lengths = along("input_ids", "attention_mask") | along("decoder_input_ids", called="target")
    return Family(name, GROUP, model(kind, config, **SEQ2SEQ | changes), inputs, lengths, like=like)


HEADS = {"num_key_value_heads": 2}
MOE: dict[str, Any] = {**HEADS, "num_experts_per_tok": 2}
SEQ2SEQ: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "decoder_start_token_id": 2,
    "num_labels": None,
}

MAMBA = model("MambaForCausalLM", "MambaConfig", state_size=4, use_mambapy=False)

FAMILIES = (
    decoder("GPT-2", "GPT2LMHeadModel", "GPT2Config", n_embd=WIDTH, n_layer=1, n_head=4, n_positions=40),
    decoder("OPT", "OPTForCausalLM", "OPTConfig", like="GPT-2", ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH),
    decoder(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        like="GPT-2",
        num_layers=1,
        num_heads=4,
        attention_types=[[["global"], 1]],
    ),
    decoder("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", like="Llama"),
    decoder("Llama", "LlamaForCausalLM", "LlamaConfig", **HEADS),
    decoder("Mistral", "MistralForCausalLM", "MistralConfig", like="Llama", **HEADS),
    decoder("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", like="Llama", **HEADS),
    decoder("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", like="Llama", **HEADS, head_dim=16),
    decoder(
        "Qwen2-MoE",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **MOE,
        num_experts=4,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=2 * WIDTH,
    ),
    decoder("Mixtral", "MixtralForCausalLM", "MixtralConfig", like="Qwen2-MoE", **MOE, num_local_experts=4),
    decoder(
        "DBRX",
        "DbrxForCausalLM",
        "DbrxConfig",
        like="Qwen2-MoE",
        d_model=WIDTH,
        n_heads=4,
        n_layers=1,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    decoder("Phi", "PhiForCausalLM", "PhiConfig", like="Llama"),
    decoder("Gemma", "GemmaForCausalLM", "GemmaConfig", like="Llama", **HEADS, head_dim=16),
    decoder("Falcon", "FalconForCausalLM", "FalconConfig"),
    decoder("BLOOM", "BloomForCausalLM", "BloomConfig", n_layer=1, n_head=4),
    decoder("StableLM", "StableLmForCausalLM", "StableLmConfig", like="Llama", **HEADS),
    # its states are computed step by step in Python, so the graph has the number of steps of the example
    Family(
        "Mamba",
        GROUP,
        MAMBA,
        lambda batch, _, generator: tokens("input_ids", mask=None)(batch, 4, generator),
        {},
        like="Mamba, any length",
    ),
    Family(
        "Mamba, any length",
        GROUP,
        MAMBA,
        lambda batch, _, generator: tokens("input_ids", mask=None)(batch, 4, generator),
        along("input_ids"),
        refused="was to vary; the model fixes it at 4",
    ),
    pair(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        like="T5 encoder",
        d_ff=2 * WIDTH,
        d_kv=16,
        num_layers=1,
        num_heads=4,
        max_position_embeddings=None,
    ),
    pair("BART", "BartForConditionalGeneration", "BartConfig", forced_eos_token_id=2),
    pair("Pegasus", "PegasusForConditionalGeneration", "PegasusConfig", like="BART"),
    pair("M2M100", "M2M100ForConditionalGeneration", "M2M100Config", like="BART"),
    pair("Marian", "MarianMTModel", "MarianConfig", like="BART"),
)
