"""Tiny random models for tests, made from a config: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_MODELS = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
}


def save_tiny_model(
    folder: Path,
    architecture: str = "qwen3",
    *,
    seed: int = 0,
    vocab_size: int = 512,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tie: bool = True,
) -> Path:
    """Write a random fp32 model (no tokenizer) as a Hugging Face folder; the folder."""
    config_class, model_class, extra = _MODELS[architecture]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tie,
        # The default 0.02 leaves a tiny model nearly uniform; 0.1 gives peaked distributions,
        # so that a wrong mask or position shows in the logprobs.
        initializer_range=0.1,
        **extra,
    )
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    return folder
