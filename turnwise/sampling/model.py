"""The decoder's forward pass over a laid-out step.

Shapes: N rows of the step, h hidden size, H query heads, K key-value heads, d head dim, G = H / K.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from turnwise.sampling.architecture import Architecture, LayerWeights, ModelWeights, Weights
from turnwise.sampling.cache import KvCache
from turnwise.sampling.layout import BLOCK, Group, Layout
from turnwise.sampling.linear import Linear, packing_works
from turnwise.sampling.lora import Lora, LowRank

#: Neighbouring slots are read to their very end if that is at most this many times what is needed:
#: one unbroken stretch of memory is read twice as fast as pieces of it.
_FULL_READ = 1.75


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class _Attend:
    """A `Group` as tensors; its slots as a slice where they are neighbours in order."""

    rows: Tensor  # [b * w]
    slots: Tensor | slice
    mask: Tensor  # [b, 1, 1 or w, keys], 0 or -inf
    size: tuple[int, int]  # b, w
    keys: int
    leading: bool  # the rows are 0 .. b * w - 1


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers share."""

    rotation: Tensor  # [N, 1, d / 2] complex
    kv_rows: Tensor
    groups: tuple[_Attend, ...]
    segments: tuple[tuple[int, int, Lora], ...]


class Decoder:
    """A dense decoder with its weights packed. Not a module: inference only.

    With `fixed` (deterministic mode) every product has `BLOCK` rows.
    """

    def __init__(self, weights: ModelWeights, architecture: Architecture, *, fixed: bool) -> None:
        self.architecture = architecture
        self._fixed = fixed
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        self._embedding = weights.embedding
        self._final_norm = weights.final_norm
        pack = self.device.type == "cpu" and packing_works(_shapes(weights))
        block = BLOCK if fixed else 0
        self._layers = [_packed(layer, pack=pack, block=block) for layer in weights.layers]
        self._head = _linear(weights.head, pack=pack, block=block)
        self._frequencies = weights.inverse_frequencies
        self._rotary_scale = weights.rotary_scale
        self._rotations = self._make_rotations(1024)

    def new_cache(self, num_slots: int) -> KvCache:
        """An empty cache for this model."""
        shape = self.architecture
        return KvCache(
            num_layers=shape.num_layers,
            num_slots=num_slots,
            num_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(self, layout: Layout, cache: KvCache, loras: Mapping[int, Lora]) -> Tensor:
        """Logits of `layout.samples`, [n, V]; writes the rows' KV into the cache.

        In deterministic mode n is rounded up to whole blocks; the rows past the end mean nothing.
        """
        cache.make_room(max(group.keys for group in layout.groups))
        step = self._prepare(layout, cache, loras)
        x = self._embedding[self._tensor(layout.tokens)]
        for index, layer in enumerate(self._layers):
            x = self._layer(index, layer, x, cache, step)
        x = self._norm(x[self._sample_rows(layout)], self._final_norm)
        return self._head(x)

    def _layer(self, index: int, layer: _Layer, x: Tensor, cache: KvCache, step: _Step) -> Tensor:
        loras = [(start, end, lora.layers[index]) for start, end, lora in step.segments]
        h = self._norm(x, layer.input_norm)
        qkv = layer.qkv(h)
        self._adapt(qkv, h, [(s, e, lora.qkv) for s, e, lora in loras])
        h = self._attention(qkv, layer.qk_norm, cache.layer(index), step)
        x = layer.o(h, x)
        self._adapt(x, h, [(s, e, lora.o) for s, e, lora in loras])
        h = self._norm(x, layer.mlp_norm)
        gate_up = layer.gate_up(h)
        self._adapt(gate_up, h, [(s, e, lora.gate_up) for s, e, lora in loras])
        gate, up = gate_up.chunk(2, -1)
        h = F.silu(gate).mul_(up)
        x = layer.down(h, x)
        self._adapt(x, h, [(s, e, lora.down) for s, e, lora in loras])
        return x

    def _adapt(self, y: Tensor, x: Tensor, parts: list[tuple[int, int, LowRank | None]]) -> None:
        for start, end, low_rank in parts:
            if low_rank is None:
                continue
            step = BLOCK if self._fixed else end - start
            for at in range(start, end, step):
                low_rank.add_to(y[at : at + step], x[at : at + step])

    def _attention(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor, step: _Step) -> Tensor:
        """[N, (H + 2K) d] -> [N, H d], writing keys and values to the layer's cache."""
        shape = self.architecture
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        qkv = qkv.view(len(qkv), -1, dim)
        qk, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if qk_norm is not None:
            qk = self._norm(qk, None).mul_(qk_norm)
        turned = torch.view_as_complex(torch.unflatten(qk.float(), -1, (-1, 2))) * step.rotation
        qk = torch.view_as_real(turned).flatten(-2).to(qkv.dtype)
        new = torch.cat([qk[:, heads:], value], 1)
        kv.view(-1, dim).index_copy_(0, step.kv_rows, new.view(-1, dim))
        query = qk[:, :heads]
        if len(step.groups) == 1 and step.groups[0].leading and len(step.groups[0].rows) == len(qk):
            return self._attend(query, kv, step.groups[0])
        out = qkv.new_zeros(len(qkv), heads * dim)
        for group in step.groups:
            count = len(group.rows)
            rows = slice(0, count) if group.leading else group.rows
            out[rows] = self._attend(query[rows], kv, group)
        return out

    def _attend(self, query: Tensor, kv: Tensor, group: _Attend) -> Tensor:
        """One group's queries [b * w, H, d] -> [b * w, H d]."""
        (count, width), kv_heads = group.size, self.architecture.num_kv_heads
        keys, values = _take(kv[0], group), _take(kv[1], group)
        # Queries that share a key head go one after the other: [b, K, G * w, d].
        query = query.reshape(count, width, kv_heads, -1, query.shape[-1])
        shared = query.shape[3]
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask = group.mask
        if width == 1 and query.device.type == "cpu":
            # Faster than the fused kernel for few queries, see `benchmarks/engine.py`.
            scores = torch.matmul(query, keys.transpose(-1, -2)).add_(mask)
            out = torch.matmul(scores.softmax(-1), values)
        else:
            mask = mask.expand(count, 1, width, group.keys).repeat(1, 1, shared, 1)
            out = F.scaled_dot_product_attention(query, keys, values, mask, scale=1.0)
        out = torch.unflatten(out, 2, (shared, width)).permute(0, 3, 1, 2, 4)
        return out.reshape(count * width, -1)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.architecture.norm_eps)

    def _sample_rows(self, layout: Layout) -> Tensor:
        rows = self._tensor(layout.samples)
        return F.pad(rows, (0, -len(rows) % BLOCK)) if self._fixed else rows

    def _prepare(self, layout: Layout, cache: KvCache, loras: Mapping[int, Lora]) -> _Step:
        positions = self._tensor(layout.positions)
        longest = int(layout.positions.max()) + 1
        if longest > len(self._rotations):
            self._rotations = self._make_rotations(2 * longest)
        return _Step(
            rotation=self._rotations[positions],
            kv_rows=cache.rows(self._tensor(layout.slots), positions),
            groups=tuple(self._group(group, cache) for group in layout.groups),
            segments=tuple(
                (part.start, part.end, loras[part.key])
                for part in layout.segments
                if part.key in loras
            ),
        )

    def _group(self, group: Group, cache: KvCache) -> _Attend:
        positions = self._tensor(group.positions)
        first, count = int(group.slots[0]), len(group.slots)
        neighbours = not self._fixed and bool((np.diff(group.slots) == 1).all())
        keys = group.keys
        if neighbours and keys * _FULL_READ >= cache.length:
            keys = cache.length
        hidden = torch.arange(keys, device=self.device) > positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        rows = group.rows.reshape(-1)
        return _Attend(
            rows=self._tensor(rows),
            slots=slice(first, first + count) if neighbours else self._tensor(group.slots),
            mask=mask.masked_fill_(hidden, float("-inf")),
            size=(group.rows.shape[0], group.rows.shape[1]),
            keys=keys,
            leading=bool(rows[0] == 0 and (np.diff(rows) == 1).all()),
        )

    def _make_rotations(self, length: int) -> Tensor:
        positions = torch.arange(length, dtype=torch.float32, device=self.device)
        angles = positions[:, None] * self._frequencies
        turns = torch.polar(torch.full_like(angles, self._rotary_scale), angles)
        return turns[:, None, :]

    def _tensor(self, array: object) -> Tensor:
        return torch.as_tensor(array, device=self.device)


def _take(kv: Tensor, group: _Attend) -> Tensor:
    """A group's keys or values, [b, K, keys, d]."""
    if isinstance(group.slots, slice):
        return kv[group.slots, :, : group.keys]
    return kv[:, :, : group.keys].index_select(0, group.slots)


def _packed(layer: LayerWeights, *, pack: bool, block: int) -> _Layer:
    return _Layer(
        input_norm=layer.input_norm,
        qkv=_linear(layer.qkv, pack=pack, block=block),
        qk_norm=layer.qk_norm,
        o=_linear(layer.o, pack=pack, block=block),
        mlp_norm=layer.mlp_norm,
        gate_up=_linear(layer.gate_up, pack=pack, block=block),
        down=_linear(layer.down, pack=pack, block=block),
    )


def _linear(weights: Weights, *, pack: bool, block: int) -> Linear:
    return Linear(weights.weight, weights.bias, pack=pack, block=block)


def _shapes(weights: ModelWeights) -> list[tuple[int, int]]:
    layer = weights.layers[0]
    linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
    return [(len(linear.weight), linear.weight.shape[1]) for linear in linears]
