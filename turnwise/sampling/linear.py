"""The engine's matrix products: packed for oneDNN where that works, with fixed rows on request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows for which oneDNN lays a packed weight out; other counts work too.
_PACKED_FOR_ROWS = 64
#: Weights of fewer elements are multiplied faster by plain BLAS: oneDNN takes some 10 microseconds
#: longer to start.
_WORTH_PACKING = 1 << 17


class Linear:
    """y = x W^T + bias [+ residual], for x [N, in], W [out, in].

    On the CPU, W is packed once for oneDNN (a private operator of torch: checked against
    `F.linear` by `packing_works`). With `block` > 0 every product has exactly that many rows (N
    must be a multiple), so that a row's result does not depend on how many others there are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, pack: bool, block: int = 0) -> None:
        self.out_features, self.in_features = weight.shape
        self._block = block
        self._bias = bias
        self._packed = pack and (block > 0 or weight.numel() >= _WORTH_PACKING)
        self._weight = weight.contiguous()
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(
                self._weight, block or _PACKED_FOR_ROWS
            )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, in], [N, out] -> [N, out]."""
        if not self._block or len(x) == self._block:
            return self._product(x, residual)
        parts = torch.split(x, self._block)
        if residual is None:
            return torch.cat([self._product(part, None) for part in parts])
        pairs = zip(parts, torch.split(residual, self._block), strict=True)
        return torch.cat([self._product(part, rest) for part, rest in pairs])

    def _product(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y: Tensor
        if not self._packed:
            if residual is not None and self._bias is None:
                return torch.addmm(residual, x, self._weight.t())
            y = F.linear(x, self._weight, self._bias)
            return y if residual is None else y.add_(residual)
        packed = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            y = packed(x, self._weight, self._bias, "none", [], "")
        else:
            y = packed.binary(x, residual, self._weight, self._bias, "add")
        return y


def packing_works(shapes: Sequence[tuple[int, int]]) -> bool:
    """Whether packed products equal `F.linear` for weights of these shapes [out, in], fp32, CPU."""
    try:
        return all(_packed_matches(*shape) for shape in sorted(set(shapes)))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # this build of torch has no such operator


def _packed_matches(out_features: int, in_features: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    linear = Linear(weight, bias, pack=True)
    for rows in (1, 7, 64):
        x = torch.randn(rows, in_features, generator=generator)
        expected = F.linear(x, weight, bias)
        residual = torch.randn(rows, out_features, generator=generator)
        # Sums of `in_features` products of unit normals: rounding grows with their root.
        tolerance = 1e-6 * in_features**0.5 * 8
        if not torch.allclose(linear(x), expected, rtol=1e-5, atol=tolerance):
            return False
        if not torch.allclose(linear(x, residual), expected + residual, rtol=1e-5, atol=tolerance):
            return False
    return True
