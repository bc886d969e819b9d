"""From logits to tokens: temperature, truncation, inverse-CDF sampling, and the logprobs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from turnwise.sampling.random import uniforms

#: The CDF is summed in blocks of this many tokens: first over blocks, then inside one. Summing
#: along a whole vocabulary is the slowest part of sampling on a CPU.
_CDF_BLOCK = 64
#: Up to here one search is as fast as two.
_SMALL_VOCAB = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """How each of R rows is to be sampled."""

    temperature: npt.NDArray[np.float32]  # [R]; 0 takes the argmax
    top_p: npt.NDArray[np.float32]  # [R]; 1 is off
    top_k: npt.NDArray[np.int64]  # [R]; 0 is off
    seeds: npt.NDArray[np.uint64]  # [R]
    counts: npt.NDArray[np.uint64]  # [R] tokens sampled before


def choose(logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """Tokens [R] (int64) and their logprobs [R] (float32) from logits [R, V].

    The logprob is that of design §4.7: temperature applied, before truncation; of the argmax at
    temperature 0 it is taken at temperature 1.
    """
    greedy = choice.temperature == 0
    temperature = np.where(greedy, np.float32(1), choice.temperature)
    logits = logits.float()
    if (temperature != 1).any():
        logits = logits / torch.from_numpy(temperature).to(logits.device)[:, None]
    probabilities = logits.softmax(-1)
    draws = torch.from_numpy(uniforms(choice.seeds, choice.counts)).to(logits.device)
    tokens = _inverse_cdf(probabilities, draws)
    truncated = ~greedy & ((choice.top_p < 1) | (choice.top_k > 0))
    if truncated.any():
        rows = torch.from_numpy(np.flatnonzero(truncated)).to(logits.device)
        tokens[rows] = _truncated(
            probabilities[rows],
            draws[rows],
            torch.from_numpy(choice.top_p[truncated]).to(logits.device),
            torch.from_numpy(choice.top_k[truncated]).to(logits.device),
        )
    if greedy.any():
        rows = torch.from_numpy(np.flatnonzero(greedy)).to(logits.device)
        tokens[rows] = logits[rows].argmax(-1)
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def _inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds draw * total; [R, V], [R] -> [R].

    A token of weight 0 is never taken, whatever the rounding.
    """
    vocab = weights.shape[1]
    if vocab <= _SMALL_VOCAB:
        return _search(weights, draws)[0]
    whole = vocab // _CDF_BLOCK * _CDF_BLOCK
    blocks = torch.unflatten(weights[:, :whole], 1, (-1, _CDF_BLOCK)).sum(-1)
    if whole < vocab:
        blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True)], 1)
    block, target, cumulative = _search(blocks, draws)
    weight = blocks.gather(1, block[:, None])[:, 0].double()
    left = target - (cumulative.gather(1, block[:, None])[:, 0] - weight)
    inside = block[:, None] * _CDF_BLOCK + torch.arange(_CDF_BLOCK, device=weights.device)
    weights_inside = weights.gather(1, inside.clamp(max=vocab - 1))
    weights_inside = weights_inside.masked_fill_(inside >= vocab, 0)
    # Rounding may put the rest at the block's end; that is still inside.
    rest = (left / weight).clamp_(0, 1 - 2**-53)
    return block * _CDF_BLOCK + _search(weights_inside, rest)[0]


def _search(weights: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where `fraction` of the total falls: the entry, the target, and the cumulative weights.

    A fraction of at most 1 - 2^-53 times a float64 total is less than the total.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = cumulative[:, -1] * fraction
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    return index[:, 0], target, cumulative


def _truncated(weights: Tensor, draws: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Sample among the `top_k` largest; of these, the fewest that hold `top_p` of their weight."""
    ordered, tokens = torch.sort(weights, dim=-1, descending=True, stable=True)
    ranks = torch.arange(weights.shape[1], device=weights.device)
    limit = torch.where(top_k > 0, top_k, weights.shape[1])
    ordered = ordered.masked_fill(ranks >= limit[:, None], 0)
    before = ordered.double().cumsum(-1) - ordered
    total = ordered.sum(-1, keepdim=True, dtype=torch.float64)
    ordered = ordered.masked_fill(before >= top_p[:, None].double() * total, 0)
    index = _search(ordered, draws)[0]
    return tokens.gather(1, index[:, None])[:, 0]
