"""Every metric that a job may log: its name, unit and definition. `docs/metrics.md` is printed
from here: `python -m turnwise.domain.metrics > docs/metrics.md`.

Names and definitions are SageMaker AgentRFT's where it has them. A name may hold placeholders:
`{k}` and `{age}` stand for a number, `{bin}`, `{measure}` and `{name}` for a word. Metrics of a
validation or evaluation exist for each label and model too: see `unscoped`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from turnwise import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, or a family of them when its name has placeholders."""

    name: str
    unit: str
    definition: str

    def covers(self, name: str) -> bool:
        """Whether `name` is this metric or one of this family.

        >>> metric("val/reward/pass_at_8").name
        'val/reward/pass_at_{k}'
        """
        return re.fullmatch(_pattern(self.name), name) is not None


_PLACEHOLDERS = {
    "k": "[1-9][0-9]*",
    "age": "[0-9]+",
    "bin": "[a-z_]+",
    "measure": "reward|success|scorer/[A-Za-z0-9_-]+",
    "name": ".+",
}


def _pattern(name: str) -> str:
    parts = re.split(r"\{(\w+)\}", name)
    return "".join(
        f"(?:{_PLACEHOLDERS[part]})" if place % 2 else re.escape(part)
        for place, part in enumerate(parts)
    )


def _metrics(prefix: str, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    return tuple(
        Metric(name=f"{prefix}/{name}", unit=unit, definition=definition)
        for name, unit, definition in rows
    )


def _percentiles(name: str, what: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((f"{name}p{p}", "1", f"{p}th percentile of {what}.") for p in (5, 25, 50, 75, 95))


_TRAINING = _metrics(
    "training",
    ("epoch", "epochs", "Pass over the dataset, from 0, of the newest row trained in the step."),
    ("global_step", "steps", "Index of the step, from 0."),
    ("num_groups", "groups", "Groups the step took, trainable or not."),
    ("num_trajectories", "rollouts", "Rollouts trained in the step."),
    ("num_datums", "rows", "Training rows, after turns that extend each other were merged."),
    ("datums_per_trajectory", "rows", "Training rows per trained rollout."),
    ("total_tokens", "tokens", "Tokens in all training rows."),
    ("action_tokens_mean", "tokens", "Trained tokens per trained rollout."),
    ("obs_tokens_mean", "tokens", "Tokens only read, per trained rollout, over all its rows."),
    ("trainable_token_positions", "tokens", "Positions of the training rows that are trained."),
    ("nontrainable_token_positions", "tokens", "Positions of the training rows only read."),
    ("trainable_token_ratio", "share", "Trained positions over all positions."),
    ("loss", "1", "The step's loss: the mean over its updates."),
    ("grad_norm", "1", "Global gradient norm before clipping: the mean over updates."),
    ("clip_fraction", "share", "Trained tokens whose ratio in the loss was out of its bounds."),
    ("ratio_mean", "1", "Mean of exp(learner - sampler logprob) over trained tokens."),
    ("ratio_max", "1", "Largest such ratio."),
    *_percentiles("ratio_", "such ratios"),
    ("kl_k3", "nats", "Mean of r - log r - 1 over trained tokens, r the ratio."),
    ("kl_base", "nats", "Mean of r - log r - 1, r = exp(base model - learner); with kl_coef."),
    ("entropy", "nats", "Mean entropy of the learner's distribution at trained tokens."),
    ("learning_rate", "1", "Learning rate of the step."),
    ("updates", "updates", "Optimizer updates made; 0 if nothing was trainable."),
    ("micro_batches", "batches", "Forward and backward passes."),
    ("padded_tokens", "tokens", "Positions computed in all micro-batches, padding included."),
)

_TIMING = _metrics(
    "timing_s",
    ("step", "s", "Wall time since the previous step ended."),
    ("wait", "s", "Time the step waited for its groups to close."),
    ("training", "s", "Time from the groups taken to the step trained."),
    ("policy_update", "s", "Time spent in optimizer updates, as the learner measures it."),
    ("save_checkpoint", "s", "Time to write the checkpoint."),
    ("publish", "s", "Time to load the new adapter into the sampler."),
    ("eval", "s", "Wall time of a validation or evaluation."),
)


_THROUGHPUT = _metrics(
    "throughput",
    ("sampled_tokens_per_s", "tokens/s", "Tokens sampled for the step's groups per timing_s/step."),
    ("trained_tokens_per_s", "tokens/s", "Tokens trained in the step per timing_s/step."),
)


def _rewards(prefix: str) -> tuple[Metric, ...]:
    return _metrics(
        f"{prefix}/reward",
        ("mean", "reward", "Mean total reward of scored rollouts; a list counts as its sum."),
        ("std", "reward", "Population standard deviation of the same."),
        ("min", "reward", "Smallest of the same."),
        ("max", "reward", "Largest of the same."),
        ("zero_frac", "share", "Scored rollouts whose total reward is exactly 0."),
    )


def _shapes(prefix: str) -> tuple[Metric, ...]:
    """What rollouts look like, whatever they were made for: over scored rollouts."""
    return _metrics(
        prefix,
        ("turns/mean", "turns", "Delivered turns per scored rollout."),
        ("turns/min", "turns", "Fewest delivered turns."),
        ("turns/max", "turns", "Most delivered turns."),
        (
            "turns/at_cap_frac",
            "share",
            "Those turns that were truncated: cut off by a token limit.",
        ),
        (
            "turns/timed_out",
            "turns",
            "Calls that turn_timeout ended, in scored and failed attempts.",
        ),
        ("truncated/any_turn", "rollouts", "Scored rollouts with a truncated delivered turn."),
        ("truncated/last_turn", "rollouts", "Those whose last delivered turn is truncated."),
        (
            "truncated/over_budget",
            "rollouts",
            "Attempts, scored or failed, that sampled all that rollout_max_tokens allows.",
        ),
        ("tokens/prompt_mean", "tokens", "Mean length of a scored rollout's first prompt."),
        ("tokens/response_mean", "tokens", "Tokens sampled in delivered turns, per rollout."),
        ("tokens/response_std", "tokens", "Population standard deviation of the same."),
        ("tokens/response_min", "tokens", "Fewest such tokens."),
        ("tokens/response_max", "tokens", "Most such tokens."),
        ("logprob/zero_count", "tokens", "Sampled tokens whose logprob is exactly 0."),
        ("logprob/zero_frac", "share", "Those over all sampled tokens of delivered turns."),
        ("logprob/zero_per_group", "tokens", "Those per group."),
        ("logprob/nz_mean", "nats", "Mean of the sampler's logprobs that are not 0."),
        ("logprob/nz_std", "nats", "Population standard deviation of the same."),
        ("logprob/nz_min", "nats", "Smallest of the same."),
        ("logprob/nz_max", "nats", "Largest of the same."),
        ("metrics/{name}/mean", "agent's own", "Mean of a metric over rollouts that report it."),
    )


def _successes(prefix: str) -> tuple[Metric, ...]:
    return _metrics(
        f"{prefix}/reward",
        ("min_within_groups", "reward", "Mean over prompts of the worst attempt."),
        ("mean_within_groups", "reward", "Mean over prompts of the mean attempt."),
        ("max_within_groups", "reward", "Mean over prompts of the best attempt."),
        ("std_within_groups", "reward", "Mean over prompts of the attempts' population std."),
        ("rollouts_per_prompt", "rollouts", "Attempts made per prompt, scored or failed."),
        ("num_prompts", "rows", "Rows attempted."),
        ("succeeded_rollouts", "rollouts", "Rollouts that ended with a reward."),
        ("failed_rollouts", "rollouts", "Rollouts that ended without one."),
        ("expired_rollouts", "rollouts", "Those of them that a deadline ended."),
        ("success_threshold", "reward", "An attempt is a success from this reward up."),
        (
            "pass_at_{k}",
            "share",
            "Unbiased chance that one of k attempts succeeds; mean over prompts with k scored.",
        ),
        ("pass_k_{k}", "share", "Another name of pass_at_{k}."),
        (
            "pass_power_{k}",
            "share",
            "Unbiased chance that k attempts all succeed; mean over prompts with k scored.",
        ),
    )


_ROLLOUT = _metrics(
    "rollout",
    ("reward/valid_mean", "reward", "Mean total reward over groups of non-zero advantage."),
    ("reward/single_number", "rollouts", "Rollouts of many turns scored by one number, per turn."),
    (
        "reward/penalised_mean",
        "reward",
        "Mean total reward that learning sees, less penalties; with truncated_turns: penalise.",
    ),
    ("truncated/penalised", "rollouts", "Scored rollouts that paid a penalty; with that rule."),
    ("advantage/mean", "1", "Mean advantage of scored rollouts; over its turns within each."),
    ("advantage/std", "1", "Population standard deviation of the same."),
    ("advantage/min", "1", "Smallest of the same."),
    ("advantage/max", "1", "Largest of the same."),
    *_percentiles("advantage/", "the same"),
    ("advantage/n_positive", "rollouts", "Scored rollouts whose advantage is above 0."),
    ("advantage/n_negative", "rollouts", "Scored rollouts whose advantage is below 0."),
    ("failed", "rollouts", "Slots that were not scored."),
    ("expired", "rollouts", "Those of them that a deadline ended, the group's included."),
    ("retried", "rollouts", "Attempts beyond the first of their slot."),
)

_ANALYSIS = _metrics(
    "analysis",
    ("batch_completion_ratio", "share", "Slots that were scored over all slots of the step."),
    ("batch_valid_ratio", "share", "Groups of non-zero advantage over all groups of the step."),
    ("zero_adv_groups", "groups", "Groups of two or more scored whose advantages are all 0."),
    ("zero_adv_nonzero_reward", "groups", "Those of them in which some reward is not 0."),
    ("zero_adv_zero_reward", "groups", "Those of them in which every reward is 0."),
    ("unpaired_groups", "groups", "Groups in which fewer than two rollouts were scored."),
    ("refilled_groups", "groups", "Groups of zero advantage that fresh ones replaced (refill)."),
    ("settled_groups", "groups", "Groups that ended with their pilot, its rewards being equal."),
    ("reward_variance_across_groups", "reward^2", "Population variance of groups' mean rewards."),
    ("mean_group_reward_spread", "reward", "Mean over groups of largest minus smallest reward."),
)

_EXACTNESS = (
    *_metrics(
        "ledger",
        ("{bin}", "tokens", "Sampled tokens that ended in this bin, as of the step."),
    ),
    *_metrics(
        "mismatch/age_{age}",
        ("mean", "nats", "Mean |learner - sampler| over tokens of this age, before any update."),
        ("max", "nats", "Largest such difference."),
        ("k3", "nats", "Mean of r - log r - 1, r = exp(learner - sampler)."),
        ("ess", "share", "Effective sample size, (sum r)^2 / (n sum r^2)."),
        ("tokens", "tokens", "Tokens of this age; age is the step less the token's policy step."),
    ),
    *_metrics(
        "staleness",
        ("mean", "steps", "Mean age of the trained tokens."),
        ("max", "steps", "Greatest age of a trained token."),
    ),
)


def _bounded(prefix: str, *rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    """Figures with their 95 % intervals."""
    ends = (("low", "Low"), ("high", "High"))
    return _metrics(
        prefix,
        *(row for row in rows if row[2]),
        *(
            (f"{name}_{end}", unit, f"{word} end of its 95 % bootstrap interval, rows resampled.")
            for name, unit, _ in rows
            for end, word in ends
        ),
    )


_EVALUATION = (
    *_bounded(
        "eval",
        ("completion_rate", "share", "Rollouts asked for that were scored, successes or not."),
        ("reward/success_rate", "share", "Scored rollouts whose reward reaches the threshold."),
        ("reward/mean", "reward", ""),
        ("reward/pass_at_{k}", "share", ""),
        ("reward/pass_power_{k}", "share", ""),
        ("scorer/{name}/mean", "score", "Mean score by this scorer; `agent` is the reward."),
        ("scorer/{name}/success_rate", "share", "Scores that reach the scorer's threshold."),
    ),
    *_metrics(
        "eval",
        ("scorer/{name}/scored", "rollouts", "Scored rollouts that have a score by this scorer."),
        ("scorer/{name}/failed", "rollouts", "Scored rollouts that it gave no valid score for."),
        ("scorer/{name}/agreement", "share", "Reward and score agree on success or failure."),
        ("scorer/{name}/reward_only_frac", "share", "The reward says success, the scorer not."),
        ("scorer/{name}/scorer_only_frac", "share", "The scorer says success, the reward not."),
        ("scorer/{name}/correlation", "1", "Pearson correlation of reward and score."),
        ("tools/calls_mean", "calls", "Tool calls in delivered turns per scored rollout."),
        ("tools/by_name/{name}/calls_mean", "calls", "Those of one tool."),
        ("tools/valid_arguments_frac", "share", "Tool calls whose arguments are a JSON object."),
        ("turns/at_limit_frac", "share", "Scored rollouts of evaluation.max_turns turns or more."),
        ("format/match_frac", "share", "Scored rollouts whose last reply has format_pattern."),
    ),
    *_metrics(
        "eval/compare/{name}/{measure}",
        ("difference", "1", "The first model minus this one, mean over rows that both have."),
        ("difference_low", "1", "Low end of its 95 % interval, pairs of rows resampled."),
        ("difference_high", "1", "High end of the same."),
        ("p_value", "1", "Two-sided sign-flip test of the same rows."),
        ("paired_rows", "rows", "Rows that both models have a value of."),
        ("unpaired_rows", "rows", "Rows left out, for a model has no value of them."),
    ),
)

METRICS: tuple[Metric, ...] = (
    *_TRAINING,
    *_TIMING,
    *_THROUGHPUT,
    *_rewards("rollout"),
    *_shapes("rollout"),
    *_ROLLOUT,
    *_ANALYSIS,
    *_EXACTNESS,
    *(
        metric
        for prefix in ("val", "eval")
        for family in (_rewards, _successes, _shapes)
        for metric in family(prefix)
    ),
    *_EVALUATION,
)

#: What a line about a step shows first.
HEADLINE = (
    "rollout/reward/mean",
    "training/loss",
    "analysis/zero_adv_groups",
    "val/reward/mean",
    "eval/reward/mean",
    "eval/reward/success_rate",
    "timing_s/step",
)

_BY_NAME = {metric.name: metric for metric in METRICS}
_FAMILIES = tuple(metric for metric in METRICS if "{" in metric.name)


def metric(name: str) -> Metric:
    """The metric that a logged name belongs to. Raises `InvalidInput` if there is none."""
    if found := _BY_NAME.get(name):
        return found
    for family in _FAMILIES:
        if family.covers(name):
            return family
    if (plain := unscoped(name)) != name:
        return metric(plain)
    near = difflib.get_close_matches(name, _BY_NAME, n=1)
    remedy = f"did you mean {near[0]}?" if near else "see docs/metrics.md"
    raise errors.InvalidInput("metric", name, "is not in the registry", remedy=remedy)


_SCOPED = re.compile(r"(val|eval)/(model/[^/]+/)?(label/[^/]+/)?")


def unscoped(name: str) -> str:
    """The metric of all rows that one of a label's rows, or of another model, corresponds to.

    >>> unscoped("eval/model/walk_3/label/hard/reward/mean"), unscoped("val/label/hard/turns/max")
    ('eval/reward/mean', 'val/turns/max')
    """
    return _SCOPED.sub(r"\1/", name, count=1) if _SCOPED.match(name) else name


def check(names: Iterable[str]) -> None:
    """Raise `InvalidInput` unless every name is in the registry; a mapping is checked by its keys.

    >>> check({"rollout/reward/mean": 0.5, "ledger/trained": 120})
    """
    for name in names:
        metric(name)


def markdown() -> str:
    """The registry as `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Printed from `turnwise/domain/metrics.py` by",
        "`python -m turnwise.domain.metrics > docs/metrics.md`; a metric that is not listed here",
        "cannot be logged. `{k}` and `{age}` stand for a number, `{bin}`, `{measure}` and `{name}`",
        "for a word; a measure is `reward`, `success` or `scorer/{name}`.",
        "A metric without a value in a step (no rollout was scored, say) is left out of it.",
        "",
        "A validation's and an evaluation's metrics exist by row label as well: those of the rows",
        "labelled `hard` are `val/label/hard/...` and `eval/label/hard/...`. In an evaluation of",
        "several models, `eval/...` is the first one's, and `eval/model/{name}/...` that of each.",
    ]
    section = ""
    for each in METRICS:
        if (head := each.name.split("/")[0]) != section:
            section = head
            lines += ["", f"## {head}", "", "| name | unit | definition |", "|---|---|---|"]
        lines.append(f"| `{each.name}` | {each.unit} | {each.definition.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
