"""The KV cache's tensors. Which slot holds what, and at which place, is `slots`' business."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from turnwise.sampling.slots import Exchange

Indices = npt.NDArray[np.int64]

#: The slab's length is a multiple of this, and grows by an eighth at least. Growing copies what is
#: cached, so steps are not tiny; room that nobody uses slows attention down, so they are not huge.
_GROWTH = 32


class KvCache:
    """Keys and values at S places and a scratch place, `[layers, 2, S + 1, heads, length, dim]`.

    A place's positions are contiguous per head, so that decoding reads memory in order. `length`
    grows to the longest sequence seen.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.scratch = num_slots
        shape = (num_layers, 2, num_slots + 1, num_heads, _GROWTH, head_dim)
        self._slab = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def length(self) -> int:
        """Positions that a place has room for now."""
        return self._slab.shape[4]

    def make_room(self, length: int) -> None:
        """Grow so that every place has room for `length` positions."""
        if length <= self.length:
            return
        shape = list(self._slab.shape)
        length = max(length, self.length * 9 // 8)
        shape[4] = -(-length // _GROWTH) * _GROWTH
        grown = self._slab.new_zeros(shape)
        grown[..., : self.length, :] = self._slab
        self._slab = grown

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a place's first positions to another place, in all layers."""
        self._slab[:, :, target, :, :length] = self._slab[:, :, source, :, :length]

    def exchange(self, two: Exchange) -> None:
        """Swap what two places hold, in all layers."""
        from_front = self._slab[:, :, two.front, :, : two.front_length].clone()
        self.copy(two.back, two.front, two.back_length)
        self._slab[:, :, two.back, :, : two.front_length] = from_front

    def layer(self, index: int) -> Tensor:
        """Keys and values of a layer, `[2, S + 1, heads, length, dim]`."""
        return self._slab[index]

    def rows(self, places: Indices, positions: Indices) -> Indices:
        """Where N tokens' keys, then values, go in a layer seen as `[-1, dim]`: [N * 2 * heads]."""
        _, two, num_places, num_heads, length, _ = self._slab.shape
        lanes = np.arange(two * num_heads)
        which, head = lanes // num_heads, lanes % num_heads
        rows = (which * num_places + places[:, None]) * num_heads + head
        return (rows * length + positions[:, None]).ravel()
