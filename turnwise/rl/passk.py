"""Unbiased estimates of solving a task within k attempts, and of solving it k times in a row."""

from __future__ import annotations

from math import comb

from turnwise import errors


def pass_at_k(attempts: int, successes: int, k: int) -> float:
    """Chance that at least one of k attempts succeeds: 1 - C(n-c, k) / C(n, k).

    The mean over all k-subsets of the n attempts seen, of which c succeeded; needs k <= n.
    arXiv 2107.03374.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    _check(attempts, successes, k)
    return 1.0 - comb(attempts - successes, k) / comb(attempts, k)


def pass_power_k(attempts: int, successes: int, k: int) -> float:
    """Chance that all of k attempts succeed (pass^k): C(c, k) / C(n, k).

    arXiv 2406.12045.

    >>> pass_power_k(4, 3, 2)
    0.5
    """
    _check(attempts, successes, k)
    return comb(successes, k) / comb(attempts, k)


def _check(attempts: int, successes: int, k: int) -> None:
    if not 1 <= k <= attempts:
        raise errors.InvalidInput("k", k, f"must be 1 to {attempts}, the attempts made")
    if not 0 <= successes <= attempts:
        raise errors.InvalidInput("successes", successes, f"must be 0 to {attempts}")
