"""Adapters in the engine's order: one pair of matrices per fused linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from turnwise import errors
from turnwise.modeling.adapters import AdapterFiles
from turnwise.sampling.architecture import Architecture

_Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class LowRank:
    """y += (x a^T) b, with a [r, in], b [r, out]; b carries alpha / rank.

    Each is stored as its product reads it fastest on a CPU (rank 8: a half of the time).
    """

    a: Tensor
    b: Tensor

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """In place; [N, out], [N, in]."""
        y.addmm_(F.linear(x, self.a), self.b)

    @property
    def delta(self) -> Tensor:
        """What merging adds to the weight, [out, in]."""
        return self.b.t() @ self.a


@dataclass(frozen=True, slots=True)
class LayerLora:
    """One layer's; None where the adapter leaves a linear alone."""

    qkv: LowRank | None
    o: LowRank | None
    gate_up: LowRank | None
    down: LowRank | None


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter, one entry per layer."""

    layers: tuple[LayerLora, ...]


def fit(
    files: AdapterFiles, architecture: Architecture, norms: Sequence[tuple[Tensor, Tensor]]
) -> Lora:
    """An adapter in the engine's order. Raises `InvalidInput` if it does not fit the model.

    `norms` are each layer's two norm weights, which the engine has in the linears behind them.
    """
    pairs = dict(files.pairs())
    fitter = _Fitter(pairs, architecture, files.scaling, norms[0][0].dtype, norms[0][0].device)
    layers = tuple(fitter.layer(index, *both) for index, both in enumerate(norms))
    if pairs:
        raise errors.InvalidInput(
            "adapter target_modules",
            min(pairs),
            "is no linear of this model that the engine adapts",
            remedy="target attention and MLP projections only",
        )
    return Lora(layers)


class _Fitter:
    """Takes pairs out of the mapping as they find their place."""

    def __init__(
        self,
        pairs: dict[str, tuple[Tensor, Tensor]],
        architecture: Architecture,
        scaling: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._pairs = pairs
        self._shape = architecture
        self._scaling = scaling
        self._dtype = dtype
        self._device = device

    def layer(self, index: int, input_norm: Tensor, mlp_norm: Tensor) -> LayerLora:
        shape = self._shape
        hidden, wide = shape.hidden_size, shape.intermediate_size
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        query_size, key_size, value_size = shape.qkv_sizes
        query = self._pair(attention + "q_proj", hidden, query_size)
        key = self._pair(attention + "k_proj", hidden, key_size)
        value = self._pair(attention + "v_proj", hidden, value_size)
        query_scale = 1.0 if shape.qk_norm else shape.scale
        query = query and (query[0], shape.rotary_order(query[1]) * query_scale)
        key = key and (key[0], shape.rotary_order(key[1]))
        gate = self._pair(mlp + "gate_proj", hidden, wide)
        up = self._pair(mlp + "up_proj", hidden, wide)
        return LayerLora(
            qkv=self._fused((query, key, value), shape.qkv_sizes, input_norm),
            o=self._fused((self._pair(attention + "o_proj", query_size, hidden),), (hidden,)),
            gate_up=self._fused((gate, up), (wide, wide), mlp_norm),
            down=self._fused((self._pair(mlp + "down_proj", wide, hidden),), (hidden,)),
        )

    def _pair(
        self, module: str, in_features: int, out_features: int
    ) -> tuple[Tensor, Tensor] | None:
        pair = self._pairs.pop(module, None)
        if pair is None:
            return None
        found = (pair[0].shape[1], pair[1].shape[0])
        if found != (in_features, out_features):
            raise errors.InvalidInput(
                f"adapter {module}",
                found,
                f"does not fit the base model's linear of {(in_features, out_features)}",
                remedy="load an adapter that was trained on this base model",
            )
        return pair

    def _fused(
        self,
        parts: Sequence[tuple[Tensor, Tensor] | None],
        sizes: Sequence[int],
        norm: Tensor | None = None,
    ) -> LowRank | None:
        """A's stacked, B's on the block diagonal: two products for all parts."""
        present = [part for part in parts if part is not None]
        if not present:
            return None
        a = torch.cat([part[0] for part in present])
        b = a.new_zeros(len(a), sum(sizes))
        row = column = 0
        for part, size in zip(parts, sizes, strict=True):
            if part is not None:
                rank = part[1].shape[1]
                b[row : row + rank, column : column + size] = part[1].t() * self._scaling
                row += rank
            column += size
        if norm is not None:
            a = a * norm.to(a.device, a.dtype)
        return LowRank(*(x.to(self._device, self._dtype).contiguous() for x in (a, b)))
