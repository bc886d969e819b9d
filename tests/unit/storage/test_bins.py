import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from turnwise.storage.bins import edges_for

numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(numbers, numbers, st.integers(2, 40))
def test_bars_hold_every_value_once_and_are_no_more_than_asked_for(
    one: float, other: float, bins: int
) -> None:
    low, high = sorted([one, other])
    edges = edges_for(low, high, bins)
    assert edges[0] <= low
    assert high < edges[-1]
    assert all(a < b for a, b in pairwise(edges))
    assert len(edges) - 1 <= bins


def test_edges_are_numbers_that_a_person_would_choose() -> None:
    assert edges_for(0.0, 1.0, 20)[:3] == (0.0, 0.1, 0.2)
    assert edges_for(-1.7, 2.4, 5) == (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert edges_for(3.0, 940.0, 5) == (0.0, 200.0, 400.0, 600.0, 800.0, 1000.0)
    assert edges_for(0.0012, 0.0019, 4) == (0.0012, 0.0014, 0.0016, 0.0018, 0.002)


def test_equal_values_have_one_bar_of_their_own() -> None:
    assert edges_for(0.0, 0.0, 20) == (0.0, 0.1)
    assert edges_for(1.0, 1.0, 20) == (1.0, 1.1)
    assert edges_for(-25.0, -25.0, 20) == (-25.0, -24.0)
    assert edges_for(-1.0, 1.0, 0) == (-2.0, 0.0, 2.0)
    nearly = math.nextafter(1.0, 2.0)
    assert edges_for(1.0, nearly, 20)[0] <= 1.0
