"""A job: what was asked for (JobSpec), where it stands (Job), and which moves are possible."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from turnwise import errors
from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.rollout import SamplingParams
from turnwise.domain.training import LoraSpec, OptimizerSpec


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether nothing happens any more, unless someone resumes it."""
        return self in (JobStatus.STOPPED, JobStatus.COMPLETED, JobStatus.FAILED)


class Secondary(StrEnum):
    """The phase inside a status; a list of transitions is kept in the event log."""

    PENDING = "Pending"
    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    UPLOADING = "Uploading"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    MAX_RUNTIME_EXCEEDED = "MaxRuntimeExceeded"
    RESTARTING = "Restarting"
    COMPLETED = "Completed"
    EARLY_STOPPED = "EarlyStopped"  # of a completed job: a whole epoch had nothing to learn from
    FAILED = "Failed"


_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.STOPPING, JobStatus.STOPPED, JobStatus.COMPLETED, JobStatus.FAILED}
    ),
    JobStatus.STOPPING: frozenset({JobStatus.STOPPED, JobStatus.COMPLETED, JobStatus.FAILED}),
    JobStatus.STOPPED: frozenset({JobStatus.PENDING}),  # resumed
    JobStatus.FAILED: frozenset({JobStatus.PENDING}),  # resumed
    JobStatus.COMPLETED: frozenset(),
}


def check_move(status: JobStatus, to: JobStatus) -> None:
    """Raise `Conflict` unless a job may go from `status` to `to` (staying is always allowed).

    >>> check_move(JobStatus.FAILED, JobStatus.PENDING)  # resume
    """
    if to is not status and to not in _MOVES[status]:
        raise errors.Conflict(f"a job that is {status.value} cannot become {to.value}")


class History(StrEnum):
    """What to do where a chat family's own template drops earlier reasoning (design §4.3)."""

    TEMPLATE = "template"  # fork there, so that training sees what serving will see
    EXACT = "exact"  # always extend the earlier tokens


class JobKind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    EVALUATION = "evaluation"  # every row of `dataset` under each model; nothing is trained


#: The name of a job's base model among the models of an evaluation.
BASE = "base"

#: Where a job names no other groups, its adapters are registered in the group of its name, its
#: checkpoints in that with this.
CHECKPOINTS = "-checkpoints"


class AgentKind(StrEnum):
    """How the agent is reached."""

    HTTP = "http"  # POST {url}/rollout, GET {url}/health
    AGENTCORE = "agentcore"  # POST {url}/invocations, GET {url}/ping
    LAMBDA = "lambda"  # the Lambda runtime interface emulator, or a handler's own server
    PYTHON = "python"  # "package.module:callable", in the server process
    EVALUATOR = "evaluator"  # an uploaded evaluator, which drives rollouts and scores them
    SCRIPTED = "scripted"  # the shipped fake


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """Where the agent is. `url` for http, agentcore and lambda, `target` for python; for an
    evaluator, `target` is its id.

    A `name` is a registered agent's, whose record then says the kind and the URL. `extra_body` is
    a JSON object as text, for each model call of an evaluator.
    """

    kind: AgentKind = AgentKind.HTTP
    url: str = ""
    target: str = ""
    name: str = ""
    extra_body: str = ""

    @property
    def has_url(self) -> bool:
        """Whether it is a server of its own."""
        return self.kind in (AgentKind.HTTP, AgentKind.AGENTCORE, AgentKind.LAMBDA)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSpec:
    """How much a step takes. `global_batch_size` counts groups (prompts) per step.

    With `pilot_size` a group starts with so many rollouts and gets the rest only if their rewards
    differ. With `refill` a group without advantage is replaced by one of a fresh row.
    """

    global_batch_size: int = 128
    group_size: int = 8
    pilot_size: int = 0  # 0: all rollouts at once
    refill: bool = False
    updates_per_step: int = 1
    tokens_per_micro_batch: int = 8192
    share_prefixes: bool = True

    @property
    def rollouts_per_update(self) -> float:
        """Rollouts that one optimizer update learns from if all are scored and differ."""
        return self.global_batch_size * self.group_size / self.updates_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """How long. Whichever of `max_epochs` and `max_steps` is reached first ends the job.

    `val_every` 0 switches validation off. The learning rate rises over `warmup_steps` and falls
    linearly to `final_learning_rate_fraction` of its value at the last step. With `stop_early` a
    job ends after a whole epoch that gave nothing to learn from.
    """

    max_epochs: int = 1
    max_steps: int = 50
    val_every: int = 10
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 1.0
    stop_early: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSpec:
    """`max_rows` 0 takes the whole validation set; success is reward >= success_threshold."""

    max_rows: int = 0
    group_size: int = 1
    pass_k_values: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    success_threshold: float = 1.0


class TruncatedTurns(StrEnum):
    """What learning makes of a turn whose reply was cut off (`rl.truncation`)."""

    KEEP = "keep"  # trained like any other
    MASK = "mask"  # only read
    PENALISE = "penalise"  # costs `truncation_penalty`


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSpec:
    """A judge of finished rollouts besides the agent: a Python function or an HTTP endpoint.

    `timeout` is in seconds; the scorer counts a rollout as a success from `success_threshold` up.
    """

    name: str
    target: str = ""
    url: str = ""
    timeout: float = 30.0
    success_threshold: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """What an evaluation job measures; it attempts every row under each of `models` alike.

    `max_rows` 0 takes every row; success is reward >= success_threshold.
    """

    models: tuple[str, ...] = ()  # registered models, PEFT folders, "base"
    group_size: int = 1
    max_rows: int = 0
    max_turns: int = 0  # the agent's own limit; 0: unknown
    pass_k_values: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    success_threshold: float = 1.0
    format_pattern: str = ""
    scorers: tuple[ScorerSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """Limits on one rollout, in seconds and tokens, and what learning makes of meeting them.

    `group_timeout` 0 means twice `rollout_timeout`.
    """

    rollout_max_concurrency: int = 96
    rollout_timeout: float = 600.0
    turn_timeout: float = 300.0
    rollout_max_retries: int = 3
    group_timeout: float = 0.0
    rollout_max_tokens: int = 0  # sampled in all its turns; 0: as many as its turns may
    truncated_turns: TruncatedTurns = TruncatedTurns.KEEP
    truncation_penalty: float = 0.0  # of each truncated turn, where the rule is `penalise`

    @property
    def group_timeout_s(self) -> float:
        """The longest wait for one group, retries included."""
        return self.group_timeout or 2 * self.rollout_timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncSpec:
    """No trained token is older than this many steps; 0 is synchronous."""

    max_steps_off_policy: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySpec:
    """Limit on mean |sampler - learner| logprob, nats; fp32 agrees to 1e-5, bf16 to about 3e-2."""

    max_mean_difference: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """Which steps' files stay; every step's registered versions stay listed.

    The newest two resumable checkpoints always stay, so that there is one to fall back to, and so
    does whatever another job started from or has yet to evaluate.
    """

    keep_last: int = 0  # newest steps to keep; 0: all
    keep_every: int = 0  # keep those of each so-many-th step as well; 0: none
    prune_adapters: bool = False  # together with its resumable state, remove a step's adapter too


class WandbMode(StrEnum):
    """Where a W&B run is kept."""

    ONLINE = "online"
    OFFLINE = "offline"  # in files of the server, for `wandb sync`


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbSpec:
    """Whether a job is shown in Weights & Biases, and where.

    An empty `project` means the base model's, an empty `entity` the key's default one, an empty
    `run_name` the job's name and an empty `run_id` the job's id. `api_key_secret` names the
    account's secret that holds the key.
    """

    enabled: bool = False
    project: str = ""
    entity: str = ""
    run_name: str = ""
    run_id: str = ""
    api_key_secret: str = "wandb-api-key"
    mode: WandbMode = WandbMode.ONLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingSpec:
    """Where a job is shown besides here: in its account's MLflow and in W&B, under which names.

    An empty `experiment` means the base model's; an empty `run_name`, the job's own name.
    """

    mlflow: bool = False
    experiment: str = ""
    run_name: str = ""
    wandb: WandbSpec = field(default_factory=WandbSpec)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Everything a job needs, as the job file says it. Paths are absolute once loaded.

    `model` is a Hugging Face folder; `dataset` and `validation_dataset` are .jsonl, .json, .csv or
    .parquet, by a path or by an s3:// or file:// URI, of a prefix all files below it.

    Several jobs may register models in the same groups, also at once.
    """

    name: str
    model: str
    dataset: str
    agent: AgentSpec
    kind: JobKind = JobKind.TRAIN
    validation_dataset: str = ""
    prompt_column: str = ""  # empty: `prompt` if there is one, else the first column
    label_column: str = ""
    description: str = ""
    priority: int = 0  # in the queue; the higher, the sooner
    seed: int = 0
    deterministic: bool = False
    history: History = History.TEMPLATE
    input_adapter: str = ""  # a PEFT folder or a registered model to start from (or to evaluate)
    resume_from: str = ""  # a registered checkpoint of another job, to continue after its step
    output_group: str = ""  # of the registered adapters; empty: the job's name
    checkpoint_group: str = ""  # of the resumable checkpoints; empty: that with "-checkpoints"
    output_path: str = ""  # s3:// or file:// prefix that the outcome is written below at the end
    max_runtime_s: int = 0  # of one start; 0: no limit
    batch: BatchSpec = field(default_factory=BatchSpec)
    algorithm: AlgorithmSpec = field(default_factory=AlgorithmSpec)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    val_sampling_params: SamplingParams = field(default_factory=SamplingParams)
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    eval_sampling_params: SamplingParams = field(
        default_factory=lambda: SamplingParams(temperature=0.0)
    )
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    lora: LoraSpec = field(default_factory=LoraSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    async_config: AsyncSpec = field(default_factory=AsyncSpec)
    parity: ParitySpec = field(default_factory=ParitySpec)
    checkpoints: CheckpointSpec = field(default_factory=CheckpointSpec)
    tracking: TrackingSpec = field(default_factory=TrackingSpec)

    @property
    def adapters_in(self) -> str:
        """The group that its adapters are registered in."""
        return self.output_group or self.name

    @property
    def checkpoints_in(self) -> str:
        """The group that its resumable checkpoints are registered in."""
        return self.checkpoint_group or self.name + CHECKPOINTS

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        """What an evaluation job compares: `evaluation.models`, else what the job starts from."""
        return self.evaluation.models or (self.input_adapter or BASE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a job reads, by content: the sha256 of its base model's files and of its datasets."""

    base_sha256: str
    dataset_sha256: str
    validation_sha256: str = ""  # empty: there is no validation dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the store shows it. `step` counts finished training steps.

    `incarnation` counts the starts of its loop: a resume is the next incarnation of the same job.
    A job that continues another's checkpoint (`spec.resume_from`) has that one's steps finished.
    """

    job_id: str
    account_id: str
    name: str
    spec: JobSpec
    status: JobStatus = JobStatus.PENDING
    secondary: Secondary = Secondary.PENDING
    message: str = ""  # of a failure, or what is being waited for
    incarnation: int = 0
    step: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    inputs: Inputs | None = None  # as its first start found them
    parent: str = ""  # the registered model that it started from, "group/version"
    output: str = ""  # its newest adapter when it last ended, "group/version"
    #: Of a job that waits: how many get a place before it. Known to the queue, not stored.
    ahead: int | None = field(default=None, metadata={"stored": False})

    @property
    def kind(self) -> JobKind:
        """What it does."""
        return self.spec.kind

    @property
    def priority(self) -> int:
        """Its place in the queue; the higher, the sooner."""
        return self.spec.priority
