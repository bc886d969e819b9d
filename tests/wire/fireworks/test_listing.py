"""Filters, orders, pages and masks. Pure."""

import pytest

from turnwise import errors
from turnwise.wire.fireworks.listing import Asked, masked, matching, page

ITEMS = [
    {"name": "a", "state": "READY", "size": 2, "public": True, "status": {"code": "OK"}},
    {"name": "b", "state": "UPLOADING", "size": 10, "public": False, "createTime": "2026-01-02"},
    {"name": "c", "state": "READY", "size": 3, "createTime": "2026-01-01"},
]


@pytest.mark.parametrize(
    ("filter", "names"),
    [
        ("", "abc"),
        ('state="READY"', "ac"),
        ("state = READY", "ac"),
        ("state != 'READY'", "b"),
        ("size > 2", "bc"),
        ('state="READY" AND size <= 2', "a"),
        ("name:b", "b"),
        ("status.code = OK", "a"),
        ("public = true", "a"),
        ('create_time >= "2026-01-02"', "b"),
        ("nothing = 1", ""),
        ("size = many", ""),
    ],
)
def test_a_filter_keeps_what_matches_every_comparison(filter: str, names: str):
    assert "".join(item["name"] for item in matching(ITEMS, filter)) == names


@pytest.mark.parametrize(
    "filter", ["state", 'state="READY" OR size=1', "NOT x=1", 'a="', "a=1 AND", "(a=1)", "a=1 b=2"]
)
def test_a_filter_that_is_not_served_is_refused(filter: str):
    with pytest.raises(errors.InvalidInput, match="is not a filter that is served here"):
        matching(ITEMS, filter)


@pytest.mark.parametrize(
    ("order", "names"),
    [("", "abc"), ("name desc", "cba"), ("create_time desc", "bca"), ("state, size desc", "cab")],
)
def test_a_list_is_in_the_order_asked_for(order: str, names: str):
    found = page("things", reversed(ITEMS), Asked(order_by=order))["things"]
    assert "".join(item["name"] for item in found) == names


def test_pages_follow_each_other_although_something_is_deleted():
    first = page("things", ITEMS, Asked(page_size=1))
    asked = Asked(page_size=1, page_token=first["nextPageToken"])
    assert page("things", ITEMS, asked)["things"][0]["name"] == "b"
    assert page("things", ITEMS[1:], Asked(page_size=1, page_token=first["nextPageToken"])) == {
        "things": [ITEMS[2]],
        "nextPageToken": "",
        "totalSize": 2,
    }


@pytest.mark.parametrize("token", ["x", "ä", "W10", "bnVsbA", "9" * 5000])
def test_a_token_of_nobody_is_refused(token: str):
    with pytest.raises(errors.InvalidInput, match="is no token of this list"):
        page("things", ITEMS, Asked(page_token=token))


def test_a_token_of_another_list_is_refused():
    token = page("things", ITEMS, Asked(page_size=1))["nextPageToken"]
    with pytest.raises(errors.InvalidInput, match="same filter"):
        page("things", ITEMS, Asked(page_size=1, page_token=token, filter="size > 2"))


@pytest.mark.parametrize("order", ["a b", "a desc desc", "1"])
def test_an_order_that_cannot_be_read_is_refused(order: str):
    with pytest.raises(errors.InvalidInput, match="is no order"):
        page("things", ITEMS, Asked(order_by=order))


def test_a_mask_shows_parts_of_an_object():
    assert masked(ITEMS[0], "name,status.code") == {"name": "a", "status": {"code": "OK"}}
    assert masked(ITEMS[0], "*") == ITEMS[0]
