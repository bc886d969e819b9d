from __future__ import annotations

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.wire.aws.paging import page


@given(st.lists(st.integers(), unique=True), st.integers(1, 7))
def test_the_pages_of_a_list_are_the_list(items: list[int], size: int):
    seen: list[int] = []
    asked: dict[str, object] = {"MaxResults": size}
    while True:
        shown, token = page(items, asked)
        seen += shown
        if token is None:
            break
        assert len(shown) == size
        asked["NextToken"] = token
    assert seen == items


@given(st.data())
def test_what_comes_and_goes_between_two_pages_neither_repeats_nor_hides_the_rest(data):
    items = list(range(100, 120))
    shown, token = page(items, {"MaxResults": 8})
    gone = data.draw(st.sets(st.sampled_from(items[:7])))  # the last one shown stays
    newer = data.draw(st.lists(st.integers(0, 99), unique=True, max_size=5))
    rest, _ = page(
        newer + [item for item in items if item not in gone],
        {"MaxResults": 50, "NextToken": token},
        maximum=50,
    )
    assert shown + rest == items


@given(st.data())
def test_whoever_deletes_what_a_page_shows_is_shown_all_the_rest(data):
    items = list(range(100, 120))
    shown, token = page(items, {"MaxResults": 8})
    gone = data.draw(st.sets(st.sampled_from(shown), min_size=1)) | {shown[-1]}
    newer = data.draw(st.lists(st.integers(0, 99), unique=True, max_size=5))
    rest, _ = page(
        newer + [item for item in items if item not in gone],
        {"MaxResults": 50, "NextToken": token},
        maximum=50,
    )
    assert shown + rest == items


def test_a_page_holds_the_default_unless_asked_and_never_more_than_the_maximum():
    assert len(page(range(99), {})[0]) == 10
    assert len(page(range(99), {"MaxResults": 90}, maximum=50)[0]) == 50
    assert len(page(range(99), {"limit": 3}, size="limit")[0]) == 3


def forged(state: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(state).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        *("x", "é", forged(7), forged({"next": "a"}), forged([1])),
        forged({"next": math.inf, "last": "", "query": ""}),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    ],
)
def test_a_token_that_is_not_ours_is_refused(token: str):
    with pytest.raises(errors.InvalidInput, match="is no token of this operation"):
        page("abc", {"NextToken": token})


def test_a_token_belongs_to_its_filters():
    _, token = page("abc", {"MaxResults": 1, "NameContains": "a"})
    with pytest.raises(errors.InvalidInput, match="belongs to another query"):
        page("abc", {"MaxResults": 1, "NameContains": "b", "NextToken": token})


def test_a_forged_place_ends_the_list_rather_than_the_server():
    _, token = page("abc", {"MaxResults": 1})
    state = json.loads(base64.urlsafe_b64decode(token)) | {"last": "", "then": "", "next": -5}
    assert page("abc", {"NextToken": forged(state)})[0] == ["a", "b", "c"]
