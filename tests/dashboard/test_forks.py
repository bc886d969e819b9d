from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests import builders
from tests.dashboard.rollout_kit import Step, asked, conversation, said
from turnwise.dashboard.rollouts.forks import Fork, branches, fork
from turnwise.domain.rollout import ForkCause, Trajectory

START = [asked("You inspect.", "system"), asked("Look at valve 2.")]


def trajectory(*steps: Step) -> Trajectory:
    made = conversation(*steps)
    nodes = tuple(node for added, _ in made for node in added)
    return Trajectory(
        rollout=builders.rollout(), nodes=nodes, turns=tuple(turn for _, turn in made)
    )


def fork_of(*steps: Step) -> Fork:
    its = trajectory(*steps)
    found = fork(its, its.turns[-1])
    assert found is not None
    return found


def changed(found: Fork) -> list[tuple[str, str]]:
    return [(p.change.value, p.text) for p in found.pieces if p.change in ("gone", "new")]


def shape(its: Trajectory) -> list[tuple[str, Sequence[int], int | None]]:
    return [(branch.name, branch.turns, branch.start) for branch in branches(its)]


def test_turns_that_continue_each_other_are_one_branch():
    its = trajectory(Step(START, said("Shut.")), Step([asked("And 3?")], said("Open."), parent=1))

    assert shape(its) == [("A", (0, 1), None)]
    assert [fork(its, turn) for turn in its.turns] == [None, None]


def test_a_second_continuation_of_a_turn_is_a_branch_from_it():
    its = trajectory(
        Step(START, said("Shut.")),
        Step([asked("And 3?")], said("Open."), parent=1),
        Step([asked("And 4?")], said("Open too."), parent=1),
        Step([asked("Sure?")], said("Yes."), parent=3),
    )

    assert shape(its) == [("A", (0, 1, 3), None), ("B", (2,), 0)]


def test_an_edited_reply_is_shown_beside_what_the_model_said():
    found = fork_of(
        Step(START, said("The valve is shut.")),
        Step(
            [*START, said("The valve is open."), asked("And 3?")],
            said("Shut."),
            cause=ForkCause.EDITED_ASSISTANT,
        ),
    )

    assert (found.cause, found.beside, found.same_messages) == ("edited_assistant", 0, 2)
    assert ("gone", "The valve is shut.") in changed(found)
    assert ("new", "The valve is open.") in changed(found)


def test_rewritten_history_is_shown_from_the_first_message_that_differs():
    found = fork_of(
        Step(START, said("Shut.")),
        Step(
            [START[0], asked("Look at valve 9."), said("Shut."), asked("And 3?")],
            said("Open."),
            cause=ForkCause.REWRITTEN_HISTORY,
        ),
    )

    assert found.same_messages == 1
    assert changed(found)[:2] == [("gone", "Look at valve 2."), ("new", "Look at valve 9.")]


def test_messages_left_out_are_shown_as_gone():
    found = fork_of(
        Step(START, said("Shut.")),
        Step([asked("And 3?")], said("Open."), parent=1),
        Step(
            [*START, said("Open."), asked("And 4?")],
            said("Shut."),
            cause=ForkCause.TRUNCATED,
        ),
    )

    assert ("gone", "Shut.") in changed(found)
    assert ("gone", "And 3?") in changed(found)
    assert not [text for change, text in changed(found) if text == "Look at valve 2."]


def test_reasoning_that_the_template_drops_is_shown_as_gone():
    found = fork_of(
        Step(START, said("Shut.", reasoning_content="It does not turn."), prompt=(1, 2, 3, 4)),
        Step(
            [*START, said("Shut."), asked("And 3?")],
            said("Open."),
            cause=ForkCause.TEMPLATE,
            prompt=(1, 2, 3, 9, 9),
        ),
    )

    assert ("gone", "It does not turn.") in changed(found)
    assert found.same_tokens == 3


def test_the_branch_that_agrees_the_longest_is_the_one_compared_with():
    found = fork_of(
        Step(START, said("Shut.")),
        Step([asked("And 3?")], said("Open."), parent=1),
        Step([asked("Something else")], said("What?")),
        Step(
            [*START, said("Shut."), asked("And 3?"), said("Half open."), asked("And 4?")],
            said("Shut."),
            cause=ForkCause.EDITED_ASSISTANT,
        ),
    )

    assert (found.beside, found.same_messages) == (1, 4)


@pytest.mark.parametrize("cause", list(ForkCause))
def test_every_cause_is_explained(cause: ForkCause):
    found = fork_of(
        Step(START, said("Shut.")), Step([*START, said("No.")], said("Yes."), cause=cause)
    )

    assert found.meaning.endswith(".")


def test_the_same_request_asked_again_forks_only_once():
    first = Step(START, said("Shut."))
    edited = Step([*START, said("No.")], said("Yes."), cause=ForkCause.EDITED_ASSISTANT)
    its = trajectory(first, edited)
    _, again = builders.turn_with_nodes(2, first_node=3)  # whose leaf is node 4
    nodes = (
        *its.nodes,
        replace(its.nodes[3], node_id=4, messages=(said("Yes again."),)),
    )
    twice = Trajectory(rollout=its.rollout, nodes=nodes, turns=(*its.turns, again))

    assert fork(twice, twice.turns[1]) is not None
    assert fork(twice, twice.turns[2]) is None
