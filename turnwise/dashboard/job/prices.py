"""What tokens cost, where the operator has said so."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.domain.ledger import TokenUsage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Per million tokens, all in one currency that is nobody's business here."""

    train: float = 0.0
    prefill: float = 0.0  # of prompt tokens that were computed
    cached: float = 0.0  # of those that came from the prefix cache
    sample: float = 0.0

    @property
    def are_known(self) -> bool:
        """Whether an estimate says anything."""
        return any((self.train, self.prefill, self.cached, self.sample))


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """A kind of tokens; `cost` is None where no price is known."""

    label: str
    tokens: int
    price: float
    cost: float | None


def usage_lines(usage: TokenUsage, prices: Prices) -> tuple[UsageLine, ...]:
    """A job's tokens by what is charged for them; no token is in two lines.

    >>> lines = usage_lines(TokenUsage(train=2_000_000), Prices(train=1.5))
    >>> lines[0].cost, total(lines)
    (3.0, 3.0)
    """
    return tuple(
        UsageLine(
            label=label,
            tokens=tokens,
            price=price,
            cost=tokens * price / _MILLION if prices.are_known else None,
        )
        for label, tokens, price in (
            ("Trained", usage.train, prices.train),
            ("Prompts, computed", usage.prefill - usage.cached, prices.prefill),
            ("Prompts, from the prefix cache", usage.cached, prices.cached),
            ("Sampled", usage.sample, prices.sample),
        )
    )


def total(lines: tuple[UsageLine, ...]) -> float | None:
    """The estimate; None where no price is known."""
    costs = [line.cost for line in lines if line.cost is not None]
    return sum(costs) if costs else None
