"""A trajectory's graph laid out as training rows.

Turns whose requests extend each other share one row (sequence extension); where the graph forks,
the rows repeat what they share as context:

    P1-C1-P2-C2               ->  [P1 C1 P2 C2]             C1, C2 trained
      `-P3-C3                     [P1 C1 P3 C3]             C3 trained, C1 only read

Every turn's completion is trained in exactly one row, the first that holds it, and no fewer rows
could hold them all: each ends in a turn that no other trainable turn extends.

What is never trained, by name: the completion of a turn that was not delivered; `greedy`, turns
sampled at temperature 0, whose tokens were not drawn from the distribution that a ratio compares;
`truncated`, turns that were cut off, where the job masks them (`turnwise.rl.truncation`);
`first_position`, a token with nothing before it, which nothing predicts. What is not trained is
still read by the turns that extend it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turnwise import errors
from turnwise.domain.rollout import Node, Trajectory, Turn
from turnwise.domain.training import Sample


def is_greedy(turn: Turn) -> bool:
    """The mask `greedy`."""
    return turn.sampling.temperature == 0


def is_trainable(turn: Turn, *, mask_truncated: bool = False) -> bool:
    """Whether a turn's tokens may be trained: delivered, not masked, not empty."""
    is_masked = is_greedy(turn) or (mask_truncated and turn.is_truncated)
    return turn.is_delivered and not is_masked and turn.completion_tokens > 0


def is_first(trajectory: Trajectory, turn: Turn) -> bool:
    """Whether nothing precedes the turn's first token, which has the mask `first_position`."""
    before = sum(len(node.tokens) for node in trajectory.path(turn.leaf)[:-1])
    return before == 0 and turn.completion_tokens > 0


def trained_tokens(trajectory: Trajectory, *, mask_truncated: bool = False) -> tuple[int, ...]:
    """How many tokens of each delivered turn are trained if the rollout is, [turns]."""
    return tuple(
        turn.completion_tokens - is_first(trajectory, turn)
        if is_trainable(turn, mask_truncated=mask_truncated)
        else 0
        for turn in trajectory.delivered
    )


def rows(
    trajectory: Trajectory, advantages: Sequence[float], *, mask_truncated: bool = False
) -> list[Sample]:
    """The fewest rows that train every trainable sampled token exactly once.

    `advantages` has one value per delivered turn, in commit order; all tokens of a turn get it.
    Rows come in the order of their last turns.
    """
    delivered = trajectory.delivered
    if len(advantages) != len(delivered):
        raise errors.InvalidInput(
            "advantages", list(advantages), f"must have {len(delivered)} values, one per turn"
        )
    left = {
        turn.leaf: (turn, advantage)
        for turn, advantage in zip(delivered, advantages, strict=True)
        if is_trainable(turn, mask_truncated=mask_truncated)
    }
    found = []
    for leaf in _row_ends(trajectory, tuple(left)):
        path = trajectory.path(leaf)
        trained = {node.node_id: left.pop(node.node_id) for node in path if node.node_id in left}
        found.append(_row(trajectory.rollout.rollout_id, path, trained))
    return [row for row in found if row.num_trained]


def _row_ends(trajectory: Trajectory, leaves: Sequence[int]) -> list[int]:
    """Those leaves that no other one extends, in the order given."""
    extended = {node.node_id for leaf in leaves for node in trajectory.path(leaf)[:-1]}
    return [leaf for leaf in leaves if leaf not in extended]


def _row(rollout_id: str, path: Sequence[Node], trained: dict[int, tuple[Turn, float]]) -> Sample:
    tokens = np.concatenate([node.tokens for node in path]).astype(np.int32)
    mask = np.zeros(len(tokens), dtype=np.bool_)
    logprobs, advantages = np.zeros((2, len(tokens)), dtype=np.float32)
    temperatures = np.ones(len(tokens), dtype=np.float32)
    policy_steps = np.zeros(len(tokens), dtype=np.int32)
    start = 0
    for node in path:
        end = start + len(node.tokens)
        if node.node_id in trained:
            turn, advantage = trained[node.node_id]
            at = slice(max(start, 1), end)  # nothing predicts position 0
            assert node.logprobs is not None  # every completion has them
            mask[at] = True
            logprobs[at] = node.logprobs[at.start - start :]
            advantages[at] = advantage
            temperatures[at] = turn.sampling.temperature
            policy_steps[at] = turn.policy.policy_step
        start = end
    return Sample(
        rollout_id=rollout_id,
        tokens=tokens,
        trained=mask,
        logprobs=logprobs,
        advantages=advantages,
        temperatures=temperatures,
        policy_steps=policy_steps,
    )
