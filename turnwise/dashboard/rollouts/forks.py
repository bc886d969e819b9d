"""Where a rollout's requests part: its branches, and what an agent changed where one begins. Pure.

A request that continues an earlier reply goes on with its branch; any other begins one:

    A  turn 1 ── turn 2 ── turn 3
    B              `────── turn 4 ── turn 5      (from turn 2)
    C  turn 6                                    (a conversation of its own, or a rewritten one)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from turnwise.dashboard.rollouts.diffs import Piece, line_changes
from turnwise.dashboard.rollouts.messages import view
from turnwise.domain.rollout import ForkCause, Message, Node, Tokens, Trajectory, Turn
from turnwise.gateway.graph import same_message

#: What each cause means, to a person.
CAUSES: Mapping[ForkCause, str] = {
    ForkCause.TEMPLATE: "The chat template writes earlier turns differently here (it drops their "
    "reasoning), so the model saw other tokens than it had said.",
    ForkCause.EDITED_ASSISTANT: "The agent sent back a reply that is not what the model had said.",
    ForkCause.REWRITTEN_HISTORY: "The agent changed an earlier message, or the tools it offers.",
    ForkCause.TRUNCATED: "The agent left out earlier messages.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Turns of which each continues the one before; `start` is the turn it parts from, if any."""

    name: str
    turns: tuple[int, ...]  # indices
    start: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """How the request of a turn differs from the branch that it is likest to.

    `beside` is the last turn of that branch; the first `same_messages` messages and `same_tokens`
    tokens of both are alike. `pieces` compare what follows, line by line.
    """

    cause: ForkCause
    beside: int
    same_messages: int
    same_tokens: int
    pieces: tuple[Piece, ...]

    @property
    def meaning(self) -> str:
        """The cause in words."""
        return CAUSES[self.cause]


def branches(trajectory: Trajectory) -> tuple[Branch, ...]:
    """Every turn in exactly one, in the order in which they began."""
    turn_of = {turn.leaf: turn.index for turn in trajectory.turns}
    tips: dict[int, int] = {}  # completion -> its branch's place
    found: list[tuple[int | None, list[int]]] = []
    for turn in trajectory.turns:
        before = _continued(trajectory, turn)
        place = None if before is None else tips.pop(before, None)
        if place is None:
            place = len(found)
            found.append((None if before is None else turn_of[before], []))
        found[place][1].append(turn.index)
        tips[turn.leaf] = place
    return tuple(
        Branch(name=_letters(place), turns=tuple(turns), start=start)
        for place, (start, turns) in enumerate(found)
    )


def fork(trajectory: Trajectory, turn: Turn) -> Fork | None:
    """What differs where a turn's request parts from the branch it is likest to.

    None where it continues a branch, is a conversation of its own, or is the turn before's again.
    """
    prompt = _prompt(trajectory, turn)
    if prompt is None or prompt.fork_cause is None or _first_asker(trajectory, prompt) != turn:
        return None
    sent = messages_to(trajectory, prompt.node_id)
    beside = _likest(trajectory, turn, sent)
    if beside is None:
        return None
    known = messages_to(trajectory, beside.leaf)
    ours, theirs = ([view(message).written for message in each] for each in (known, sent))
    same = _common(ours, theirs)
    pieces = line_changes("\n\n".join(ours[same:]), "\n\n".join(theirs[same:]))
    return Fork(
        cause=prompt.fork_cause,
        beside=beside.index,
        same_messages=same,
        same_tokens=_same_tokens(trajectory, beside.leaf, prompt.node_id),
        pieces=tuple(pieces),
    )


def messages_to(trajectory: Trajectory, node_id: int) -> list[Message]:
    """All messages from the root to a node, it included."""
    return [message for node in trajectory.path(node_id) for message in node.messages]


def _continued(trajectory: Trajectory, turn: Turn) -> int | None:
    """The completion that a turn's request extends."""
    prompt = _prompt(trajectory, turn)
    return None if prompt is None else prompt.parent


def _prompt(trajectory: Trajectory, turn: Turn) -> Node | None:
    parent = trajectory.nodes[turn.leaf].parent
    return None if parent is None else trajectory.nodes[parent]


def _first_asker(trajectory: Trajectory, prompt: Node) -> Turn:
    """The same request may be asked more than once; the first time is where it forked."""
    return next(t for t in trajectory.turns if trajectory.nodes[t.leaf].parent == prompt.node_id)


def _likest(trajectory: Trajectory, turn: Turn, sent: Sequence[Message]) -> Turn | None:
    """The earlier turn whose messages agree with these the longest; of several the latest."""
    best, most = None, -1
    for earlier in trajectory.turns[: turn.index]:
        known = messages_to(trajectory, earlier.leaf)
        same = 0
        while same < min(len(known), len(sent)) and same_message(known[same], sent[same]):
            same += 1
        if earlier.is_delivered and same >= most:
            best, most = earlier, same
    return best


def _same_tokens(trajectory: Trajectory, one: int, other: int) -> int:
    ours, theirs = _tokens(trajectory, one), _tokens(trajectory, other)
    length = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:length] != theirs[:length])
    return int(differ[0]) if len(differ) else length


def _tokens(trajectory: Trajectory, node_id: int) -> Tokens:
    return np.concatenate([node.tokens for node in trajectory.path(node_id)])


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _letters(place: int) -> str:
    """A, B, ... Z, AA, AB.

    >>> _letters(0), _letters(25), _letters(26)
    ('A', 'Z', 'AA')
    """
    letter = chr(ord("A") + place % 26)
    return letter if place < 26 else _letters(place // 26 - 1) + letter
