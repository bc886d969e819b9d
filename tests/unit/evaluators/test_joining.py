"""Which rollout is a request of, and which rollout is a scored row of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.evaluators.joining import Joining, Place, Scored

USER = {"role": "user", "content": "hi"}


def said(text: str = "hello", *call_ids: str) -> dict[str, object]:
    calls = [{"id": c, "type": "function", "function": {"name": "f"}} for c in call_ids]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})


def row(*, turn: str = "", calls: tuple[str, ...] = (), theirs: str = "") -> Scored:
    return Scored(score=1.0, turn_ids=(turn,) if turn else (), call_ids=calls, their_id=theirs)


def test_a_first_request_takes_the_next_free_rollout() -> None:
    joining = Joining(["a", "b"])
    assert joining.place([USER]) == Place(rollout_id="a", is_new=True)
    assert joining.place([USER]) == Place(rollout_id="b", is_new=True)


def test_one_more_conversation_than_rollouts_is_refused_and_harms_none() -> None:
    joining = Joining(["a"])
    place = joining.place([USER])
    with pytest.raises(errors.NotInValidStatus, match="this run has 1 rollouts, and each has"):
        joining.place([USER])
    joining.said(place, "t1", said())
    assert joining.joined(row(turn="t1")) == "a"


def test_a_request_that_came_to_nothing_gives_its_rollout_back() -> None:
    joining = Joining(["a"])
    joining.failed(joining.place([USER]))
    assert joining.place([USER]).rollout_id == "a"


def test_a_later_request_that_failed_keeps_its_rollout() -> None:
    joining = Joining(["a"])
    joining.said(joining.place([USER]), "t1", said("", "c1"))
    joining.failed(joining.place([USER, said("", "c1")]))
    with pytest.raises(errors.NotInValidStatus):
        joining.place([USER])


def test_a_librarys_retry_gets_the_rollout_that_its_first_try_took() -> None:
    joining = Joining(["a", "b"])
    joining.lost(joining.place([USER], request="same"), "same")
    assert joining.place([USER], request="same", is_retry=True).rollout_id == "a"
    assert joining.place([USER], request="same", is_retry=True).rollout_id == "b"


def test_a_later_request_is_of_the_rollout_whose_tool_call_it_answers() -> None:
    joining = Joining(["a", "b"])
    first, second = joining.place([USER]), joining.place([USER])
    joining.said(first, "t1", said("", "c1"))
    joining.said(second, "t2", said("", "c2"))
    assert joining.place([USER, said("", "c2")]).rollout_id == "b"
    assert joining.place([USER, said("", "c1")]).rollout_id == "a"


def test_siblings_that_said_the_same_are_each_continued_once() -> None:
    joining = Joining(["a", "b"])
    for turn in ("t1", "t2"):
        joining.said(joining.place([USER]), turn, said("", "same"))
    continued = [joining.place([USER, said("", "same")]).rollout_id for _ in range(2)]
    assert sorted(continued) == ["a", "b"]


def test_a_conversation_without_ids_is_never_attached_by_its_text() -> None:
    joining = Joining(["a"])
    joining.said(joining.place([USER]), "t1", said("hello"))
    with pytest.raises(errors.InvalidInput, match="hold an assistant's turn without a tool call"):
        joining.place([USER, said("hello"), USER])


def test_an_id_in_the_path_says_the_rollout_whatever_the_messages_are() -> None:
    joining = Joining(["a", "b"])
    assert joining.place([USER], their_id="odd-9").rollout_id == "a"
    assert joining.place([USER], their_id="even-8").rollout_id == "b"
    assert joining.place([USER, said(), USER], their_id="odd-9").rollout_id == "a"
    assert joining.joined(row(theirs="even-8")) == "b"


def test_a_row_is_joined_once() -> None:
    joining = Joining(["a", "b"])
    joining.said(joining.place([USER]), "t1", said())
    assert joining.joined(row(turn="t1")) == "a"
    assert joining.joined(row(turn="t1")) == ""
    assert joining.unjoined == ("b",)


def test_a_row_is_joined_by_the_calls_that_it_holds() -> None:
    joining = Joining(["a", "b"])
    for turn, call in (("t1", "c1"), ("t2", "c2")):
        joining.said(joining.place([USER]), turn, said("", call))
    assert joining.joined(row(calls=("c2",))) == "b"


def test_the_last_row_without_ids_is_that_of_the_last_rollout_only() -> None:
    joining = Joining(["a", "b", "c"])
    for turn in ("t1", "t2"):
        joining.said(joining.place([USER]), turn, said())
    assert joining.joined_last([row()]) == ""  # it may be a's or b's
    assert joining.joined(row(turn="t1")) == "a"
    assert joining.joined_last([row(), row()]) == ""
    assert joining.joined_last([row()]) == "b"
    assert joining.unjoined == ("c",)


def test_a_row_with_another_runs_turn_is_of_no_rollout() -> None:
    joining = Joining(["a"])
    joining.said(joining.place([USER]), "t1", said())
    assert joining.joined(row(turn="t9", theirs="nobody")) == ""


@given(
    order=st.permutations(range(5)),
    calls=st.lists(st.sampled_from(["x", "y"]), min_size=5, max_size=5),
)
def test_in_any_order_each_row_gets_the_rollout_that_its_turns_were_recorded_in(
    order: list[int], calls: list[str]
) -> None:
    """Conversations of two turns, whose tool calls may be equal; rows may end in any order."""
    joining = Joining([f"rollout {n}" for n in range(5)])
    turns: dict[str, list[str]] = {}  # rollout -> its turns, as a gateway records them
    for n in range(5):
        place = joining.place([USER])
        turns[place.rollout_id] = [f"first {n}"]
        joining.said(place, f"first {n}", said("", calls[n]))
    ends: dict[int, str] = {}
    for n in order:
        place = joining.place([USER, said("", calls[n])])
        # It continues a rollout that said exactly this, and none twice.
        (first,) = turns[place.rollout_id]
        assert calls[int(first.split()[1])] == calls[n]
        ends[n] = f"second {n}"
        turns[place.rollout_id].append(ends[n])
        joining.said(place, ends[n], said())
    for n in reversed(order):
        rollout_id = joining.joined(row(turn=ends[n], calls=(calls[n],)))
        assert ends[n] in turns[rollout_id]
    assert joining.unjoined == ()
