from __future__ import annotations

from itertools import combinations

import pytest

from turnwise import errors
from turnwise.rl.passk import pass_at_k, pass_power_k

CASES = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize(("attempts", "successes", "k"), CASES)
def test_both_are_means_over_all_choices_of_k_attempts(
    attempts: int, successes: int, k: int
) -> None:
    chosen = list(combinations([True] * successes + [False] * (attempts - successes), k))

    assert pass_at_k(attempts, successes, k) == pytest.approx(
        sum(map(any, chosen)) / len(chosen), abs=1e-12
    )
    assert pass_power_k(attempts, successes, k) == pytest.approx(
        sum(map(all, chosen)) / len(chosen), abs=1e-12
    )


def test_more_attempts_than_were_made_are_refused() -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        pass_at_k(4, 1, 8)

    assert str(refused.value) == "k: 8 must be 1 to 4, the attempts made"


def test_more_successes_than_attempts_are_refused() -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        pass_power_k(4, 5, 1)

    assert str(refused.value) == "successes: 5 must be 0 to 4"
