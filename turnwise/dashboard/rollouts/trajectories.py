"""A trajectory laid out for a page: its turns in order, with what each was asked, said and earned.

Pure. What is long is left out here and fetched by its own address when a reader wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from turnwise.control.learned import RolloutCredit
from turnwise.dashboard.rollouts.forks import Branch, Fork, branches, fork
from turnwise.dashboard.rollouts.messages import MessageView, ToolView, tool_view, view
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import Node, Trajectory, Turn

#: Of one message, so many characters stand on the page; the rest has an address of its own.
SHOWN_CHARS = 6000

#: Bins in words, for readers who have not read the ledger's documentation.
FATES: Mapping[Bin, str] = {
    Bin.TRAINED: "trained",
    Bin.MASKED_GREEDY: "not trained: sampled at temperature 0",
    Bin.MASKED_FIRST_POSITION: "not trained: nothing comes before it",
    Bin.MASKED_TRUNCATED: "not trained: the turn was cut off, and the job masks such turns",
    Bin.DROPPED_PAST_STOP: "not trained: sampled behind a stop string",
    Bin.DROPPED_FAILED: "not trained: the rollout failed",
    Bin.DROPPED_DEADLINE: "not trained: the rollout ran out of time",
    Bin.DROPPED_UNDELIVERED: "not trained: the agent never got the reply",
    Bin.DROPPED_SUPERSEDED: "not trained: planned again after a restart",
    Bin.DROPPED_UNFINISHED: "not trained: the job ended before a step took it",
    Bin.DROPPED_ZERO_ADVANTAGE: "not trained: its whole group did equally well",
    Bin.DROPPED_UNPAIRED: "not trained: no sibling to compare with",
    Bin.NOT_FOR_TRAINING: "not made for training",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A message on the page. `place` is its address; `left` counts the characters not shown."""

    message: MessageView
    place: str  # "{node}/{number}"
    left: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """One turn. `asked` are the messages that it adds; `again` is an earlier turn that asked this.

    `reward` is its own where the agent reported one per turn; `advantage` and `bins` are known once
    a step took the group.
    """

    turn: Turn
    branch: str
    begins: bool  # whether its branch begins here
    start: int | None  # the turn that its branch parts from
    again: int | None
    fork: Fork | None
    asked: tuple[Shown, ...]
    reply: Shown
    reward: float | None
    advantage: float | None
    bins: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryView:
    """All of it."""

    turns: tuple[TurnView, ...]
    branches: tuple[Branch, ...]
    tools_sha256: str  # of the first request
    tools: tuple[ToolView, ...]  # it offered these; rollouts of long ago have only the identity


def lay_out(trajectory: Trajectory, credit: RolloutCredit | None) -> TrajectoryView:
    """Every turn in commit order."""
    found = branches(trajectory)
    of_turn = {turn: branch for branch in found for turn in branch.turns}
    rewards = _per_delivered(trajectory, trajectory.rollout.rewards)
    advantages = _per_delivered(trajectory, credit.advantages if credit else None)
    asked_by: dict[int, int] = {}
    turns = []
    for turn in trajectory.turns:
        prompt = _prompt(trajectory, turn)
        again = None if prompt is None else asked_by.get(prompt.node_id)
        if prompt is not None:
            asked_by.setdefault(prompt.node_id, turn.index)
        branch = of_turn[turn.index]
        turns.append(
            TurnView(
                turn=turn,
                branch=branch.name,
                begins=branch.turns[0] == turn.index,
                start=branch.start,
                again=again,
                fork=fork(trajectory, turn),
                asked=() if prompt is None or again is not None else shown(prompt),
                reply=shown(trajectory.nodes[turn.leaf])[0],
                reward=rewards.get(turn.index),
                advantage=advantages.get(turn.index),
                bins=_fates(credit.bins[turn.index]) if credit else (),
            )
        )
    roots = [node for node in trajectory.nodes if node.parent is None]
    return TrajectoryView(
        turns=tuple(turns),
        branches=found,
        tools_sha256=roots[0].tools_sha256 if roots else "",
        tools=tuple(map(tool_view, roots[0].tools)) if roots else (),
    )


def shown(node: Node) -> tuple[Shown, ...]:
    """A node's messages, each cut to what a page holds."""
    return tuple(
        _cut(view(message), f"{node.node_id}/{number}")
        for number, message in enumerate(node.messages)
    )


def _cut(message: MessageView, place: str) -> Shown:
    whole = (message.text, message.reasoning, message.rest)
    text, reasoning, rest = (part[:SHOWN_CHARS] for part in whole)
    calls = tuple(replace(call, arguments=call.arguments[:SHOWN_CHARS]) for call in message.calls)
    left = sum(map(len, whole)) - len(text) - len(reasoning) - len(rest)
    left += sum(len(call.arguments) for call in message.calls)
    left -= sum(len(call.arguments) for call in calls)
    cut = replace(message, text=text, reasoning=reasoning, rest=rest, calls=calls)
    return Shown(message=cut, place=place, left=left)


def _prompt(trajectory: Trajectory, turn: Turn) -> Node | None:
    parent = trajectory.nodes[turn.leaf].parent
    return None if parent is None else trajectory.nodes[parent]


def _per_delivered(trajectory: Trajectory, values: tuple[float, ...] | None) -> dict[int, float]:
    """Values of delivered turns by turn index; nothing where there is not one for each."""
    delivered = trajectory.delivered
    if values is None or len(values) != len(delivered):
        return {}
    return {turn.index: value for turn, value in zip(delivered, values, strict=True)}


def _fates(bins: Mapping[Bin, int]) -> tuple[tuple[str, int], ...]:
    return tuple((FATES[bin], tokens) for bin, tokens in bins.items())


def final_answer(trajectory: Trajectory) -> str:
    """What the model last said to the agent, "" if it got nothing; calls of tools as text."""
    if not trajectory.delivered:
        return ""
    message = view(trajectory.nodes[trajectory.delivered[-1].leaf].messages[0])
    calls = (f"{call.name}({call.arguments})" for call in message.calls)
    return "\n".join(part for part in (message.text, *calls) if part)
