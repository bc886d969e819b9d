"""The parity gate for steps without tokens of the learner's own policy (design §4.8)."""

from __future__ import annotations

import numpy as np

from turnwise import errors
from turnwise.domain.rollout import Tokens
from turnwise.ports import Learner, Sampler

PROBE_LENGTH = 64

#: A prime beyond common vocabulary sizes' factors, so that probe tokens spread over all ids.
_STRIDE = 7919


def probe(vocab_size: int) -> Tokens:
    """The fixed tokens that both sides score, [64]; the same for every step of a job."""
    return (np.arange(1, PROBE_LENGTH + 1) * _STRIDE % vocab_size).astype(np.int32)


async def check_parity(
    sampler: Sampler, learner: Learner, *, adapter_id: str, previous_id: str, limit: float
) -> float:
    """Mean |sampler - learner| over the probe, nats, under the adapter just loaded.

    Raises `ParityExceeded` over the limit. A sampler that scores the new adapter just as the one
    before it did not take it; otherwise the two compute differently.
    """
    tokens = probe((await sampler.info()).vocab_size)
    sampled = await sampler.score(tokens, adapter_id)
    learned = await learner.score(tokens)
    difference = _mean_difference(sampled, learned)
    if difference <= limit:
        return difference
    before = await sampler.score(tokens, previous_id)
    said = f"mean |sampler - learner| is {difference:.3g} nats on the probe, limit {limit:.3g}"
    if adapter_id != previous_id and _mean_difference(sampled, before) == 0.0:
        raise errors.ParityExceeded(
            f"{said}: the sampler is wrong, it scores adapter {adapter_id} as the one before it"
        )
    raise errors.ParityExceeded(
        f"{said}: sampler and learner compute adapter {adapter_id} differently"
    )


def _mean_difference(one: np.ndarray, other: np.ndarray) -> float:
    # The first token has no logprob.
    return float(np.mean(np.abs(one[1:].astype(np.float64) - other[1:])))
