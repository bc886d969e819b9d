"""The decoder's forward pass over a laid-out step.

Shapes: N rows of the step, h hidden size, H query heads, K key-value heads, d head dim, G = H / K.

Small models serve an adapter merged into a copy of their weights: low-rank products would cost a
tenth of the engine's CPU time (measured with 0.6 and 4 million parameters, ranks 16 and 8), and a
merge costs less than a step. A large model would need its own size again for each adapter and
gains less: there the rows of all adapters share one product, and low ranks are added by rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from turnwise.modeling.adapters import AdapterFiles
from turnwise.sampling.architecture import Architecture, LayerWeights, ModelWeights, Weights
from turnwise.sampling.cache import KvCache
from turnwise.sampling.layout import BLOCK, Group, Layout
from turnwise.sampling.linear import Linear, packing_works
from turnwise.sampling.lora import LayerLora, LowRank, fit

#: The front of the cache is read to its very end if that is at most this many times what is
#: needed: one unbroken stretch of memory is read faster than pieces of it.
_FULL_READ = 1.6
#: Adapters are merged into models of at most so many weights in their layers (64 MB in fp32).
MERGED_WEIGHTS = 1 << 24
#: Attention over at most so many scores is computed as two batched products on a CPU.
_PLAIN_SCORES = 1 << 17


@dataclass(frozen=True, slots=True)
class _Linears:
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter made ready: either merged, a layer's linears with it, or the low ranks alone."""

    layers: Sequence[_Linears | LayerLora]


@dataclass(frozen=True, slots=True)
class _Attend:
    """A `Group` as tensors; places and rows as a slice where they are neighbours in order."""

    rows: Tensor | slice  # [b * w]
    places: Tensor | slice
    mask: Tensor  # [b, 1, 1 or G * w, keys], 0 or -inf
    size: tuple[int, int]  # b, w
    keys: int
    plain: bool  # two batched products instead of the fused kernel


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers share."""

    rotation: Tensor  # [N, 1, d / 2] complex
    kv_rows: Tensor
    groups: tuple[_Attend, ...]
    attended: Tensor | slice
    segments: tuple[tuple[int, int, Adapter | None], ...]


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
        self._eps = torch.tensor(architecture.norm_eps, dtype=self.dtype, device=self.device)
        self._packs = self.device.type == "cpu" and packing_works(_shapes(weights))
        self._merges = _num_weights(weights) <= MERGED_WEIGHTS
        self._base = [self._linears(layer) for layer in weights.layers]
        self._qk_norms = [layer.qk_norm for layer in weights.layers]
        self._head = self._linear(weights.head)
        self._norms = [(layer.input_norm, layer.mlp_norm) for layer in weights.layers]
        self._unmerged = weights.layers if self._merges else ()
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

    @torch.inference_mode()
    def adapter(self, files: AdapterFiles) -> Adapter:
        """Make an adapter ready for `forward`. Raises `InvalidInput` if it does not fit."""
        lora = fit(files, self.architecture, self._norms)
        if not self._merges:
            return Adapter(lora.layers)
        layers = zip(self._unmerged, self._base, lora.layers, strict=True)
        return Adapter([self._merged(*layer) for layer in layers])

    def forward(self, layout: Layout, cache: KvCache, adapters: Mapping[int, Adapter]) -> Tensor:
        """Logits of `layout.samples`, [n, V]; writes the rows' KV into the cache.

        In deterministic mode n is rounded up to whole blocks; the rows past the end mean nothing.
        """
        cache.make_room(max(group.keys for group in layout.groups))
        step = self._prepare(layout, cache, adapters)
        x = self._embedding[self._tensor(layout.tokens)]
        for index in range(len(self._base)):
            x = self._layer(index, x, cache, step)
        return self._head(self._norm(x[self._sample_rows(layout)]))

    def _layer(self, index: int, x: Tensor, cache: KvCache, step: _Step) -> Tensor:
        def project(name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
            base: Linear = getattr(self._base[index], name)
            parts = [
                (start, end, None if adapter is None else getattr(adapter.layers[index], name))
                for start, end, adapter in step.segments
            ]
            if self._merges:
                return _by_parts(base, parts, x, residual)
            return self._with_low_ranks(base, parts, x, residual)

        qkv = project("qkv", self._norm(x))
        x = project("o", self._attention(qkv, self._qk_norms[index], cache.layer(index), step), x)
        gate, up = project("gate_up", self._norm(x)).chunk(2, -1)
        return project("down", F.silu(gate).mul_(up), x)

    def _with_low_ranks(
        self,
        base: Linear,
        parts: Sequence[tuple[int, int, LowRank | None]],
        x: Tensor,
        residual: Tensor | None,
    ) -> Tensor:
        """All rows by one product, then what each part's adapter adds."""
        y = base(x, residual)
        for start, end, low_rank in parts:
            if low_rank is None:
                continue
            step = BLOCK if self._fixed else end - start
            for at in range(start, end, step):
                low_rank.add_to(y[at : at + step], x[at : at + step])
        return y

    def _attention(self, qkv: Tensor, qk_norm: Tensor | None, kv: Tensor, step: _Step) -> Tensor:
        """[N, (H + 2K) d] -> [N, H d], writing keys and values to the layer's cache."""
        shape = self.architecture
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        qkv = qkv.view(len(qkv), -1, dim)
        qk, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if qk_norm is not None:
            qk = self._norm(qk).mul_(qk_norm)
        turned = torch.view_as_complex(torch.unflatten(qk.float(), -1, (-1, 2))) * step.rotation
        qk = torch.view_as_real(turned).flatten(-2).to(qkv.dtype)
        new = torch.cat([qk[:, heads:], value], 1)
        kv.view(-1, dim).index_copy_(0, step.kv_rows, new.view(-1, dim))
        query = qk[:, :heads]
        parts = [self._attend(query[group.rows], kv, group) for group in step.groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[step.attended]

    def _attend(self, query: Tensor, kv: Tensor, group: _Attend) -> Tensor:
        """One group's queries [b * w, H, d] -> [b * w, H d]."""
        (count, width), kv_heads = group.size, self.architecture.num_kv_heads
        keys, values = _take(kv, group)
        # Queries that share a key head go one after the other: [b, K, G * w, d].
        query = query.reshape(count, width, kv_heads, -1, query.shape[-1])
        shared = query.shape[3]
        query = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        if group.plain:
            scores = torch.matmul(query, keys.transpose(-1, -2)).add_(group.mask)
            out = torch.matmul(scores.softmax(-1), values)
        else:
            out = F.scaled_dot_product_attention(query, keys, values, group.mask, scale=1.0)
        out = torch.unflatten(out, 2, (shared, width)).permute(0, 3, 1, 2, 4)
        return out.reshape(count * width, -1)

    def _norm(self, x: Tensor) -> Tensor:
        """Root mean square 1 over the last dimension."""
        size = x.shape[-1]
        if self.dtype is not torch.float32:
            return F.rms_norm(x, (size,), None, self.architecture.norm_eps)
        # On a CPU this is half of what `F.rms_norm` costs.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self._eps, length, length, value=1 / size).rsqrt_()

    def _sample_rows(self, layout: Layout) -> Tensor:
        rows = self._tensor(layout.samples)
        return F.pad(rows, (0, -len(rows) % BLOCK)) if self._fixed else rows

    def _prepare(self, layout: Layout, cache: KvCache, adapters: Mapping[int, Adapter]) -> _Step:
        positions = self._tensor(layout.positions)
        longest = int(layout.positions.max()) + 1
        if longest > len(self._rotations):
            self._rotations = self._make_rotations(2 * longest)
        segments = [(part.start, part.end, adapters.get(part.key)) for part in layout.segments]
        start, _, last = segments[-1]
        segments[-1] = (start, len(positions), last)  # and the padding
        return _Step(
            rotation=self._rotations[positions],
            kv_rows=self._tensor(cache.rows(layout.places, layout.positions)),
            groups=tuple(self._group(group, cache) for group in layout.groups),
            attended=self._selector(layout.attended),
            segments=tuple(segments),
        )

    def _group(self, group: Group, cache: KvCache) -> _Attend:
        (count, width), keys = group.rows.shape, group.keys
        # Gathered keys round differently where their place depends on who else is there.
        places = self._tensor(group.places) if self._fixed else self._selector(group.places)
        if isinstance(places, slice) and keys * _FULL_READ >= cache.length:
            keys = cache.length
        shape = self.architecture
        scores = count * shape.num_heads * width * keys
        shared = shape.num_heads // shape.num_kv_heads if width > 1 else 1
        positions = np.tile(np.maximum(group.positions, 0), shared)
        hidden = np.arange(keys) > positions[:, None, :, None]
        mask = self._tensor(np.where(hidden, np.float32("-inf"), np.float32(0)))
        return _Attend(
            rows=self._selector(group.rows.ravel()),
            places=places,
            mask=mask.to(self.dtype),
            size=(count, width),
            keys=keys,
            plain=self.device.type == "cpu"
            and (width == 1 or (scores <= _PLAIN_SCORES and not self._fixed)),
        )

    def _linears(self, layer: LayerWeights) -> _Linears:
        linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
        return _Linears(*(self._linear(linear) for linear in linears))

    def _linear(self, weights: Weights) -> Linear:
        block = BLOCK if self._fixed else 0
        return Linear(weights.weight, weights.bias, pack=self._packs, block=block)

    def _merged(self, weights: LayerWeights, base: _Linears, lora: LayerLora) -> _Linears:
        return _Linears(
            qkv=self._with(lora.qkv, weights.qkv, base.qkv),
            o=self._with(lora.o, weights.o, base.o),
            gate_up=self._with(lora.gate_up, weights.gate_up, base.gate_up),
            down=self._with(lora.down, weights.down, base.down),
        )

    def _with(self, low_rank: LowRank | None, weights: Weights, base: Linear) -> Linear:
        if low_rank is None:
            return base
        return self._linear(Weights(weights.weight + low_rank.delta, weights.bias))

    def _make_rotations(self, length: int) -> Tensor:
        positions = torch.arange(length, dtype=torch.float32, device=self.device)
        angles = positions[:, None] * self._frequencies
        turns = torch.polar(torch.full_like(angles, self._rotary_scale), angles)
        return turns[:, None, :]

    def _selector(self, indices: np.ndarray) -> Tensor | slice:
        """A slice, which copies nothing, where the indices are neighbours in order."""
        first, count = int(indices[0]), len(indices)
        if (indices == np.arange(first, first + count)).all():
            return slice(first, first + count)
        return self._tensor(indices)

    def _tensor(self, array: object) -> Tensor:
        return torch.as_tensor(array, device=self.device)


def _by_parts(
    base: Linear,
    parts: Sequence[tuple[int, int, Linear | None]],
    x: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """Each part's rows by its adapter's own linear."""
    if len(parts) == 1:
        return (parts[0][2] or base)(x, residual)
    products = [
        (linear or base)(x[start:end], None if residual is None else residual[start:end])
        for start, end, linear in parts
    ]
    return torch.cat(products)


def _take(kv: Tensor, group: _Attend) -> tuple[Tensor, Tensor]:
    """A group's keys and values, [b, K, keys, d] each."""
    kv = kv[:, :, :, : group.keys]
    if isinstance(group.places, slice):
        return kv[0, group.places], kv[1, group.places]
    return kv[0].index_select(0, group.places), kv[1].index_select(0, group.places)


def _num_weights(weights: ModelWeights) -> int:
    layers = [(layer.qkv, layer.o, layer.gate_up, layer.down) for layer in weights.layers]
    return sum(linear.weight.numel() for layer in layers for linear in layer)


def _shapes(weights: ModelWeights) -> list[tuple[int, int]]:
    layer = weights.layers[0]
    linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
    return [(len(linear.weight), linear.weight.shape[1]) for linear in linears]
