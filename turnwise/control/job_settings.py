"""Every setting of a job file: what it means and what makes sense. Printed as docs/job-file.md.

What is allowed here makes sense for any model; a model's own, narrower ranges belong to its
recipe, at a door.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from turnwise.domain.algorithm import ALGORITHMS, AlgorithmName, AlgorithmSpec
from turnwise.domain.job import (
    AgentSpec,
    AsyncSpec,
    BatchSpec,
    CheckpointSpec,
    EvaluationSpec,
    JobSpec,
    ParitySpec,
    RolloutSpec,
    ScheduleSpec,
    ScorerSpec,
    TrackingSpec,
    ValidationSpec,
    WandbSpec,
)
from turnwise.domain.rollout import SamplingParams
from turnwise.domain.training import LoraSpec, LossName, OptimizerSpec


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed numbers. The low end is excluded by `above`, the high end by `below`.

    >>> str(Range(1)), str(Range(0, 1, above=True)), Range(0, 1, below=True).holds(1)
    ('at least 1', 'above 0 and at most 1', False)
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies inside."""
        is_high_enough = value > self.low if self.above else value >= self.low
        return is_high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}"
        high = f"{'below' if self.below else 'at most'} {self.high}"
        return low if math.isinf(self.high) else f"{low} and {high}"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, or one block of settings. `allowed` bounds a number, or each one of a list."""

    meaning: str
    allowed: Range | None = None


_COUNT = Range(1)
_NOT_NEGATIVE = Range(0)
_POSITIVE = Range(0, above=True)
_SHARE = Range(0, 1)
_BELOW_ONE = Range(0, 1, below=True)
_PRIORITY = Range(-100, 100)
_SEED = Range(0, 2**32 - 1)  # what every random generator takes

SETTINGS: dict[type, dict[str, Setting]] = {
    JobSpec: {
        "name": Setting("The job's name: 1 to 63 letters, digits and hyphens; unique."),
        "model": Setting("The base model: a Hugging Face folder with its tokenizer."),
        "dataset": Setting(
            "The rows to train on or evaluate: a .jsonl, .json, .csv or .parquet file, by its path "
            "or as `s3://bucket/key` or `file:///path`; of a prefix, all files below it."
        ),
        "agent": Setting("Where the agent is."),
        "kind": Setting("Train, or evaluate every row of `dataset` and train nothing."),
        "validation_dataset": Setting("The rows to validate on; without it nothing is validated."),
        "prompt_column": Setting(
            "The column that holds a row's prompt; empty: `prompt` if there is one, else the first."
        ),
        "label_column": Setting("The column that holds a row's label; empty: there is none."),
        "description": Setting("Words for whoever reads the list of jobs."),
        "priority": Setting(
            "Its place in the queue: the higher, the sooner; equals in order of creation, and "
            "accounts take turns.",
            _PRIORITY,
        ),
        "seed": Setting("Of everything random in the job.", _SEED),
        "deterministic": Setting(
            "Make samples independent of what else is sampled at the time, so that a run can be "
            "repeated bit for bit."
        ),
        "history": Setting(
            "Where the chat family's template drops earlier reasoning: fork as serving will "
            "(template), or always extend the earlier tokens (exact)."
        ),
        "input_adapter": Setting(
            "What to start from: a PEFT folder or a registered model, "
            '"group/version" or "group"; empty: the base model.'
        ),
        "resume_from": Setting(
            "A registered checkpoint of another job to continue after its step, with its "
            "optimizer and its place in the data. Base model, rows and all settings that decide "
            "what is learned must be as they were."
        ),
        "output_group": Setting(
            "The group that the adapters are registered in, on from its newest version; several "
            "jobs may share one. Empty: the job's name."
        ),
        "checkpoint_group": Setting(
            "The group that the resumable checkpoints are registered in; empty: the job's name "
            "and `-checkpoints`."
        ),
        "output_path": Setting(
            "An `s3://bucket/prefix` or `file:///folder`, below which `<name>/output/` gets the "
            "adapter, or an evaluation's results, when the job ends; empty: nowhere."
        ),
        "max_runtime_s": Setting(
            "Stop the job so many seconds after its start, or after its last resume; 0: never.",
            _NOT_NEGATIVE,
        ),
        "batch": Setting("How much a step takes."),
        "algorithm": Setting("Advantage and loss."),
        "sampling_params": Setting("How training rollouts are sampled; what a request says wins."),
        "val_sampling_params": Setting("How validation rollouts are sampled."),
        "validation": Setting("How validation during training goes."),
        "eval_sampling_params": Setting("How the rollouts of an evaluation job are sampled."),
        "evaluation": Setting("What an evaluation job measures, and of which models."),
        "schedule": Setting("How long, and the learning rate over it."),
        "lora": Setting("Shape of the adapter."),
        "optimizer": Setting("AdamW."),
        "rollout": Setting("Limits on rollouts; times in seconds."),
        "async_config": Setting("Whether agents go on while the learner trains."),
        "parity": Setting("The check that sampler and learner agree about the same tokens."),
        "checkpoints": Setting(
            "Which steps' files stay; the rest stays listed, as a record. The newest two "
            "checkpoints always stay, and what other jobs started from."
        ),
        "tracking": Setting("Whether the job is shown in MLflow and W&B, and under which names."),
    },
    AgentSpec: {
        "kind": Setting(
            "An HTTP server (POST {url}/rollout, GET {url}/health), one that speaks Bedrock "
            "AgentCore's contract (POST {url}/invocations, GET {url}/ping) or that of the Lambda "
            "runtime interface emulator, a Python callable in the server's process, an uploaded "
            "evaluator, which makes the rollouts of its rows and scores them, or the scripted fake."
        ),
        "url": Setting(
            "The agent's base URL, for http, agentcore and lambda; a lambda's with a path is "
            "called as it is."
        ),
        "target": Setting('"package.module:callable", for python; an evaluator\'s id.'),
        "name": Setting(
            "A registered agent (`turnwise agents register`); it says the kind and the URL, also "
            "when the job is resumed."
        ),
        "extra_body": Setting(
            "A JSON object as text, whose fields go with each model call of an evaluator: "
            '{"stop": ["END"]}.'
        ),
    },
    BatchSpec: {
        "global_batch_size": Setting("Groups (prompts) per step.", _COUNT),
        "group_size": Setting("Rollouts per group; at least 2 in training.", _COUNT),
        "pilot_size": Setting(
            "Adaptive group size: make so many rollouts of a group first, and the rest only if "
            "their rewards differ; 0: all at once.",
            _NOT_NEGATIVE,
        ),
        "refill": Setting(
            "Replace a group whose advantages are all 0 by one of the next row, in one step at "
            "most global_batch_size times."
        ),
        "updates_per_step": Setting("Optimizer updates per step, on disjoint parts.", _COUNT),
        "tokens_per_micro_batch": Setting("Tokens per forward pass of the learner.", _COUNT),
        "share_prefixes": Setting(
            "Whether the learner computes once what several rows begin with; the result is the "
            "same."
        ),
    },
    AlgorithmSpec: {
        "name": Setting(
            "Which algorithm; its settings are then the defaults of the others here (see below)."
        ),
        "advantage_method": Setting("How rewards become advantages."),
        "loss_fn": Setting(
            "The loss of a token; gspo bounds the ratio of a whole turn, for which its paper has "
            "about 0.9997 and 1.0004."
        ),
        "clip_low_threshold": Setting(
            "Absolute lower bound of the ratio, at most 1.", _NOT_NEGATIVE
        ),
        "clip_high_threshold": Setting(
            "Absolute upper bound of the ratio, at least 1.", _NOT_NEGATIVE
        ),
        "tis_cap": Setting(
            "Truncated importance sampling, for several updates per step or off-policy tokens: "
            "bounds hold for the ratio to the learner at the step's start, and its ratio to the "
            "sampler, at most this, weighs the token; 2 is usual, 0: off.",
            _NOT_NEGATIVE,
        ),
        "kl_coef": Setting(
            "Weight of the k3 divergence of trained tokens from the base model; 0: off, else one "
            "more forward.",
            _NOT_NEGATIVE,
        ),
        "aggregation": Setting(
            "How token losses become one number; token-sum-norm divides by planned rollouts per "
            "update x sampling_params.max_tokens, and with dr_grpo is Dr. GRPO."
        ),
        "turn_discount": Setting(
            "Discount per turn of group_based_per_turn, reinforce_pp and monte_carlo.", _SHARE
        ),
        "pass_k": Setting("The k of pkpo, at most the group size: learn the best of k.", _COUNT),
    },
    SamplingParams: {
        "temperature": Setting("0 is greedy, and then nothing can be trained.", Range(0, 100)),
        "top_p": Setting("Smallest probability mass to choose from; 1: all.", Range(0, 1, True)),
        "top_k": Setting("Choose among the k likeliest tokens; 0: all.", _NOT_NEGATIVE),
        "max_tokens": Setting("Most tokens of one turn.", _COUNT),
    },
    ValidationSpec: {
        "max_rows": Setting("Take the first so many rows; 0: all.", _NOT_NEGATIVE),
        "group_size": Setting("Rollouts per row.", _COUNT),
        "pass_k_values": Setting("The k of pass@k; those above group_size are left out.", _COUNT),
        "success_threshold": Setting("A rollout with at least this reward is a success."),
    },
    EvaluationSpec: {
        "models": Setting(
            "Models to evaluate side by side, on the same rows with the same seeds: registered "
            'ones ("group/version" or "group"), PEFT folders, `base`; without any, what '
            "`input_adapter` says. The first is compared with each of the others."
        ),
        "group_size": Setting("Rollouts per row and model.", _COUNT),
        "max_rows": Setting("Take the first so many rows; 0: all.", _NOT_NEGATIVE),
        "max_turns": Setting(
            "The agent's own limit of turns, to report who reached it; 0: unknown.", _NOT_NEGATIVE
        ),
        "pass_k_values": Setting("The k of pass@k; those above group_size are left out.", _COUNT),
        "success_threshold": Setting("A rollout with at least this reward is a success."),
        "format_pattern": Setting(
            "A regular expression that a rollout's last assistant message should hold."
        ),
        "scorers": Setting("Independent judges of the same rollouts, beside the agent's reward."),
    },
    ScorerSpec: {
        "name": Setting("Its name in metrics and tables; `agent` is the agent's own reward."),
        "target": Setting(
            'A Python function, "package.module:function", called with one mapping: row, prompt, '
            "label, messages, reward, rewards, metrics, model, rollout_id; in threads of the "
            "server, up to 16 at once. It returns a number, or a mapping with `score`."
        ),
        "url": Setting("In place of `target`: an address to POST the same mapping to, as JSON."),
        "timeout": Setting("Longest time for one score, in seconds.", _POSITIVE),
        "success_threshold": Setting("The scorer counts a success from this score up."),
    },
    ScheduleSpec: {
        "max_epochs": Setting("End after so many passes over the rows.", _COUNT),
        "max_steps": Setting("End after so many steps.", _COUNT),
        "val_every": Setting("Steps between validations; 0: none.", _NOT_NEGATIVE),
        "warmup_steps": Setting("Steps over which the learning rate rises.", _NOT_NEGATIVE),
        "final_learning_rate_fraction": Setting(
            "Share of the learning rate that is left at the last step; the fall is linear.", _SHARE
        ),
        "stop_early": Setting(
            "End after a whole epoch in which no group's rewards differed: the job is then "
            "COMPLETED (EarlyStopped), and says which scores there were."
        ),
    },
    LoraSpec: {
        "rank": Setting("Rank of each adapted matrix.", _COUNT),
        "alpha": Setting("The adapter counts alpha / rank.", _POSITIVE),
        "target_modules": Setting("Names of the linear layers to adapt."),
    },
    OptimizerSpec: {
        "learning_rate": Setting("After the warm-up.", _POSITIVE),
        "beta1": Setting("Decay of the gradient's mean.", _BELOW_ONE),
        "beta2": Setting("Decay of the gradient's second moment.", _BELOW_ONE),
        "eps": Setting("Added to the denominator.", _POSITIVE),
        "weight_decay": Setting("Decoupled weight decay.", _NOT_NEGATIVE),
        "grad_clip_norm": Setting("Largest global gradient norm; 0: no clipping.", _NOT_NEGATIVE),
    },
    RolloutSpec: {
        "rollout_max_concurrency": Setting("Rollouts under way at once.", _COUNT),
        "rollout_timeout": Setting("Longest time for one rollout.", _POSITIVE),
        "turn_timeout": Setting("Longest time for one turn.", _POSITIVE),
        "rollout_max_retries": Setting("New attempts after a failed one.", _NOT_NEGATIVE),
        "group_timeout": Setting(
            "Longest time for a group, retries included; 0: twice rollout_timeout.", _NOT_NEGATIVE
        ),
        "rollout_max_tokens": Setting(
            "Most tokens a rollout may sample in all its turns; calls after that are refused. "
            "0: no limit.",
            _NOT_NEGATIVE,
        ),
        "truncated_turns": Setting(
            "A turn cut off by a token limit is trained like any other (keep), only read (mask), "
            "or lowers its reward for learning by truncation_penalty (penalise)."
        ),
        "truncation_penalty": Setting(
            "What each truncated turn costs, with truncated_turns: penalise.", _NOT_NEGATIVE
        ),
    },
    AsyncSpec: {
        "max_steps_off_policy": Setting(
            "No trained token is older than so many steps; 0: synchronous.", Range(0, 10)
        ),
    },
    CheckpointSpec: {
        "keep_last": Setting("Keep those of the newest so many steps; 0: all.", _NOT_NEGATIVE),
        "keep_every": Setting(
            "With keep_last, keep those of each so-many-th step as well; 0: none.", _NOT_NEGATIVE
        ),
        "prune_adapters": Setting(
            "With keep_last, remove a step's adapter together with its checkpoint; it cannot be "
            "served or exported any more."
        ),
    },
    TrackingSpec: {
        "mlflow": Setting(
            "Feed a run in the account's MLflow: metrics, parameters, a trace per rollout, and "
            "the adapter. Jobs that come by AWS's API have it on."
        ),
        "experiment": Setting("The MLflow experiment; empty: the base model's name and `-mtrl`."),
        "run_name": Setting("The name of the MLflow run; empty: the job's name."),
        "wandb": Setting(
            "Weights & Biases: the job file and each step's metrics. Needs the extra `wandb` on "
            "the server; whatever fails there, the job goes on and its log says so once."
        ),
    },
    WandbSpec: {
        "enabled": Setting("Feed a run."),
        "project": Setting("The W&B project; empty: the base model's name and `-mtrl`."),
        "entity": Setting("The W&B team or user; empty: the key's default."),
        "run_name": Setting("The name of the run; empty: the job's name."),
        "run_id": Setting("The run's id, to go on with one that exists; empty: the job's id."),
        "api_key_secret": Setting(
            "The account's secret with the W&B key; without one, jobs of the operator's account "
            "use the server's `WANDB_API_KEY`."
        ),
        "mode": Setting(
            "Send the run to W&B, or keep it in `wandb/JOB_ID` of the server's data folder, for "
            "`wandb sync`."
        ),
    },
    ParitySpec: {
        "max_mean_difference": Setting(
            "Limit on the mean |difference| of logprobs, nats: fp32 agrees to 1e-5, bf16 to "
            "about 3e-2.",
            _POSITIVE,
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting by its full name, with the type that its value has."""

    path: str
    kind: Any
    default: object  # dataclasses.MISSING where it must be given
    setting: Setting


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a field has if nothing is given; dataclasses.MISSING where it must be given."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def leaves(
    cls: type[Any] = JobSpec, prefix: str = "", block: object = dataclasses.MISSING
) -> Iterator[Leaf]:
    """Every setting, those of blocks by their dotted names, of lists of blocks by `name[]`.

    `block` holds the defaults, where they are not those of the class.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, kind = prefix + field.name, hints[field.name]
        default = getattr(block, field.name, default_of(field))
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast("type[Any]", kind), path + ".", default)
            continue
        yield Leaf(path, kind, default, SETTINGS[cls][field.name])
        if typing.get_origin(kind) is tuple and dataclasses.is_dataclass(entry(kind)):
            yield from leaves(entry(kind), path + "[].")


def entry(kind: Any) -> Any:
    """The type of a list's entries."""
    return typing.get_args(kind)[0]


_WORDS = {int: "whole number", float: "number", str: "text", bool: "true, false"}


def allowed(kind: Any, setting: Setting) -> str:
    """What may stand there, in words."""
    if typing.get_origin(kind) is tuple:
        return f"list of: {allowed(entry(kind), setting)}"
    if dataclasses.is_dataclass(kind):
        return "blocks of settings"
    if issubclass(kind, StrEnum):
        return ", ".join(f"{member}" for member in kind)
    word = _WORDS[kind]
    return f"{word}, {setting.allowed}" if setting.allowed else word


_HEAD = """\
# The job file

Printed from `turnwise/control/job_settings.py` by
`python -m turnwise.control.job_settings > docs/job-file.md`.

`turnwise train JOB.yaml` takes a YAML (or JSON) file. The smallest one:

```yaml
name: walk
model: ./base # a Hugging Face folder
dataset: ./train.jsonl
agent:
  url: http://127.0.0.1:8430
```

Relative paths are taken from the job file's own folder. Everything left out has the default below.
The file is checked before anything starts: an unknown key is refused with the nearest known one,
a bad value with what is allowed.

## Datasets

A `.jsonl` file (one JSON record per line), a `.json` file (a list of records) or a `.csv` file
with a header, in UTF-8; or a `.parquet` file. Each record has a prompt, in `prompt_column`; the
agent gets the whole record as well.

A dataset is named by a path, or by a URI: `file:///path` on the server, or `s3://bucket/key` in a
bucket of this server, else of the S3 in its setting `s3_endpoint_url`. A URI of a folder or prefix
means all files below it, in the order of their names; names that begin with `.` or `_` are left
out. What a job has read is kept by content, and a job whose data has changed since does not go on.
"""


def markdown() -> str:
    """All settings as docs/job-file.md."""
    sections: dict[str, list[Leaf]] = {}
    for leaf in leaves():
        sections.setdefault(leaf.path.rpartition(".")[0], []).append(leaf)
    lines = [_HEAD]
    for block, its_leaves in sections.items():
        lines += [f"## {f'`{block}`' if block else 'Top level'}", "", _about(block), ""]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [_line(leaf) for leaf in its_leaves] + [""]
        if block == "algorithm":
            lines += _algorithms()
    return "\n".join(lines)


def _about(block: str) -> str:
    if not block:
        return "The job as a whole."
    if block.endswith("[]"):
        return f"One entry of `{block[:-2]}`."
    *outer, name = block.split(".")
    cls: Any = JobSpec
    for each in outer:
        cls = typing.get_type_hints(cls)[each]
    return SETTINGS[cls][name].meaning


def _algorithms() -> list[str]:
    """The table of named algorithms."""
    lines = [
        "`algorithm: {name: dapo}` is an algorithm with the settings of its paper, of which all",
        "but method and loss may be changed; `custom` combines any method with any loss. The",
        "dynamic sampling of DAPO is `batch.refill`.",
        "",
        "| name | advantage_method | loss_fn | clip bounds | aggregation | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, (spec, source) in ALGORITHMS.items():
        is_free = name is AlgorithmName.CUSTOM
        method, loss = (
            f"`{value}`" + (", or any" if is_free else "")
            for value in (spec.advantage_method, spec.loss_fn)
        )
        is_clipped = spec.loss_fn is not LossName.IMPORTANCE_SAMPLING
        bounds = f"{spec.clip_low_threshold:g} to {spec.clip_high_threshold:g}"
        cells = (f"`{name}`", method, loss, bounds if is_clipped else "none")
        lines.append(f"| {' | '.join(cells)} | `{spec.aggregation}` | {source} |")
    return [*lines, ""]


def _line(leaf: Leaf) -> str:
    may_be = allowed(leaf.kind, leaf.setting)
    return f"| `{leaf.path}` | {_default(leaf.default)} | {may_be} | {leaf.setting.meaning} |"


def _default(value: object) -> str:
    if value is dataclasses.MISSING:
        return "must be given"
    if value in ("", ()):
        return "empty"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(markdown(), end="")
