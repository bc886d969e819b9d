"""Samples -> micro-batches within a token budget, in one of two layouts.

A trie (see `rl.trie`) holds each token that several rows begin with once, and no padding. Plain
rows are padded on the right and read with a causal mask, so padding needs no mask of its own:
nothing before it can see it. In both a row ends at its last trained token, as what comes after has
no gradient, and only trained positions are listed for the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from turnwise.domain.rollout import Floats
from turnwise.domain.training import Sample, WeightedSample
from turnwise.rl.trie import Segment, tries

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The inputs of one forward pass, and their N trained tokens as flat arrays in row order.

    `positions[n]` is where token n is predicted: an index into the R * W flattened outputs, where
    the token before it lies. Rows of a trie that sampled the same tokens share positions.
    """

    inputs: Ints  # [R, W] rows right-padded with 0, or [1, T] a trie
    segments: tuple[Segment, ...] = ()  # the trie's; none: plain rows
    positions: Ints  # [N]
    targets: Ints  # [N] the trained tokens
    sample: Ints  # [N] the token's sample, an index into what was packed
    index: Ints  # [N] the token's place in its sample
    turns: Ints  # [N] the token's turn, counted from 0: a run of trained tokens of one row
    logprobs: Floats  # [N] the sampler's
    advantages: Floats  # [N]
    temperatures: Floats  # [N]
    weights: Floats  # [N]
    policy_steps: Ints  # [N]


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows so that rows x longest <= budget, longest rows first. Indices into `lengths`.

    A row longer than the budget gets a batch of its own; rows of length 0 are left out.

    >>> pack([3, 8, 0, 4, 20], budget=12)
    [[4], [1], [3, 0]]
    """
    batches: list[list[int]] = []
    width = 0
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[row] == 0:
            continue
        if not batches or (len(batches[-1]) + 1) * width > budget:
            batches.append([])
            width = lengths[row]
        batches[-1].append(row)
    return batches


def micro_batches(
    samples: Sequence[WeightedSample], budget: int, *, share: bool = False
) -> list[MicroBatch]:
    """Lay samples out in batches of at most `budget` tokens, padding included.

    As tries if `share` and that is less work than plain rows (see `pack`).
    """
    lengths = [_input_length(weighted.sample) for weighted in samples]
    plain = pack(lengths, budget)
    if share:
        read = [w.sample.tokens[:length] for w, length in zip(samples, lengths, strict=True)]
        found = tries(read, budget)
        padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in plain)
        if sum(trie.price for trie in found) < padded:
            return [
                _listed(samples, trie.rows, trie.places, trie.tokens[None], trie.segments)
                for trie in found
            ]
    return [_plain(samples, rows, lengths) for rows in plain]


def _input_length(sample: Sample) -> int:
    """Tokens that the last trained one depends on: its index; 0 if nothing is trained."""
    trained = np.flatnonzero(sample.trained)
    return int(trained[-1]) if len(trained) else 0


def _plain(
    samples: Sequence[WeightedSample], rows: Sequence[int], lengths: Sequence[int]
) -> MicroBatch:
    width = max(lengths[row] for row in rows)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        inputs[place, : lengths[row]] = samples[row].sample.tokens[: lengths[row]]
    places = np.arange(inputs.size).reshape(inputs.shape)
    return _listed(samples, rows, places, inputs)


def _listed(
    samples: Sequence[WeightedSample],
    rows: Sequence[int],
    places: Sequence[Ints] | Ints,  # [R][tokens of the row] where each lies in the inputs
    inputs: Ints,
    segments: tuple[Segment, ...] = (),
) -> MicroBatch:
    """The batch of these rows with their trained tokens."""
    index = [np.flatnonzero(samples[row].sample.trained) for row in rows]
    starts = [np.diff(i, prepend=-1) > 1 for i in index]  # no token before it, or one only read
    picked = [(samples[row], trained) for row, trained in zip(rows, index, strict=True)]
    return MicroBatch(
        inputs=inputs,
        segments=segments,
        positions=np.concatenate([at[i - 1] for at, i in zip(places, index, strict=True)]),
        targets=np.concatenate([w.sample.tokens[i] for w, i in picked]).astype(np.int64),
        sample=np.repeat(np.asarray(rows, dtype=np.int64), [len(i) for i in index]),
        index=np.concatenate(index),
        turns=np.concatenate(starts).cumsum() - 1,
        logprobs=np.concatenate([w.sample.logprobs[i] for w, i in picked]),
        advantages=np.concatenate([w.sample.advantages[i] for w, i in picked]),
        temperatures=np.concatenate([w.sample.temperatures[i] for w, i in picked]),
        weights=np.concatenate([w.weights[i] for w, i in picked]),
        policy_steps=np.concatenate([w.sample.policy_steps[i] for w, i in picked]).astype(np.int64),
    )
