"""Attention over a trie of rows: each token sees the tokens of its own rows before it.

Handed to transformers as an attention function of its own, so that a model's own code computes
the rest. Without a layout it is torch's causal attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from turnwise.rl.trie import Segment, depths, untils

_NAME = "turnwise_trie"

# How far two ways to compute the same hidden state may be apart, as a share of it.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 1e-1}

# torch's causal attention on the CPU, with the log of each query's normaliser beside its output.
# Heads of keys and values may be fewer than those of queries.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Layout:
    """A trie on a device, as the layers of one forward pass need it."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.depths = torch.from_numpy(depths(segments)).to(device)[None]  # [1, T]

    @cached_property
    def block_mask(self) -> BlockMask:
        """Which keys a query sees, for flex attention: its own and those it follows from."""
        device, size = self.depths.device, self.depths.shape[1]
        ends = torch.from_numpy(untils(self.segments)).to(device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[key])

        return create_block_mask(sees, None, None, size, size, device=str(device))


def trie_attention(
    query: Tensor,  # [1, heads, T, d]
    key: Tensor,  # [1, kv heads, T, d]
    value: Tensor,  # [1, kv heads, T, d]
    layout: Layout,
    scale: float,
) -> Tensor:
    """Attention of each token over its own rows up to itself, [1, heads, T, d]."""
    if query.device.type == "cpu":
        query, key, value = (_last_dense(t) for t in (query, key, value))
        out = _TrieAttention.apply(query, key, value, layout.segments, scale)  # type: ignore[no-untyped-call]
    else:
        out = _flex()(query, key, value, block_mask=layout.block_mask, scale=scale, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out


def install(model: PreTrainedModel) -> bool:
    """Have a model attend by `trie_attention` where it is given a `trie`; whether it can.

    It cannot if a layer's window slides, or if two rows do not come out of a trie as they do alone
    (a model with attention of its own): then it is left as it was.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False
    if not model._supports_attention_backend:
        return False
    AttentionInterface.register(_NAME, _forward)
    before = config._attn_implementation
    model.set_attn_implementation(_NAME)
    if _reads_tries(model):
        return True
    model.set_attn_implementation(before)
    return False


@torch.no_grad()
def _reads_tries(model: PreTrainedModel) -> bool:
    """Whether two rows come out of a trie as they do alone."""
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]], device=model.device)
    together = Layout(
        [
            Segment(start=0, end=2, until=6, depth=0),
            Segment(start=2, end=4, until=4, depth=2),
            Segment(start=4, end=6, until=6, depth=2),
        ],
        model.device,
    )
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    alone = decoder(input_ids=rows, use_cache=False).last_hidden_state
    found = decoder(
        input_ids=torch.cat([rows[0], rows[1, 2:]])[None],
        position_ids=together.depths,
        trie=together,
        use_cache=False,
    ).last_hidden_state[0]
    expected = torch.cat([alone[0], alone[1, 2:]])
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool(apart.max() <= _ROUNDING[found.dtype])


def _forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trie: Layout | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls; the output is [batch, T, heads, d]."""
    if trie is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    scale = scaling or query.shape[-1] ** -0.5
    return trie_attention(query, key, value, trie, scale).transpose(1, 2), None


class _TrieAttention(torch.autograd.Function):
    """Segment by segment: its own tokens causally, then all that follow from it over all of it.

    A token's softmax over its path is put together from those over the path's segments by their
    normalisers. Backward, each part gives its exact share once it is told the whole output and
    normaliser. So there is no mask, and nothing is computed that a mask would discard. Parts by
    normaliser: https://arxiv.org/abs/2205.14135.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment], scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        normaliser = torch.empty(q.shape[:3], dtype=q.dtype)
        for segment in segments:
            own = slice(segment.start, segment.end)
            out[:, :, own], normaliser[:, :, own] = _attend(
                q[:, :, own], k[:, :, own], v[:, :, own], 0.0, True, scale=scale
            )
        for segment in _shared(segments):
            own, after = slice(segment.start, segment.end), slice(segment.end, segment.until)
            part, part_normaliser = _attend(
                q[:, :, after], k[:, :, own], v[:, :, own], 0.0, False, scale=scale
            )
            present = normaliser[:, :, after]
            share = torch.sigmoid(part_normaliser - present)
            out[:, :, after].lerp_(part, share[..., None])
            torch.logaddexp(present, part_normaliser, out=present)
        ctx.save_for_backward(q, k, v, out, normaliser)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, normaliser = ctx.saved_tensors
        (grad,) = grads
        found = tuple(torch.empty_like(t) for t in (q, k, v))

        def part(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, ...]:
            shares: tuple[Tensor, ...] = _attend_backward(
                grad[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                normaliser[:, :, queries],
                0.0,
                causal,
                scale=ctx.scale,
            )
            return shares

        for segment in ctx.segments:
            own = slice(segment.start, segment.end)
            for whole, share in zip(found, part(own, own, True), strict=True):
                whole[:, :, own] = share
        for segment in _shared(ctx.segments):
            own, after = slice(segment.start, segment.end), slice(segment.end, segment.until)
            shares = part(after, own, False)
            for whole, at, share in zip(found, (after, own, own), shares, strict=True):
                whole[:, :, at] += share
        return *found, None, None


def _last_dense(tensor: Tensor) -> Tensor:
    """The tensor, copied unless a head's numbers lie side by side, as the kernel assumes."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _shared(segments: Sequence[Segment]) -> list[Segment]:
    """Those that others follow from."""
    return [segment for segment in segments if segment.until > segment.end]


@lru_cache(maxsize=1)
def _flex() -> Callable[..., Tensor]:
    # Tries differ in size from pass to pass.
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled
