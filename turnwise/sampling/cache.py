"""The KV cache's tensors. Which slot holds what is `slots`' business."""

from __future__ import annotations

import torch
from torch import Tensor

#: The slab's length is a multiple of this, and grows by an eighth at least. Growing copies what is
#: cached, so steps are not tiny; room that nobody uses slows attention down, so they are not huge.
_GROWTH = 32


class KvCache:
    """Keys and values of S slots and one scratch slot, `[layers, 2, S + 1, heads, length, dim]`.

    A slot's positions are contiguous per head, so that decoding reads memory in order. `length`
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
        """Positions that a slot has room for now."""
        return self._slab.shape[4]

    def make_room(self, length: int) -> None:
        """Grow so that every slot has room for `length` positions."""
        if length <= self.length:
            return
        shape = list(self._slab.shape)
        length = max(length, self.length * 9 // 8)
        shape[4] = -(-length // _GROWTH) * _GROWTH
        grown = self._slab.new_zeros(shape)
        grown[..., : self.length, :] = self._slab
        self._slab = grown

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first positions to another slot, in all layers."""
        self._slab[:, :, target, :, :length] = self._slab[:, :, source, :, :length]

    def layer(self, index: int) -> Tensor:
        """Keys and values of a layer, `[2, S + 1, heads, length, dim]`."""
        return self._slab[index]

    def rows(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where N tokens' keys, then values, go in a layer seen as `[-1, dim]`: [N * 2 * heads]."""
        _, two, num_slots, num_heads, length, _ = self._slab.shape
        lanes = torch.arange(two * num_heads, device=slots.device)
        which, head = lanes // num_heads, lanes % num_heads
        rows = (which * num_slots + slots[:, None]) * num_heads + head
        return (rows * length + positions[:, None]).view(-1)
