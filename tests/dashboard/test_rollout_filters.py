from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.dashboard.rollouts.histograms import HEIGHT, bars
from turnwise.dashboard.rollouts.rollout_filters import Filters
from turnwise.domain.rollout import Purpose, RolloutStatus
from turnwise.ports import Histogram, RolloutQuery, RolloutSort

whole = st.none() | st.integers(0, 10_000)
words = st.text(max_size=9).map(str.strip)


@given(
    st.builds(
        Filters,
        step=whole,
        row=whole,
        status=st.none() | st.sampled_from(RolloutStatus),
        purpose=st.none() | st.sampled_from(Purpose),
        valid=st.sampled_from(["", "yes", "no"]),
        reason=words,
        min=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        text=words,
        sort=st.sampled_from(RolloutSort),
        order=st.sampled_from(["asc", "desc"]),
        size=st.integers(1, 250),
    )
)
def test_an_address_says_all_that_a_list_shows(filters: Filters):
    assert Filters.of(dict(parse_qsl(filters.to()[1:]))) == filters


def test_the_store_is_asked_for_what_the_address_says():
    given = {"step": "3", "valid": "no", "min": "0.5", "below": "1", "sort": "reward"}

    assert Filters.of({**given, "order": "desc", "reason": ""}).query("job_walk") == RolloutQuery(
        job_id="job_walk",
        step=3,
        is_valid=False,
        reward_ge=0.5,
        reward_lt=1.0,
        sort=RolloutSort.REWARD,
        descending=True,
        limit=50,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "x"),
        ("step", "99999999999"),
        ("row", "-1"),
        ("status", "GONE"),
        ("purpose", "fun"),
        ("valid", "maybe"),
        ("min", "nan"),
        ("below", "x"),
        ("sort", "colour"),
        ("order", "up"),
        ("size", "0"),
        ("sample", "10"),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, value: str):
    with pytest.raises(errors.InvalidInput) as refused:
        Filters.of({name: value})

    assert (name if name != "sample" else "step") in str(refused.value)


def test_going_on_and_back_leads_through_the_same_pages():
    first = Filters(step=3)
    second = Filters.of(dict(parse_qsl(first.next_page("ns50")[1:])))
    third = Filters.of(dict(parse_qsl(second.next_page("ns90")[1:])))

    assert (second.after, third.after) == ("ns50", "ns90")
    assert third.previous_page() == second.to(after="ns50", back="0")
    assert second.previous_page() == first.to()
    assert first.previous_page() == ""


def test_a_chip_leads_to_the_list_without_its_filter():
    filters = Filters(step=3, min=0.5, below=1.0, text="valve", sample=10, seed=4)

    assert filters.chips() == [
        ("begun at step 3", "?min=0.5&below=1&text=valve"),
        ("“valve”", "?step=3&min=0.5&below=1&sample=10&seed=4"),
        ("reward ≥ 0.5 and reward < 1", "?step=3&text=valve&sample=10&seed=4"),
        ("10 at random", "?step=3&min=0.5&below=1&text=valve"),
    ]


def test_a_column_sorts_from_the_best_and_then_the_other_way():
    unsorted = Filters()
    best_first = Filters(sort=RolloutSort.REWARD, order="desc")

    assert unsorted.sorted_by(RolloutSort.REWARD) == best_first.to()
    assert best_first.sorted_by(RolloutSort.REWARD) == Filters(sort=RolloutSort.REWARD).to()
    assert (unsorted.aria_sort(RolloutSort.SEQ), best_first.aria_sort(RolloutSort.REWARD)) == (
        "ascending",
        "descending",
    )


def test_a_bar_leads_to_its_rollouts_and_the_chosen_one_back_to_all():
    histogram = Histogram(edges=(0.0, 0.5, 1.0), counts=(1, 400), unscored=3)

    low, high = bars(histogram, Filters(min=0.5, below=1.0))

    assert (low.href, low.is_chosen) == ("?min=0&below=0.5", False)
    assert (high.href, high.is_chosen) == ("", True)
    assert (low.height, high.height) == (3.0, HEIGHT)
    assert bars(Histogram(edges=(), counts=(), unscored=3), Filters()) == []
