"""What a sampler's methods take when they are called over a channel."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.domain.rollout import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Arguments of `Sampler.load`."""

    adapter_id: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetireAdapter:
    """Arguments of `Sampler.retire`."""

    adapter_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """Arguments of `Sampler.abort`."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTokens:
    """Arguments of `Sampler.score`."""

    tokens: Tokens
    adapter_id: str | None
    temperature: float
