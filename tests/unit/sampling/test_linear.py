from __future__ import annotations

import torch
from torch.nn import functional as F

from turnwise.sampling.linear import Linear, packing_works


def weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 32, generator=generator), torch.randn(48, generator=generator)


def test_packed_and_plain_products_agree() -> None:
    assert packing_works([(48, 32)])
    weight, bias = weights()
    x, residual = torch.randn(5, 32), torch.randn(5, 48)
    for pack in (True, False):
        linear = Linear(weight, bias, pack=pack)
        torch.testing.assert_close(linear(x), F.linear(x, weight, bias))
        torch.testing.assert_close(linear(x, residual), F.linear(x, weight, bias) + residual)


def test_with_fixed_rows_a_row_has_the_same_bits_wherever_it_stands() -> None:
    weight, bias = weights()
    linear = Linear(weight, bias, pack=True, block=8)
    x = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    expected = linear(x)[order]
    assert torch.equal(linear(x[order]), expected)
    assert torch.equal(linear(x[order][:8]), expected[:8])
