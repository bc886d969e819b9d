"""Attempts at a row, and their records: Rollout, Node, Turn, Trajectory, Group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Message = Mapping[str, Any]  # one chat message in OpenAI's shape


class Purpose(StrEnum):
    """Why a rollout is made. Only `TRAIN` rollouts are trained."""

    TRAIN = "train"
    VALIDATION = "validation"
    EVALUATION = "evaluation"


class RolloutStatus(StrEnum):
    """The states of contract §3.4. PENDING -> READY -> REWARDED, or FAILED from the first two."""

    PENDING = "PENDING"  # the agent may sample
    READY = "READY"  # completed, waiting for its reward
    FAILED = "FAILED"
    REWARDED = "REWARD_RECEIVED"

    @property
    def is_open(self) -> bool:
        """Whether something can still change what is trained."""
        return self in (RolloutStatus.PENDING, RolloutStatus.READY)


class Blame(StrEnum):
    """Which side a fault is attributed to."""

    AGENT = "agent"
    SAMPLER = "sampler"
    REWARD = "reward"
    SERVICE = "service"


#: Longest reason of a score that is kept, characters.
MAX_REASON = 2000

#: The code of a fault that ends the job.
ACCESS_DENIED = "access_denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a rollout failed: data, not an exception.

    `code` is stable and short ("unreachable", "http_error", "deadline", "no_reward", "no_turns",
    "agent_failed", "access_denied", "sampler_error", "superseded", "cancelled"); `message` says it
    to a person.
    """

    blame: Blame
    code: str
    message: str = ""
    retryable: bool = True

    @property
    def is_late(self) -> bool:
        """Whether a deadline passed; the code says what the rollout lacked then."""
        return self.code in ("deadline", "no_reward", "no_turns")

    @property
    def is_fatal(self) -> bool:
        """Whether it ends the job: the agent refuses the service, and so it will every time."""
        return self.code == ACCESS_DENIED


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. `top_k` 0 and `top_p` 1 mean: no truncation."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a turn is sampled from: an adapter (None is the base) and the step that published it."""

    adapter_id: str | None = None
    policy_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One attempt by the agent at one row.

    (job, incarnation, group, slot) names its place; a retry has the same place, a new id and the
    next `attempt`. `policy`, where set, pins every turn to it (evaluation); a training rollout
    has None and each turn takes the job's newest adapter. `step` is the step it was planned at.
    The secret that the data plane checks is stored as `secret_sha256`, hex. `reason` is what its
    evaluator says of its score, at most `MAX_REASON` characters.
    """

    rollout_id: str
    account_id: str
    job_id: str
    incarnation: int
    group_id: str
    slot: int
    attempt: int
    purpose: Purpose
    row_index: int
    step: int
    seed: int  # the job's seed; a turn's own seed is derived from it and the place
    sampling: SamplingParams
    secret_sha256: str
    created_at: float
    deadline_at: float
    policy: Policy | None = None
    status: RolloutStatus = RolloutStatus.PENDING
    rewards: tuple[float, ...] | None = None  # one number, or one per delivered turn
    metrics: Mapping[str, float] = field(default_factory=dict)
    fault: Fault | None = None
    ended_at: float | None = None
    reason: str = ""

    @property
    def reward(self) -> float | None:
        """The rollout's total reward: the sum of what was reported, None while unscored.

        Correctly rounded, so that ten turns of 0.1 are a success where 1.0 is the threshold.
        """
        return None if self.rewards is None else math.fsum(self.rewards)

    @property
    def why(self) -> str:
        """Why it has its score, or none, in words; "" where nobody has said."""
        return self.fault.message if self.fault is not None else self.reason

    @property
    def is_scored(self) -> bool:
        """Whether it counts for learning: rewarded and not failed."""
        return self.status is RolloutStatus.REWARDED and self.rewards is not None


class ForkCause(StrEnum):
    """Why a request did not extend an earlier turn of its rollout."""

    TEMPLATE = "template"  # the chat family's template drops earlier reasoning here
    EDITED_ASSISTANT = "edited_assistant"  # the agent changed what the model had said
    REWRITTEN_HISTORY = "rewritten_history"  # the agent changed another message, or the tools
    TRUNCATED = "truncated"  # the agent dropped earlier messages


class NodeKind(StrEnum):
    """Whether the model said it."""

    PROMPT = "prompt"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A piece of a rollout's message graph: the messages and tokens that it adds to its parent.

    Concatenating root -> node gives exactly what the model saw. A completion holds one assistant
    message and its logprobs; a prompt holds the messages since the parent and their tokens, the
    generation prompt included. `node_id` counts from 0 per rollout, in commit order.
    """

    node_id: int
    parent: int | None
    kind: NodeKind
    messages: tuple[Message, ...]
    tokens: Tokens  # [n]
    logprobs: Floats | None = None  # [n] for completions
    tools_sha256: str = ""  # of the request's tools, on roots
    tools: tuple[Mapping[str, Any], ...] = ()  # these, on roots, in OpenAI's shape
    fork_cause: ForkCause | None = None


class FinishReason(StrEnum):
    """Why sampling ended."""

    STOP = "stop"  # an end-of-turn token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    TOOL_CALLS = "tool_calls"  # a stop whose reply holds tool calls
    ABORT = "abort"
    TIMEOUT = "timeout"  # the job's turn_timeout passed; never delivered


class Delivery(StrEnum):
    """What became of a turn's reply."""

    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"  # the stream broke: not trained, not counted as a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model call: a leaf of the graph, and how it was sampled."""

    turn_id: str
    index: int  # commit order in the rollout, counting delivered and undelivered alike
    leaf: int  # node_id of the completion
    policy: Policy
    sampling: SamplingParams
    seed: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    request_sha256: str  # of the request body, for a client's automatic retry
    delivery: Delivery = Delivery.DELIVERED
    started_at: float = 0.0
    ended_at: float = 0.0
    cached_tokens: int = 0  # of the prompt, taken from the sampler's prefix cache
    past_stop_tokens: int = 0  # sampled behind a stop string: on no node, never trained

    @property
    def sampled_tokens(self) -> int:
        """All that was sampled for it."""
        return self.completion_tokens + self.past_stop_tokens

    @property
    def is_delivered(self) -> bool:
        """Whether the agent got it."""
        return self.delivery is Delivery.DELIVERED

    @property
    def is_truncated(self) -> bool:
        """Whether the agent got a reply that was cut off: by max_tokens, a budget, the context."""
        return self.is_delivered and self.finish_reason is FinishReason.LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A rollout's record: its turns as a graph."""

    rollout: Rollout
    nodes: tuple[Node, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def delivered(self) -> tuple[Turn, ...]:
        """The turns that count, in commit order."""
        return tuple(t for t in self.turns if t.is_delivered)

    @property
    def sampled_tokens(self) -> int:
        """All tokens the model sampled for it, delivered or not."""
        return sum(turn.sampled_tokens for turn in self.turns)

    def path(self, leaf: int) -> tuple[Node, ...]:
        """Nodes from the root to `leaf`."""
        found: list[Node] = []
        at: int | None = leaf
        while at is not None:
            node = self.nodes[at]
            found.append(node)
            at = node.parent
        return tuple(reversed(found))


class GroupStatus(StrEnum):
    """A group closes when every slot is scored or failed for good; then a step takes it."""

    OPEN = "open"
    CLOSED = "closed"
    TRAINED = "trained"  # taken by a step, whether or not its advantages were zero
    SUPERSEDED = "superseded"  # of an earlier incarnation, planned again


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The G rollouts of one row. `order` counts admissions per job from 0; `step` trained it."""

    group_id: str
    account_id: str
    job_id: str
    incarnation: int
    order: int
    row_index: int
    epoch: int
    size: int
    admitted_at_step: int
    status: GroupStatus = GroupStatus.OPEN
    step: int | None = None
