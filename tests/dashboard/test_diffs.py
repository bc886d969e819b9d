import random

from hypothesis import given
from hypothesis import strategies as st

from turnwise.dashboard.rollouts import diffs
from turnwise.dashboard.rollouts.diffs import Change, Piece, changes, line_changes, word_changes

items = st.lists(st.sampled_from("abcd"), max_size=12)


def before(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.change is not Change.NEW]


def after(pieces: list[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.change is not Change.GONE]


@given(items, items)
def test_what_is_not_new_is_what_was_and_what_is_not_gone_is_what_is(
    old: list[str], new: list[str]
):
    found = changes(old, new)

    assert (before(found), after(found)) == (old, new)


@given(items)
def test_equal_texts_have_no_changes(same: list[str]):
    assert all(piece.change is Change.SAME for piece in changes(same, same))


@given(items, items)
def test_texts_too_long_to_compare_are_still_told_whole(old: list[str], new: list[str]):
    limit, diffs.MAX_PRODUCT = diffs.MAX_PRODUCT, 0
    try:
        found = changes(old, new)
    finally:
        diffs.MAX_PRODUCT = limit

    assert (before(found), after(found)) == (old, new)


@given(st.text(max_size=60), st.text(max_size=60))
def test_words_joined_are_the_texts_again(old: str, new: str):
    found = word_changes(old, new)

    assert ("".join(before(found)), "".join(after(found))) == (old, new)


def test_lines_far_from_a_change_are_counted():
    old = "\n".join(map(str, range(20)))

    found = line_changes(old, old.replace("10", "ten"), context=1)

    assert [(piece.change.value, piece.text) for piece in found] == [
        ("left_out", "9"),
        ("same", "9"),
        ("gone", "10"),
        ("new", "ten"),
        ("same", "11"),
        ("left_out", "8"),
    ]


def test_two_long_texts_without_a_word_in_common_are_one_replacement():
    chance = random.Random(0)
    old, new = (
        "\n".join(str(chance.randrange(9)) + word for _ in range(20_000)) for word in ("a", "b")
    )

    found = line_changes(old, new)

    assert [piece.change for piece in found] == [Change.GONE] * 20_000 + [Change.NEW] * 20_000
