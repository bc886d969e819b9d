"""A turn's tokens, as the model sampled them: each with its text and how likely it was. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.dashboard.rollouts.messages import readable

#: Tokens in one answer; more have an address of their own.
PAGE_TOKENS = 1000

#: Least probability of each tint, from none to the strongest.
_TINTS = (0.9, 0.5, 0.1, 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One sampled token; `place` counts from 0 in its turn. `text` is "" where nobody knows it."""

    place: int
    id: int
    text: str
    logprob: float

    @property
    def probability(self) -> float:
        """Of its choice, under the policy that made it."""
        return math.exp(min(self.logprob, 0.0))

    @property
    def tint(self) -> int:
        """How surprising it was, from 0 to 4.

        >>> TokenView(place=0, id=7, text="a", logprob=-0.05).tint
        0
        >>> TokenView(place=0, id=7, text="a", logprob=-9.0).tint
        4
        """
        return sum(self.probability < least for least in _TINTS)

    @property
    def shown(self) -> str:
        """Its text with white space at the ends to be seen, or its id."""
        text = readable(self.text).replace("\n", "⏎\n")
        return text if self.text else f"[{self.id}]"


def token_views(
    ids: Sequence[int], pieces: Sequence[bytes], logprobs: Sequence[float], start: int
) -> list[TokenView]:
    """Tokens from `start` on; no `pieces` means that nobody can tell them.

    Bytes that are only part of a character are shown as such: `\\xe2`.
    """
    known = pieces or [b""] * len(ids)
    return [
        TokenView(
            place=start + n,
            id=id,
            text=piece.decode("utf-8", "backslashreplace"),
            logprob=logprob,
        )
        for n, (id, piece, logprob) in enumerate(zip(ids, known, logprobs, strict=True))
    ]
