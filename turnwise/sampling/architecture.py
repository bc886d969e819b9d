"""Which models the engine can run, and their weights as it wants them.

Dense decoders of the Llama family: Llama, Qwen2, Qwen3. Anything that would be computed wrongly
is refused by the name of its configuration field.

Rotary embeddings turn pairs of channels (i, i + dim / 2). The engine stores the two of a pair side
by side, so that turning is one complex product; attention does not mind, for queries and keys are
permuted alike. The factor 1 / sqrt(dim) of attention is folded into what makes the queries, and
the weight of a norm into the linear that reads its output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from turnwise import errors

_MODEL_TYPES = ("llama", "qwen2", "qwen3")
#: Rotary variants whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder's shape."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    qk_norm: bool

    @property
    def scale(self) -> float:
        """What attention multiplies queries by."""
        return float(self.head_dim**-0.5)

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output features of the query, key and value projections."""
        kv = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv, kv

    def rotary_order(self, weight: Tensor) -> Tensor:
        """Rows [heads * dim, ...], each head's channels reordered: 0, dim/2, 1, dim/2 + 1 ..."""
        halves = torch.unflatten(weight, 0, (-1, 2, self.head_dim // 2))
        return halves.transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear layer's, in the engine's order."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `qk_norm` is [heads + kv_heads, dim], absent where there is none.

    The other norms are already in `qkv` and `gate_up`; an adapter of these needs them as well.
    """

    input_norm: Tensor
    qkv: Weights
    qk_norm: Tensor | None
    o: Weights
    mlp_norm: Tensor
    gate_up: Weights
    down: Weights


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A decoder, taken apart."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    head: Weights
    inverse_frequencies: Tensor  # [dim / 2]
    rotary_scale: float


def read_architecture(config: PreTrainedConfig) -> Architecture:
    """The shape of a supported model. Raises `InvalidInput` naming the field that is not."""
    _check(config.model_type in _MODEL_TYPES, "model_type", config.model_type, _MODEL_TYPES)
    _check(config.hidden_act == "silu", "hidden_act", config.hidden_act, ("silu",))
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    _check(rope_type in _ROPE_TYPES, "rope_parameters.rope_type", rope_type, _ROPE_TYPES)
    partial = rope.get("partial_rotary_factor", 1.0)
    _check(partial == 1.0, "rope_parameters.partial_rotary_factor", partial, (1.0,))
    # Transformers clears `sliding_window` where a configuration switches it off.
    window = getattr(config, "sliding_window", None)
    _check(window is None, "sliding_window", window, (None,))
    quantized = getattr(config, "quantization_config", None)
    _check(quantized is None, "quantization_config", quantized, (None,))
    heads = config.num_attention_heads
    return Architecture(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        qk_norm=config.model_type == "qwen3",
    )


def take_apart(model: PreTrainedModel, architecture: Architecture) -> ModelWeights:
    """The weights of a loaded model in the engine's order."""
    decoder: Any = model.model
    return ModelWeights(
        embedding=decoder.embed_tokens.weight.detach(),
        layers=tuple(_layer(layer, architecture) for layer in decoder.layers),
        head=_after_norm(_linear(model.lm_head), decoder.norm),
        inverse_frequencies=decoder.rotary_emb.inv_freq.float(),
        rotary_scale=float(decoder.rotary_emb.attention_scaling),
    )


def _check(supported: bool, field: str, value: object, choices: tuple[object, ...]) -> None:
    if not supported:
        raise errors.InvalidInput(
            f"model {field}",
            value,
            "is not supported by the embedded engine",
            remedy=f"it can do {', '.join(map(str, choices))}; serve other models with vLLM",
        )


def _layer(layer: Any, architecture: Architecture) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    norms = None
    query_scale = architecture.scale
    if architecture.qk_norm:
        # The norm would undo a scale of its input; it goes into the norm's own weight.
        norms = _qk_norm(attention, architecture)
        query_scale = 1.0
    query = _rotary(_linear(attention.q_proj), architecture, query_scale)
    key = _rotary(_linear(attention.k_proj), architecture, 1.0)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_after_norm(_joined(query, key, _linear(attention.v_proj)), layer.input_layernorm),
        qk_norm=norms,
        o=_linear(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_after_norm(
            _joined(_linear(mlp.gate_proj), _linear(mlp.up_proj)), layer.post_attention_layernorm
        ),
        down=_linear(mlp.down_proj),
    )


def _qk_norm(attention: Any, architecture: Architecture) -> Tensor:
    query = architecture.rotary_order(attention.q_norm.weight.detach()) * architecture.scale
    key = architecture.rotary_order(attention.k_norm.weight.detach())
    shares = torch.tensor([architecture.num_heads, architecture.num_kv_heads], device=key.device)
    return torch.stack([query, key]).repeat_interleave(shares, 0)


def _linear(module: Any) -> Weights:
    bias = module.bias
    return Weights(module.weight.detach(), None if bias is None else bias.detach())


def _after_norm(weights: Weights, norm: Any) -> Weights:
    return Weights(weights.weight * norm.weight.detach(), weights.bias)


def _rotary(weights: Weights, architecture: Architecture, scale: float) -> Weights:
    weight = architecture.rotary_order(weights.weight) * scale
    if weights.bias is None:
        return Weights(weight, None)
    return Weights(weight, architecture.rotary_order(weights.bias) * scale)


def _joined(*parts: Weights) -> Weights:
    biases = [
        part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias
        for part in parts
    ]
    has_bias = any(part.bias is not None for part in parts)
    weight = torch.cat([part.weight for part in parts])
    return Weights(weight, torch.cat(biases) if has_bias else None)
