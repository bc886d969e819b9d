"""The gateway's cached view of one rollout; anything in it can be rebuilt from the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from turnwise.domain.rollout import (
    Delivery,
    FinishReason,
    Message,
    Node,
    NodeKind,
    Trajectory,
    Turn,
)
from turnwise.gateway.budget import Budget
from turnwise.gateway.chat import RawOutput, Reply, TokenLogprob
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.graph import Graph, path_sha256
from turnwise.gateway.turns import Call, Completion, Prompt


class Record:
    """A rollout with its graph, its turns, and the calls under way.

    `commits` is held while a turn is written, so that node ids follow commit order; `moves`
    while the status changes. Sampling itself holds neither: sub-agents run in parallel.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self.rollout = trajectory.rollout
        self.graph = Graph()
        self.turns: list[Turn] = []
        self.commits = asyncio.Lock()
        self.moves = asyncio.Lock()
        self.closed = asyncio.Event()
        self.is_settling = False
        self.budget = Budget(trajectory.sampled_tokens)
        self._asked: Counter[bytes] = Counter()
        self._running: set[Exchange] = set()
        self._latest: Exchange | None = None
        undelivered = {turn.leaf for turn in trajectory.turns if not turn.is_delivered}
        for node in trajectory.nodes:
            self.graph.add(node, delivered=node.node_id not in undelivered)
        self.turns.extend(trajectory.turns)
        for turn in trajectory.turns:
            self.count(path_sha256(self.graph.path_tokens(self.graph.nodes[turn.leaf].parent)))
        if self.turns and self.turns[-1].is_delivered:
            last = self.turns[-1]
            self._latest = Exchange.finished(
                last.request_sha256, reply_to(last, self.graph.nodes[last.leaf].messages[0])
            )
        if not self.rollout.status.is_open:
            self.closed.set()

    def trajectory(self) -> Trajectory:
        """The whole record, as the store has it."""
        return Trajectory(
            rollout=self.rollout, nodes=tuple(self.graph.nodes), turns=tuple(self.turns)
        )

    # ── calls under way ───────────────────────────────────────────────────────────────────────

    def begin(self, exchange: Exchange) -> None:
        """A new model call; from now on it is the rollout's latest request."""
        self._running.add(exchange)
        self._latest = exchange

    def end(self, exchange: Exchange) -> None:
        """Its turn is settled."""
        self._running.discard(exchange)
        self.budget.release(exchange.turn_id)

    def repeated(self, sha256: str) -> Exchange | None:
        """The exchange that a client's automatic retry of that body asks for again.

        One that its client has left comes first (parallel equal requests get one each), then one
        that still runs, then the latest request's reply.
        """
        same = [e for e in self._running if e.sha256 == sha256]
        for exchange in same:
            if exchange.is_abandoned:
                return exchange
        for exchange in same:
            if exchange.is_running:
                return exchange
        latest = self._latest
        if latest is not None and latest.sha256 == sha256 and latest.is_repeatable:
            return latest
        return None

    async def settle(self) -> None:
        """Give up every call under way and wait until what was sampled is on record.

        Who stops waiting does not end the calls: each still records what it has sampled.
        """
        self.give_up()
        if tasks := [exchange.task for exchange in self._running if exchange.task]:
            await asyncio.wait(tasks)

    def give_up(self) -> None:
        """As `settle`, without waiting."""
        for exchange in self._running:
            exchange.expire()

    # ── turns ─────────────────────────────────────────────────────────────────────────────────

    @property
    def delivered_turns(self) -> int:
        """How many turns count."""
        return sum(turn.is_delivered for turn in self.turns)

    def count(self, path: bytes) -> int:
        """How often this place in the graph was sampled before; counts this time."""
        self._asked[path] += 1
        return self._asked[path] - 1

    def draft(
        self,
        call: Call,
        said: Completion,
        message: Message,
        *,
        delivery: Delivery,
        ended_at: float,
    ) -> tuple[list[Node], Turn]:
        """The nodes and the turn to commit, numbered in commit order."""
        nodes = self._prompt_nodes(call.prompt)
        parent = nodes[-1].node_id if nodes else self._known_prompt(call.prompt)
        leaf = Node(
            node_id=len(self.graph.nodes) + len(nodes),
            parent=parent,
            kind=NodeKind.COMPLETION,
            messages=(message,),
            tokens=said.tokens,
            logprobs=said.logprobs,
        )
        turn = Turn(
            turn_id=call.turn_id,
            index=len(self.turns),
            leaf=leaf.node_id,
            policy=call.policy,
            sampling=call.sampling,
            seed=call.seed,
            finish_reason=said.finish_reason or FinishReason.ABORT,
            prompt_tokens=len(call.prompt.tokens),
            completion_tokens=len(leaf.tokens),
            request_sha256=call.request_sha256,
            delivery=delivery,
            started_at=call.started_at,
            ended_at=ended_at,
            cached_tokens=said.cached_tokens,
            past_stop_tokens=said.past_stop_tokens,
        )
        return [*nodes, leaf], turn

    def add(self, nodes: list[Node], turn: Turn) -> None:
        """Take over what the store has committed."""
        for node in nodes:
            self.graph.add(node, delivered=turn.is_delivered or node.node_id != turn.leaf)
        self.turns.append(turn)
        self.budget.spend(turn.turn_id, turn.sampled_tokens)

    def conceal(self, turn: Turn) -> None:
        """The turn's reply did not reach the agent after all."""
        self.turns[turn.index] = replace(turn, delivery=Delivery.UNDELIVERED)
        self.graph.conceal(turn.leaf)

    def _known_prompt(self, prompt: Prompt) -> int | None:
        return self.graph.find_prompt(
            prompt.parent, prompt.added, prompt.tools_sha256, prompt.messages
        )

    def _prompt_nodes(self, prompt: Prompt) -> list[Node]:
        """A prompt node, unless the same was asked before (perhaps while this call ran)."""
        if self._known_prompt(prompt) is not None:
            return []
        node = Node(
            node_id=len(self.graph.nodes),
            parent=prompt.parent,
            kind=NodeKind.PROMPT,
            messages=prompt.messages,
            tokens=prompt.added,
            tools_sha256=prompt.tools_sha256,
            tools=prompt.tools,
            fork_cause=prompt.cause,
        )
        return [node]


def reply_to(
    turn: Turn,
    message: Message,
    *,
    model: str = "default",
    logprobs: tuple[TokenLogprob, ...] | None = None,
    raw_output: RawOutput | None = None,
) -> Reply:
    """A committed turn as its agent gets it."""
    return Reply(
        turn_id=turn.turn_id,
        model=model,
        created_at=turn.ended_at,
        message=message,
        finish_reason=turn.finish_reason,
        prompt_tokens=turn.prompt_tokens,
        completion_tokens=turn.completion_tokens,
        cached_tokens=turn.cached_tokens,
        logprobs=logprobs,
        raw_output=raw_output,
    )
