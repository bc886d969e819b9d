"""Trajectories for tests: drawn at random, or the shapes that peers get wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tests import builders
from turnwise.domain.rollout import (
    Delivery,
    FinishReason,
    Node,
    NodeKind,
    Policy,
    Purpose,
    RolloutStatus,
    SamplingParams,
    Trajectory,
    Turn,
)


class Graph:
    """Grows a trajectory turn by turn. Tokens count up, so that each names its place."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.turns: list[Turn] = []
        self._next_token = 100

    def turn(
        self,
        parent: int | None,
        *,
        prompt: int = 2,
        completion: int = 2,
        temperature: float = 1.0,
        delivery: Delivery = Delivery.DELIVERED,
        policy_step: int = 0,
        is_cut: bool = False,
    ) -> int:
        """A turn after the completion node `parent` (None: at a new root); its own completion."""
        nodes, turn = builders.turn_with_nodes(
            len(self.turns),
            prompt=self._tokens(prompt),
            completion=self._tokens(completion),
            logprobs=[-(i + 1) / 8 - len(self.turns) for i in range(completion)],
            parent=-1 if parent is None else parent,
            first_node=len(self.nodes),
            policy=Policy(policy_step=policy_step),
            sampling=SamplingParams(temperature=temperature),
            delivery=delivery,
            finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
        )
        self.nodes += nodes
        self.turns.append(turn)
        return turn.leaf

    def again(self, leaf: int, *, completion: int = 2) -> int:
        """A second completion of the prompt that `leaf` answered."""
        prompt = self.nodes[leaf].parent
        node = replace(
            self.nodes[leaf],
            node_id=len(self.nodes),
            parent=prompt,
            tokens=np.array(self._tokens(completion), dtype=np.int32),
            logprobs=np.full(completion, -0.25, dtype=np.float32),
        )
        earlier = next(turn for turn in self.turns if turn.leaf == leaf)
        self.nodes.append(node)
        self.turns.append(
            replace(
                earlier,
                turn_id=f"trn_{len(self.turns)}",
                index=len(self.turns),
                leaf=node.node_id,
                completion_tokens=completion,
                delivery=Delivery.DELIVERED,
            )
        )
        return node.node_id

    def trajectory(self, rollout_id: str = "rol_a", **rollout: object) -> Trajectory:
        """The rollout's record; rewarded with 1 unless told otherwise."""
        fields = {"status": RolloutStatus.REWARDED, "rewards": (1.0,)} | rollout
        return Trajectory(
            rollout=builders.rollout(rollout_id, **fields),
            nodes=tuple(self.nodes),
            turns=tuple(self.turns),
        )

    def _tokens(self, count: int) -> range:
        first, self._next_token = self._next_token, self._next_token + count
        return range(first, first + count)


def chain(turns: int, **rollout: object) -> Trajectory:
    """Turns that each extend the one before."""
    graph = Graph()
    leaf = None
    for _ in range(turns):
        leaf = graph.turn(leaf)
    return graph.trajectory(**rollout)


def think_drop(turns: int = 8, think: int = 200, answer: int = 60) -> Trajectory:
    """Every turn forks: the template drops the thinking of all earlier turns from the prompt.

    The prompt of turn n repeats the earlier answers without their thinking, at a root of its own.
    """
    graph = Graph()
    for turn in range(turns):
        graph.turn(None, prompt=20 + turn * (answer + 20), completion=think + answer)
    return graph.trajectory()


@st.composite
def trajectories(draw: st.DrawFn, purpose: Purpose = Purpose.TRAIN) -> Trajectory:
    """Any graph: chains, forks, new roots, resampled prompts, greedy and undelivered turns."""
    graph = Graph()
    leaves: list[int] = []
    for _ in range(draw(st.integers(0, 8))):
        if leaves and draw(st.integers(0, 4)) == 0:
            leaves.append(graph.again(draw(st.sampled_from(leaves)), completion=draw(_LENGTHS)))
            continue
        leaf = graph.turn(
            draw(st.sampled_from([None, *leaves])),
            prompt=draw(_LENGTHS),
            completion=draw(_LENGTHS),
            temperature=draw(st.sampled_from([0.0, 0.7, 1.0, 1.0])),
            delivery=draw(st.sampled_from([Delivery.DELIVERED] * 3 + [Delivery.UNDELIVERED])),
            policy_step=draw(st.integers(0, 3)),
            is_cut=draw(st.integers(0, 2)) == 0,
        )
        if graph.turns[-1].is_delivered:  # nothing extends a reply that the agent never got
            leaves.append(leaf)
    return graph.trajectory(purpose=purpose)


_LENGTHS = st.integers(0, 4)


def completions(trajectory: Trajectory) -> list[Node]:
    return [node for node in trajectory.nodes if node.kind is NodeKind.COMPLETION]
