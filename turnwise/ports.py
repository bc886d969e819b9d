"""The sockets between rooms, as Protocols. `turnwise.app` and `turnwise.worker` plug rooms in."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from turnwise import errors
from turnwise.domain.access import Account, Key
from turnwise.domain.agent import AgentLogEntry, AgentLogKind
from turnwise.domain.audit import (
    AuditDraft,
    AuditHead,
    AuditQuery,
    AuditRecord,
    AuditSegment,
    Sealer,
)
from turnwise.domain.evaluation import Finished, Score
from turnwise.domain.evaluator import Evaluator
from turnwise.domain.event import Event, EventDraft, EventKind, Level
from turnwise.domain.job import CHECKPOINTS, Inputs, Job, JobKind, JobSpec, JobStatus, Secondary
from turnwise.domain.ledger import TokenUsage
from turnwise.domain.objects import Listing, Part, StoredObject, Upload
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import (
    Fault,
    Floats,
    Group,
    Message,
    Node,
    Policy,
    Purpose,
    Rollout,
    RolloutStatus,
    SamplingParams,
    Tokens,
    Trajectory,
    Turn,
)
from turnwise.domain.traced import TracedCall, TracedLog, TraceQuery
from turnwise.domain.training import (
    Checkpoint,
    DataPosition,
    LearnerSpec,
    StepRequest,
    StepResult,
)

# ── time and names ────────────────────────────────────────────────────────────────────────────


class Clock(Protocol):
    """Time, passed in so that tests can hold it still."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long on this clock."""
        ...


class NewId(Protocol):
    """Makes ids: `new_id("job")` -> "job_qxhbmzkv...", lower-case letters only after the prefix.

    Letters only, because the sagemaker SDK swallows any error whose URL contains "404".
    """

    def __call__(self, prefix: str) -> str:
        """A new id that starts with the prefix."""
        ...


# ── sampling ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerInfo:
    """What a sampler is."""

    model: str
    vocab_size: int
    max_length: int  # prompt + completion, tokens
    max_slots: int  # requests decoded at once
    dtype: str
    deterministic: bool
    sampled_logprobs: bool  # gives design §4.7's logprob; otherwise refused for training


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One completion to sample. Stop *strings* are the gateway's business; the engine sees ids.

    `claimant` names whose turn it is in the fair queue ("{job_id}/train"). `admitted` requests
    (rollouts the loop let in) always queue; others are refused when the queue is full.
    `stream` False gives one chunk at the end; True gives chunks as tokens are chosen.
    """

    request_id: str
    claimant: str
    prompt: Tokens  # [P]
    adapter_id: str | None
    sampling: SamplingParams
    seed: int  # 64 bit; the n-th token's randomness depends on (seed, n) alone
    stop_ids: tuple[int, ...] = ()
    admitted: bool = True
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The next sampled tokens of one request. The last chunk carries `finish_reason`.

    `logprobs` follow design §4.7: temperature applied, before top-p/top-k truncation (at
    temperature 0: of the argmax, at temperature 1). A stop id that was sampled is included.
    """

    tokens: Tokens  # [n]
    logprobs: Floats  # [n]
    finish_reason: str | None = None  # "stop" | "length" | "abort"
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerStats:
    """A snapshot of the engine."""

    running: int = 0
    waiting: int = 0
    sampled_tokens: int = 0  # since start
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    adapters: int = 0


class Sampler(Protocol):
    """Tokens in, tokens and logprobs out, under a base model and any number of adapters."""

    async def info(self) -> SamplerInfo:
        """What this sampler is; waits until it can serve."""
        ...

    async def load(self, adapter_id: str, path: str) -> None:
        """Make an adapter (a PEFT folder) available. Loading the same id again does nothing.

        Raises `InvalidInput` if the folder does not fit the base model, `Corrupted` if its hash
        is not `adapter_id`.
        """
        ...

    async def retire(self, adapter_id: str) -> None:
        """Free an adapter once the last request on it has ended. Unknown ids are fine."""
        ...

    def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        """Sample one completion.

        Closing the iterator ends the request too, but what it sampled since the last chunk is
        not told then; `abort` tells it.

        Raises `NotFound` for an unknown adapter, `InvalidInput` for a prompt that does not fit,
        `LimitExceeded` when the queue is full.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request early, whether it streams or not: its last chunk comes soon, "abort".

        That chunk has what was sampled since the one before. Unknown and ended ids are fine.
        """
        ...

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        """Logprob of each token given the ones before it, [T] in, [T] out (index 0 is 0.0)."""
        ...

    async def stats(self) -> SamplerStats:
        """A snapshot."""
        ...

    async def lost(self) -> None:
        """Return when the sampler has ended without being asked to: its process, or a step."""
        ...

    async def close(self) -> None:
        """End it; requests under way end with `abort`."""
        ...


# ── learning ──────────────────────────────────────────────────────────────────────────────────


class Learner(Protocol):
    """LoRA parameters, optimizer and RNG of one job; one call at a time."""

    async def step(self, request: StepRequest) -> StepResult:
        """Update. Raises `ParityExceeded` before any update if the gate fails."""
        ...

    async def save(self, step: int, folder: str, position: DataPosition) -> Checkpoint:
        """Write a checkpoint folder atomically. Raises `StorageFull`, leaving nothing behind."""
        ...

    async def restore(self, checkpoint: Checkpoint) -> DataPosition:
        """Continue from a checkpoint, bit for bit; where its data stood.

        Raises `Corrupted` if its hash is wrong.
        """
        ...

    async def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        """As `Sampler.score`, under the current parameters."""
        ...

    async def close(self) -> None:
        """End the process."""
        ...


# ── agents ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRequest:
    """One rollout for the agent to run. `endpoint` is its own base URL, secret included.

    `{endpoint}/v1/chat/completions`, `{endpoint}/complete-rollout` and `{endpoint}/update-reward`
    need no headers and no key.
    """

    rollout_id: str
    job_id: str
    job_arn: str  # arn:aws:sagemaker:<region>:...
    endpoint: str
    prompt: str
    fields: Mapping[str, Any]
    sampling: SamplingParams
    timeout_s: float
    group_id: str = ""  # siblings have the same


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOutcome:
    """What became of one dispatch. The reward comes by the data plane, not here."""

    rollout_id: str
    fault: Fault | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class AgentDoor(Protocol):
    """What an agent in the server's own process calls, where one outside calls its endpoint."""

    async def chat(self, rollout_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """One turn: OpenAI's request body in, its `chat.completion` out.

        Raises as `Gateway.chat`. Cancelling it is a client that has gone.
        """
        ...

    async def report(
        self,
        rollout_id: str,
        rewards: Sequence[float],
        metrics: Mapping[str, float],
        reason: str = "",
    ) -> None:
        """The rollout is complete: its reward (one, or one per delivered turn) and its metrics.

        `reason` says in words why that is its reward.
        """
        ...


class AgentRunner(Protocol):
    """Reaches the user's agent."""

    async def check(self) -> None:
        """Raise `Unavailable` with the remedy when the agent cannot be reached."""
        ...

    def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Dispatch rollouts and yield an outcome for each, in any order. Closing it cancels."""
        ...

    async def close(self) -> None:
        """Free connections."""
        ...


class AgentLog(Protocol):
    """Where what happens with one agent is noted."""

    def note(
        self, kind: AgentLogKind, text: str, *, rollout_id: str = "", job_id: str = ""
    ) -> None:
        """Keep an entry soon. Neither waits nor raises."""
        ...


class Scorer(Protocol):
    """Judges finished rollouts of an evaluation, independently of the agent's own reward."""

    @property
    def name(self) -> str:
        """Its name in metrics and tables."""
        ...

    async def score(self, finished: Finished) -> Score:
        """A number, or the problem: whatever goes wrong costs this score and nothing else."""
        ...

    async def close(self) -> None:
        """Free connections and threads."""
        ...


# ── the gateway, as the loop sees it ──────────────────────────────────────────────────────────


class Rollouts(Protocol):
    """Opens rollouts for agents and tells when they close. Implemented by the gateway."""

    def publish(self, job_id: str, policy: Policy) -> None:
        """From now on, unpinned turns of this job are sampled from `policy`."""
        ...

    async def open(self, rollouts: Sequence[Rollout]) -> None:
        """Record the rollouts as PENDING; from then on their agents are answered."""
        ...

    def closed(self, rollout_id: str) -> Awaitable[Trajectory]:
        """Wait until the rollout is rewarded or failed; its full record."""
        ...

    async def fail(self, rollout_id: str, fault: Fault) -> None:
        """Close an open rollout as failed. No effect on one that has closed."""
        ...

    async def add_metrics(self, rollout_id: str, metrics: Mapping[str, float]) -> None:
        """Store what the agent measured."""
        ...


# ── rendering ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A completion read back as a message in OpenAI's shape, with `reasoning_content` if any."""

    message: Message
    has_tool_calls: bool


class ReplyStream(Protocol):
    """Turns sampled tokens into what may already be sent (design §4.5)."""

    def feed(self, tokens: Tokens) -> Sequence[Mapping[str, Any]]:
        """Deltas certain by now: {"content": ...}, {"reasoning_content": ...} or, once a call is
        complete, {"tool_calls": [{"index", "id", "type", "function"}]}.
        """
        ...

    def finish(self) -> Sequence[Mapping[str, Any]]:
        """The rest. All deltas joined equal `parse` of all tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StopScan:
    """What a look for stop strings found so far in one completion.

    `readable` goes to `ReplyStream.feed` (or, joined, to `Renderer.parse`) in place of the sampled
    tokens: those whose text surely precedes a stop string. `kept` counts the completion's tokens
    up to and including the one that completed a stop string; None while none is complete.
    """

    readable: Tokens
    kept: int | None


class StopStrings(Protocol):
    """Watches one completion for OpenAI's `stop`. The string itself is not in the content.

    Sampling ends at `kept`; those tokens are recorded as sampled, whatever text is delivered.
    """

    def feed(self, tokens: Tokens) -> StopScan:
        """Look at the next sampled tokens."""
        ...

    def finish(self) -> Tokens:
        """Readable tokens still held back, when sampling ended for another reason."""
        ...


class Renderer(Protocol):
    """One chat family: messages <-> tokens."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant's turn."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Tokens:
        """The prompt for the assistant's next turn, generation prompt included.

        Raises `InvalidInput` for content that the model cannot see (an image).
        """
        ...

    def bridge(
        self,
        prompt: Tokens,
        completion: Tokens,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
    ) -> Tokens | None:
        """Tokens to put after prompt + completion for the new messages and the next turn.

        None where the family's own template would not keep these tokens (dropped reasoning).
        """
        ...

    def parse(
        self, prompt: Tokens, completion: Tokens, tools: Sequence[Mapping[str, Any]]
    ) -> Parsed:
        """Read a completion."""
        ...

    def stream(self, prompt: Tokens, tools: Sequence[Mapping[str, Any]]) -> ReplyStream:
        """A reader for a completion as it is sampled."""
        ...

    def stops(self, strings: Sequence[str]) -> StopStrings:
        """A watcher for stop strings. Raises `InvalidInput` for an empty one."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens, special tokens included."""
        ...


# ── storage ───────────────────────────────────────────────────────────────────────────────────


class RolloutSort(StrEnum):
    """What a page of rollouts is ordered by. Open rollouts have a place in `SEQ` alone."""

    SEQ = "seq"  # as they were opened
    REWARD = "reward"
    TURNS = "turns"
    TOKENS = "tokens"
    DURATION = "duration"


_CURSOR = re.compile(r"(?:v([0-9a-f]{16})|n)s([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class RolloutCursor:
    """A rollout's place in an order: its value of the sort key (None: it has none) and its `seq`.

    >>> RolloutCursor(0.5, 12).encode()
    'v3fe0000000000000s12'
    >>> RolloutCursor.decode("v3fe0000000000000s12")
    RolloutCursor(value=0.5, seq=12)
    """

    value: float | None
    seq: int

    def encode(self) -> str:
        """Letters and digits; the value to the last bit."""
        value = "n" if self.value is None else "v" + struct.pack(">d", self.value).hex()
        return f"{value}s{self.seq}"

    @classmethod
    def decode(cls, text: str) -> RolloutCursor:
        """What `encode` gave. Raises `InvalidInput`."""
        found = _CURSOR.fullmatch(text)
        value = None if found is None or not found[1] else _double(found[1])
        if found is None or not (value is None or math.isfinite(value)):
            remedy = "take one from the page before, or leave it out for the first page"
            raise errors.InvalidInput("after", text, "is no place in a list", remedy=remedy)
        return cls(value, int(found[2]))


def _double(digits: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(digits))
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutQuery:
    """A page of a job's rollouts, by keyset: those after the place `after`, in the order asked for.

    Rollouts without a value of the sort key come last in both directions. `text` holds words and
    "phrases", all of which the prompt or the messages must have; a rollout is searched once it has
    ended. `is_valid` True: scored and not failed; False: ended otherwise.
    """

    job_id: str
    step: int | None = None
    purpose: Purpose | None = None
    status: RolloutStatus | None = None
    row_index: int | None = None
    group_id: str | None = None
    trained_step: int | None = None  # that took its group; `step` is the one it was planned at
    reward_ge: float | None = None
    reward_lt: float | None = None
    fault_code: str | None = None
    is_valid: bool | None = None
    text: str = ""
    sort: RolloutSort = RolloutSort.SEQ
    descending: bool = False
    after: RolloutCursor | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """A rollout in a list; `seq` counts rollouts as they were opened, over all jobs."""

    seq: int
    rollout: Rollout
    turns: int
    tokens: int

    def cursor(self, sort: RolloutSort = RolloutSort.SEQ) -> RolloutCursor:
        """Its place in that order."""
        return RolloutCursor(self._value(sort), self.seq)

    def _value(self, sort: RolloutSort) -> float | None:
        if sort is RolloutSort.REWARD:
            return self.rollout.reward
        ended_at = self.rollout.ended_at
        if sort is RolloutSort.SEQ or ended_at is None:
            return None
        values = {
            RolloutSort.TURNS: self.turns,
            RolloutSort.TOKENS: self.tokens,
            RolloutSort.DURATION: ended_at - self.rollout.created_at,
        }
        return float(values[sort])


#: The most characters of a text in an excerpt.
EXCERPT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """What a rollout was asked and last replied, each cut to `EXCERPT` characters.

    `prompt` is the last user message of its first request; `reply` the content of its last
    completion, with the calls of tools in it.
    """

    prompt: str = ""
    reply: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often rewards fall where: `counts[i]` of them are >= `edges[i]` and < `edges[i + 1]`.

    `unscored` rollouts have no reward. Without any rewards there are no edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unscored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many rollouts of a job are alike in these."""

    step: int
    purpose: Purpose
    status: RolloutStatus
    fault_code: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A page of an account's jobs, newest first: those before `after` (a job's `seq`).

    `name` is a part of the name, in any case; no `statuses` means all, `job_ids` None any. Account
    None: all accounts (for the queue, which is one for all).
    """

    account_id: str | None
    statuses: tuple[JobStatus, ...] = ()
    name: str = ""
    kind: JobKind | None = None
    after: int | None = None
    limit: int = 50
    job_ids: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job in a list, without its spec; `seq` is its cursor.

    `model` is the base model's folder, `output_group` that of its adapters, `latest_reward` the
    mean training reward of its newest step, `last_event` the newest event's seq.
    """

    seq: int
    job_id: str
    account_id: str
    name: str
    kind: JobKind
    status: JobStatus
    secondary: Secondary
    message: str
    step: int
    max_steps: int
    incarnation: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    model: str
    output_group: str
    output: str
    parent: str
    description: str
    priority: int
    latest_reward: float | None
    last_event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """A page of a job's events: of these levels and kinds (none given: all), with these values.

    `text` is a part of what the event says, in any case; of rollouts' ends, unless `rollout_id` or
    `step` is given, only the failed say something. `rollout_id` and `step` are those in the body.
    Events with `after` < seq < `before`, oldest first unless `newest_first`.
    """

    job_id: str
    levels: tuple[Level, ...] = ()
    text: str = ""
    rollout_id: str = ""
    step: int | None = None
    kinds: tuple[EventKind, ...] = ()
    after: int = 0
    before: int | None = None
    limit: int = 200
    newest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPackage:
    """A registered, immutable version: `{group}/{version}`. `kind` is "adapter" or "checkpoint".

    A checkpoint is resumable and its `sha256` covers all its files; an adapter is deployable and
    its `sha256` is the adapter's id. `metadata` is its lineage (`loop.packages.lineage`). Once
    `pruned_at` is set its files are gone and it is a record alone.
    """

    package_id: str
    account_id: str
    group: str
    version: int
    kind: str
    path: str
    sha256: str
    base_model: str
    job_id: str
    step: int
    created_at: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pruned_at: float | None = None

    @property
    def name(self) -> str:
        """ "group/version"."""
        return f"{self.group}/{self.version}"

    @property
    def twin(self) -> str:
        """The name of the same step's package of the other kind."""
        other = "adapter" if self.kind == "checkpoint" else "checkpoint"
        group = self.metadata.get("groups", {}).get(other)
        if group is None:  # registered before a job could name its groups
            group = self.group.removesuffix(CHECKPOINTS)
            group = group if other == "adapter" else group + CHECKPOINTS
        return f"{group}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BareModel:
    """A base model without any adapter, by its name in the catalogue."""

    name: str
    folder: str


#: What can be asked outside rollouts.
ServedModel = ModelPackage | BareModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A checkpoint folder whose files nothing needs any more."""

    path: str
    with_adapter: bool  # else its adapter stays


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStep:
    """All that a training step leaves behind, stored in one transaction.

    `bins` maps rollout_id -> {bin: tokens} for every rollout of the groups it took; `groups` are
    their ids. They must be CLOSED, and `step` the job's next: else `Conflict`, and nothing is kept.
    If the version of its packages is taken, by another job of the group, they get the next free.
    """

    step: int
    policy: Policy  # the one published by this step
    groups: tuple[str, ...]
    bins: Mapping[str, Mapping[str, int]]
    checkpoint: Checkpoint | None
    packages: tuple[ModelPackage, ...]
    events: tuple[EventDraft, ...]


class Store(Protocol):
    """The database. Every call takes the account; a call returns once its change is synced."""

    # jobs and events
    async def create_job(self, job: Job, records: Sequence[Resource] = ()) -> Job:
        """Raises `Conflict` if its name is taken, or a model that it needs is gone.

        `records` are kept with it, in place of what may be left of their names.
        """
        ...

    async def job(self, account_id: str, id_or_name: str) -> Job:
        """Raises `NotFound`."""
        ...

    async def jobs(
        self, account_id: str | None, *, status: JobStatus | None = None, limit: int = 100
    ) -> list[Job]:
        """Newest first. Account None: all accounts (for the server's own restart)."""
        ...

    async def job_page(self, query: JobQuery) -> list[JobSummary]:
        """One page, without the jobs' specs."""
        ...

    async def update_spec(self, account_id: str, job_id: str, spec: JobSpec) -> None:
        """Replace the spec of a job that has not started."""
        ...

    async def delete_job(
        self, account_id: str, job_id: str, records: Collection[tuple[str, str]] = ()
    ) -> None:
        """Remove a final job and all that belongs to it, but for its model packages.

        With it go the records of these kinds and names. Raises `Conflict` if it is not final.
        """
        ...

    async def append(
        self, account_id: str, job_id: str, drafts: Sequence[EventDraft]
    ) -> list[Event]:
        """Number and keep events. A STATUS event moves the job too (`Conflict` if it may not).

        One that ends the job makes its newest adapter the job's `output`, with a PROMOTION event
        before it where that is a new one.
        """
        ...

    async def events(
        self,
        account_id: str,
        job_id: str,
        *,
        after: int = 0,
        kinds: Sequence[str] = (),
        limit: int = 1000,
    ) -> list[Event]:
        """Events with seq > after, in order."""
        ...

    async def log_events(self, account_id: str, query: LogQuery) -> list[Event]:
        """One page. Raises `NotFound`."""
        ...

    async def metrics_since(self, account_id: str, job_id: str, after: int) -> list[Event]:
        """All METRICS events with seq > after, in order. Raises `NotFound`."""
        ...

    async def last_event(self, account_id: str, job_id: str) -> int:
        """The newest event's seq, 0 if there is none. Raises `NotFound`."""
        ...

    async def wait_for(self, account_id: str, job_id: str, *, after: int) -> None:
        """Return once the job has an event with seq > after. Raises `NotFound`.

        For live readers: `events(after=n)`, then `wait_for(after=last)`, and again.
        """
        ...

    async def record_inputs(self, account_id: str, job_id: str, inputs: Inputs) -> None:
        """Keep what the job's first start found; later ones change nothing."""
        ...

    async def start_incarnation(self, account_id: str, job_id: str) -> int:
        """Count one more start of the job's loop; its number, from 1."""
        ...

    # rollouts
    async def open_group(self, group: Group) -> None:
        """Record an admitted group."""
        ...

    async def close_group(self, account_id: str, group_id: str) -> None:
        """OPEN -> CLOSED."""
        ...

    async def groups(
        self,
        account_id: str,
        job_id: str,
        *,
        status: str | None = None,
        step: int | None = None,
        group_id: str | None = None,
    ) -> list[Group]:
        """In order of admission; of that status, taken by that step, of that id."""
        ...

    async def supersede(
        self, account_id: str, job_id: str, incarnation: int, *, keep: Sequence[str] = ()
    ) -> int:
        """Close what earlier incarnations left, but for the groups in `keep`.

        Their open rollouts fail with fault `superseded`; their open and closed groups become
        SUPERSEDED, with their tokens in the bin `dropped_superseded` of the next step to finish.
        Returns how many rollouts it closed.
        """
        ...

    async def rewind(self, account_id: str, job_id: str, step: int) -> None:
        """Take back the steps after `step`, whose checkpoints are lost: `step` is the newest again.

        Their groups and those that no step took become SUPERSEDED, uncounted until the next
        `supersede`; their checkpoints are forgotten. Registered packages and events stay.
        """
        ...

    async def open_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Record rollouts as PENDING."""
        ...

    async def rollout(self, rollout_id: str, account_id: str | None = None) -> Rollout:
        """Raises `NotFound`. Account None: for the data plane, which then checks the secret."""
        ...

    async def commit_turn(
        self, account_id: str, rollout_id: str, nodes: Sequence[Node], turn: Turn
    ) -> None:
        """Keep a turn and the nodes it adds. Raises `Conflict` unless the rollout is PENDING."""
        ...

    async def mark_undelivered(self, account_id: str, rollout_id: str, turn_id: str) -> None:
        """The reply did not reach the agent."""
        ...

    async def move_rollout(
        self,
        account_id: str,
        rollout_id: str,
        expected: Sequence[RolloutStatus],
        *,
        status: RolloutStatus,
        rewards: tuple[float, ...] | None = None,
        metrics: Mapping[str, float] | None = None,
        fault: Fault | None = None,
        ended_at: float | None = None,
        reason: str | None = None,
    ) -> Rollout:
        """Compare-and-set of a rollout's state; given values are kept. Raises `Conflict`.

        Metrics are added to those that are there.
        """
        ...

    async def trajectory(self, account_id: str, rollout_id: str) -> Trajectory:
        """A rollout with all nodes and turns."""
        ...

    async def group_trajectories(self, account_id: str, group_id: str) -> list[Trajectory]:
        """Every attempt of the group, by (slot, attempt)."""
        ...

    async def rollouts(self, account_id: str, query: RolloutQuery) -> list[RolloutSummary]:
        """One page. Raises `InvalidInput` for a text that has no word to look for, or too many."""
        ...

    async def rollout_excerpts(
        self, account_id: str, rollout_ids: Sequence[str]
    ) -> dict[str, Excerpt]:
        """By rollout id; those that have no turns, or are not there, are left out."""
        ...

    async def reward_histogram(
        self, account_id: str, query: RolloutQuery, bins: int = 20
    ) -> Histogram:
        """Of the rewards of all rollouts that the query's filters let through, in at most `bins`.

        The query's own range of rewards, its order and its page are left aside.
        """
        ...

    async def rollout_tally(self, account_id: str, job_id: str) -> list[Tally]:
        """How many rollouts there are of each kind, by step, purpose, status and fault."""
        ...

    async def random_rollouts(
        self,
        account_id: str,
        job_id: str,
        step: int,
        purpose: Purpose,
        count: int = 10,
        seed: int = 0,
        *,
        is_trained: bool = False,
    ) -> list[RolloutSummary]:
        """Some that have ended; the same ones for the same seed.

        `step` is the one they were planned at, or with `is_trained` the one that took them.
        """
        ...

    async def ledger(self, account_id: str, job_id: str) -> dict[int, dict[str, int]]:
        """Tokens per bin per step, over all finished steps.

        Of a job that has ended also what no step took, as `dropped_unfinished` of the step that
        would have been next: then all sampled tokens are there, and a resume may still move them.
        """
        ...

    async def usage(self, account_id: str, job_id: str) -> TokenUsage:
        """What the job cost so far, from its turns and its ledger. Raises `NotFound`."""
        ...

    # steps and models
    async def finish_step(self, account_id: str, job_id: str, done: FinishedStep) -> None:
        """Keep a step's outcome, atomically."""
        ...

    async def policy(self, account_id: str, job_id: str) -> Policy | None:
        """What the newest finished step published; None before the first."""
        ...

    async def save_checkpoint(self, account_id: str, job_id: str, checkpoint: Checkpoint) -> None:
        """Record a checkpoint outside a step (the one before training)."""
        ...

    async def checkpoints(self, account_id: str, job_id: str) -> list[Checkpoint]:
        """Oldest first."""
        ...

    async def prune(
        self, account_id: str, job_id: str, keep: Collection[int], *, adapters: bool
    ) -> list[Pruned]:
        """Give up the checkpoints of all steps but `keep`, but for what other jobs need.

        That is what they started from, and what an evaluation that has not ended compares.
        Their packages stay as records with `pruned_at`; with `adapters` those of their adapters
        too. Whoever called removes the files.
        """
        ...

    async def packages(self, account_id: str, *, group: str | None = None) -> list[ModelPackage]:
        """Oldest first."""
        ...

    async def newest_packages(self, account_id: str, job_id: str) -> list[ModelPackage]:
        """The newest adapter and the newest checkpoint that a job registered, if it did."""
        ...

    async def package(self, account_id: str, id_or_name: str) -> ModelPackage:
        """By package id, "group/version", or "group" for the newest version."""
        ...

    async def next_version(self, account_id: str, groups: Collection[str]) -> int:
        """The lowest number that these groups never had, nor any above it."""
        ...

    async def register(self, made: Sequence[ModelPackage]) -> list[ModelPackage]:
        """Keep packages that no job's step makes, all or none; as they are kept.

        Where a number is taken, all of them get the next that is free.
        """
        ...

    async def delete_package(
        self, account_id: str, id_or_name: str
    ) -> tuple[ModelPackage, list[str]]:
        """Delete one; the package, and the files and folders that nothing needs any more.

        Whoever called removes these. Its number is never given again. Raises `NotFound`, and
        `Conflict` while a job that has not ended makes it, starts from it or evaluates it.
        """
        ...

    async def close(self) -> None:
        """Finish what waits and close."""
        ...


class Keys(Protocol):
    """Accounts and their keys."""

    async def default_account(self) -> Account:
        """The account with slug "default", made at the first call."""
        ...

    async def create_account(self, account: Account) -> Account:
        """Raises `Conflict` if its slug or number is taken."""
        ...

    async def account(self, account_id: str) -> Account:
        """Raises `NotFound`."""
        ...

    async def accounts(self) -> list[Account]:
        """All accounts, by number."""
        ...

    async def add_key(self, key: Key) -> None:
        """Keep a key."""
        ...

    async def key_by_sha256(self, sha256: str) -> Key:
        """Raises `NotFound`. A revoked key is found too, with its `revoked_at`."""
        ...

    async def key_by_access_key_id(self, access_key_id: str) -> Key:
        """Raises `NotFound`. A revoked key is found too, with its `revoked_at`."""
        ...

    async def seal_key(self, key: Key) -> None:
        """Keep the access key id and the sealed secret of a key made before there were any."""
        ...

    async def keys(self, account_id: str) -> list[Key]:
        """Oldest first, revoked ones included."""
        ...

    async def revoke_key(self, account_id: str, key_id: str) -> Key:
        """End a key for good; revoking it again changes nothing. Raises `NotFound`."""
        ...


class Resources(Protocol):
    """Named records of an account (`domain.resource`)."""

    async def create_resource(self, resource: Resource) -> Resource:
        """Raises `Conflict` if the account has one of that kind and name."""
        ...

    async def change_resource(self, resource: Resource) -> Resource:
        """Replace the body. Raises `NotFound`."""
        ...

    async def resource(self, account_id: str, kind: str, name: str) -> Resource:
        """Raises `NotFound`."""
        ...

    async def resources(self, account_id: str, kind: str, *, prefix: str = "") -> list[Resource]:
        """Those whose names begin with `prefix`, oldest first."""
        ...

    async def delete_resource(self, account_id: str, kind: str, name: str) -> Resource:
        """The record as it was. Raises `NotFound`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """How an evaluator's build ended; `message` is for its owner."""

    is_active: bool = False
    message: str = ""


class EvaluatorBuilder(Protocol):
    """Makes uploaded archives runnable."""

    async def build(self, evaluator: Evaluator, archive: Path, log: Path) -> Built:
        """Build an archive; what is printed meanwhile goes to `log`. Cancelling it ends it."""
        ...

    async def forget(self, account_id: str, evaluator_id: str) -> None:
        """Remove what was built. Nothing there is fine."""
        ...


class AuditStore(Protocol):
    """The records of the audit trail (`domain.audit`): appended, read, and dropped by segments."""

    async def append_audit(
        self, account_id: str, drafts: Sequence[AuditDraft], sealer: Sealer
    ) -> int:
        """Add records to the account's chain, all or none; the number of the last one."""
        ...

    async def audit_records(self, account_id: str, query: AuditQuery) -> list[AuditRecord]:
        """A page of records, in the query's order."""
        ...

    async def audit_head(self, account_id: str) -> AuditHead:
        """Where the account's chain ends; that of an empty chain if there is none."""
        ...

    async def audit_segments(self, account_id: str) -> list[AuditSegment]:
        """The account's sealed segments in order, dropped ones included."""
        ...

    async def drop_audit(self, account_id: str, before: float) -> int:
        """Remove the records of the segments that ended before a time; how many segments."""
        ...


class Objects(Protocol):
    """The buckets of an account and what is in them. Content lies elsewhere, under `blob` names."""

    async def create_bucket(self, account_id: str, bucket: str) -> None:
        """Raises `Conflict` if the account has it."""
        ...

    async def buckets(self, account_id: str) -> list[Resource]:
        """By name."""
        ...

    async def delete_bucket(self, account_id: str, bucket: str) -> None:
        """Raises `NotFound`, and `Conflict` while something is in it or being uploaded to it."""
        ...

    async def put_object(
        self, account_id: str, stored: StoredObject, blob: str, *, replaces: str | None = None
    ) -> list[str]:
        """Keep an object in place of the one of its key; the blobs that are no longer used.

        With `replaces`, only in place of one of that ETag ("": of none), else `Conflict`. Raises
        `NotFound` without the bucket.
        """
        ...

    async def object(self, account_id: str, bucket: str, key: str) -> tuple[StoredObject, str]:
        """An object and its blob. Raises `NotFound` of kind "bucket" or "object"."""
        ...

    async def list_objects(
        self, account_id: str, bucket: str, *, prefix: str, delimiter: str, after: str, limit: int
    ) -> Listing:
        """A page, in the order of keys as bytes. Raises `NotFound`."""
        ...

    async def delete_objects(self, account_id: str, bucket: str, keys: Sequence[str]) -> list[str]:
        """Remove those that are there; their blobs. Raises `NotFound` without the bucket."""
        ...

    async def start_upload(self, account_id: str, upload: Upload) -> None:
        """Raises `NotFound` without the bucket."""
        ...

    async def upload(self, account_id: str, upload_id: str) -> Upload:
        """Raises `NotFound`."""
        ...

    async def uploads(self, account_id: str, bucket: str, prefix: str = "") -> list[Upload]:
        """Those under way, by key and age. Raises `NotFound` without the bucket."""
        ...

    async def put_part(self, account_id: str, upload_id: str, part: Part) -> list[str]:
        """Keep a part in place of the one of its number; blobs no longer used. `NotFound`."""
        ...

    async def parts(self, account_id: str, upload_id: str) -> list[Part]:
        """By number. Raises `NotFound`."""
        ...

    async def end_upload(
        self,
        account_id: str,
        upload_id: str,
        stored: StoredObject | None = None,
        blob: str = "",
        *,
        replaces: str | None = None,
    ) -> list[str]:
        """Forget an upload; with `stored`, it has become this object. Blobs no longer used.

        `replaces` is as in `put_object`. Raises `NotFound` if the upload has ended or the bucket
        is gone.
        """
        ...

    async def blobs_in_use(self) -> set[str]:
        """Of all accounts' objects and parts."""
        ...

    async def end_uploads_before(self, before: float) -> list[str]:
        """Forget all accounts' uploads that are older than that; their blobs."""
        ...


class AgentLogStore(Protocol):
    """The logs of registered agents. Implemented by the store."""

    async def append_agent_log(self, entries: Sequence[AgentLogEntry]) -> None:
        """Keep entries, in this order; their `seq` is given here."""
        ...

    async def agent_log(
        self,
        account_id: str,
        agent: str,
        *,
        after: int = 0,
        limit: int = 1000,
        since: float | None = None,
        until: float | None = None,
    ) -> list[AgentLogEntry]:
        """Entries with seq > `after`, in order; of times from `since` and before `until`."""
        ...

    async def trim_agent_log(self, account_id: str, agent: str, *, keep: int) -> None:
        """Remove all but the newest `keep` entries of an agent."""
        ...


class TraceStore(Protocol):
    """Calls and log entries of remote rollouts, by their tags. Implemented by the store."""

    async def add_traced(self, noun: TracedCall | TracedLog) -> None:
        """Keep a call or an entry with its tags; its `seq` is given here."""
        ...

    async def traced_calls(self, account_id: str, query: TraceQuery) -> list[TracedCall]:
        """A page, the newest first."""
        ...

    async def traced_logs(self, account_id: str, query: TraceQuery) -> list[TracedLog]:
        """A page, the newest first."""
        ...

    async def drop_traces(self, before: float, *, limit: int) -> int:
        """Remove up to `limit` calls and as many entries of before a time; how many it were."""
        ...


# ── processes ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine process is started with."""

    base_model: str
    device: str = "cpu"
    threads: int = 1
    deterministic: bool = False
    max_slots: int = 128
    max_length: int = 2048
    max_queue: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSpec:
    """A base model's folder and the PEFT folder to add to its weights."""

    base_model: str
    adapter: str
    threads: int = 1


class Archive(Protocol):
    """A tar file that is made while it is read, so that it never exists as a whole."""

    async def size(self) -> int:
        """Its length in bytes. Raises what is wrong with the files before a byte is read."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """Its content, once, in order."""
        ...

    async def close(self) -> None:
        """Free what it holds; an archive half read ends here."""
        ...


class Launcher(Protocol):
    """Starts engines and learners and ends them."""

    async def engine(self, spec: EngineSpec) -> Sampler:
        """A running engine."""
        ...

    async def learner(self, spec: LearnerSpec) -> Learner:
        """A running learner."""
        ...

    async def merge(self, spec: MergeSpec) -> Archive:
        """A base with an adapter merged in, from a process that ends with the archive."""
        ...

    async def close(self) -> None:
        """End every process it started."""
        ...


class Blobs(Protocol):
    """Files by key, under a folder or a bucket."""

    def path(self, key: str) -> Path:
        """A local path for the key; parents exist."""
        ...

    async def delete(self, prefix: str) -> None:
        """Remove everything under the prefix."""
        ...
