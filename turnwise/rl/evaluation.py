"""A model's figures on a set of rows, and two models' differences on them. Pure.

Everything is a measure of a rollout (the agent's reward, a scorer's score) with a threshold from
which on it is a success. Only a slot's last rollout counts; one that was not scored has no
measure, is counted as not completed, and never as a 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

import numpy as np

from turnwise.domain.data import Row
from turnwise.domain.evaluation import AGENT, Score, metric_word
from turnwise.domain.job import EvaluationSpec, JobSpec
from turnwise.domain.rollout import Trajectory
from turnwise.rl.comparison import Comparison, compare
from turnwise.rl.conduct import conduct_metrics
from turnwise.rl.intervals import ratio_intervals
from turnwise.rl.passk import pass_at_k, pass_power_k
from turnwise.rl.statistics import last_attempts, scored, validation_metrics
from turnwise.rl.truncation import truncation_metrics

Values = dict[str, float]

#: More labels than any reader compares; a column of ids taken for one would flood the metrics.
MAX_LABELS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptedRow:
    """A row under one model: every attempt by (slot, attempt), and the scorers' scores of them."""

    row: Row
    slots: int  # asked for; one that its group had no time left for has no attempt
    attempts: tuple[Trajectory, ...]
    scores: Mapping[tuple[str, str], Score] = field(default_factory=dict)  # (scorer, rollout_id)

    @property
    def last(self) -> tuple[Trajectory, ...]:
        """The attempt of each slot that counts, by slot."""
        return last_attempts(self.attempts)

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """The rollouts that count."""
        return scored(self.last)

    def value(self, scorer: str, trajectory: Trajectory) -> float | None:
        """What a scorer, or the agent, said of one of the attempts."""
        if scorer == AGENT:
            return trajectory.rollout.reward
        score = self.scores.get((scorer, trajectory.rollout.rollout_id))
        return None if score is None else score.value

    def values(self, scorer: str) -> list[float]:
        """What it said of those that count."""
        found = (self.value(scorer, each) for each in self.scored)
        return [value for value in found if value is not None]


def evaluation_metrics(rows: Sequence[AttemptedRow], spec: JobSpec) -> Values:
    """eval/* of one model over all rows, and eval/label/{label}/* over those of each label."""
    parts = _by_prefix(rows, "eval")
    return {k: v for prefix, part in parts for k, v in _evaluated(part, spec, prefix).items()}


def labelled_validation_metrics(rows: Sequence[AttemptedRow], spec: JobSpec) -> Values:
    """val/* over all rows, and val/label/{label}/* over those of each label."""
    parts = _by_prefix(rows, "val")
    return {k: v for prefix, part in parts for k, v in _validated(part, spec, prefix).items()}


def _by_prefix(
    rows: Sequence[AttemptedRow], prefix: str
) -> list[tuple[str, Sequence[AttemptedRow]]]:
    labelled = by_label(rows).items()
    return [(prefix, rows), *((f"{prefix}/label/{label}", part) for label, part in labelled)]


def by_label(rows: Sequence[AttemptedRow]) -> dict[str, list[AttemptedRow]]:
    """Rows by their label as a part of a metric's name; nothing if there are too many labels."""
    found: dict[str, list[AttemptedRow]] = {}
    for each in rows:
        if each.row.label is not None:
            found.setdefault(metric_word(each.row.label), []).append(each)
    return found if len(found) <= MAX_LABELS else {}


# ── one model ─────────────────────────────────────────────────────────────────────────────────


def _validated(rows: Sequence[AttemptedRow], spec: JobSpec, prefix: str) -> Values:
    chosen = spec.validation
    return _described(rows, spec, chosen.pass_k_values, chosen.success_threshold, prefix)


def _evaluated(rows: Sequence[AttemptedRow], spec: JobSpec, prefix: str) -> Values:
    chosen = spec.evaluation
    counted = [trajectory for each in rows for trajectory in each.scored]
    return {
        **_described(rows, spec, chosen.pass_k_values, chosen.success_threshold, prefix),
        **conduct_metrics(
            counted, prefix=prefix, max_turns=chosen.max_turns, pattern=chosen.format_pattern
        ),
        **_agreements(rows, chosen, prefix),
        **_with_intervals(_ratios(rows, chosen, prefix), spec.seed),
    }


def _described(
    rows: Sequence[AttemptedRow], spec: JobSpec, ks: Sequence[int], threshold: float, prefix: str
) -> Values:
    """What validation and evaluation have in common."""
    attempts = [trajectory for each in rows for trajectory in each.attempts]
    return {
        **validation_metrics([each.last for each in rows], ks, threshold, prefix=prefix),
        **truncation_metrics(prefix, attempts, spec.rollout),
    }


Ratios = dict[str, list[tuple[float, float]]]  # name -> (numerator, denominator) per row


def _ratios(rows: Sequence[AttemptedRow], spec: EvaluationSpec, prefix: str) -> Ratios:
    """Every figure that gets an interval."""
    threshold = spec.success_threshold
    rewards = [each.values(AGENT) for each in rows]
    found: Ratios = {
        f"{prefix}/completion_rate": [(len(each.scored), each.slots) for each in rows],
        **_means(rewards, threshold, f"{prefix}/reward"),
        **_means(rewards, threshold, f"{prefix}/scorer/{AGENT}"),
    }
    for scorer in spec.scorers:
        scores = [each.values(scorer.name) for each in rows]
        found |= _means(scores, scorer.success_threshold, f"{prefix}/scorer/{scorer.name}")
    counts = [(len(each), sum(reward >= threshold for reward in each)) for each in rewards]
    for k in spec.pass_k_values:
        for name, estimate in (("pass_at", pass_at_k), ("pass_power", pass_power_k)):
            found[f"{prefix}/reward/{name}_{k}"] = [
                (estimate(n, c, k), 1.0) if n >= k else (0.0, 0.0) for n, c in counts
            ]
    return found


def _means(values: Sequence[Sequence[float]], threshold: float, prefix: str) -> Ratios:
    """Mean over rollouts and share of successes, from the values of each row's rollouts."""
    return {
        f"{prefix}/mean": [(sum(each), len(each)) for each in values],
        f"{prefix}/success_rate": [(sum(x >= threshold for x in v), len(v)) for v in values],
    }


def _with_intervals(ratios: Ratios, seed: int) -> Values:
    """Each figure as `name`, and its 95 % interval as `name_low` and `name_high`."""
    table = np.array([list(each) for each in ratios.values()], dtype=np.float64)  # [M, R, 2]
    if not table.size:
        return {}
    sums = table.sum(axis=1)
    intervals = ratio_intervals(table[:, :, 0].T, table[:, :, 1].T, seed=seed)
    found: Values = {}
    for name, (above, below), (low, high) in zip(ratios, sums, intervals, strict=True):
        if below:
            found[name] = float(above / below)
        if not np.isnan(low):
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


# ── reward and truth ──────────────────────────────────────────────────────────────────────────


def _agreements(rows: Sequence[AttemptedRow], spec: EvaluationSpec, prefix: str) -> Values:
    """How each independent scorer's scores relate to the agent's rewards of the same rollouts."""
    found: Values = {}
    for scorer in spec.scorers:
        asked = [(each, trajectory) for each in rows for trajectory in each.scored]
        pairs = [
            (reward, score)
            for each, trajectory in asked
            if (reward := trajectory.rollout.reward) is not None
            and (score := each.value(scorer.name, trajectory)) is not None
        ]
        name = f"{prefix}/scorer/{scorer.name}"
        found |= {f"{name}/scored": len(pairs), f"{name}/failed": len(asked) - len(pairs)}
        if pairs:
            rewards, scores = np.array(pairs, dtype=np.float64).T
            found |= _agreement(
                name, rewards, scores, spec.success_threshold, scorer.success_threshold
            )
    return found


def _agreement(
    name: str,
    rewards: np.ndarray[tuple[int], np.dtype[np.float64]],  # [N]
    scores: np.ndarray[tuple[int], np.dtype[np.float64]],  # [N]
    reward_threshold: float,
    score_threshold: float,
) -> Values:
    claimed, true = rewards >= reward_threshold, scores >= score_threshold
    found = {
        f"{name}/agreement": float(np.mean(claimed == true)),
        f"{name}/reward_only_frac": float(np.mean(claimed & ~true)),
        f"{name}/scorer_only_frac": float(np.mean(~claimed & true)),
    }
    if np.ptp(rewards) > 0 and np.ptp(scores) > 0:
        found[f"{name}/correlation"] = float(np.corrcoef(rewards, scores)[0, 1])
    return found


# ── two models ────────────────────────────────────────────────────────────────────────────────


def comparisons(
    ours: Sequence[AttemptedRow], theirs: Sequence[AttemptedRow], spec: JobSpec
) -> dict[str, Comparison]:
    """Ours minus theirs, row by row, in "reward", "success" and "scorer/{name}".

    A row's value is the mean over its rollouts that have one. Both have the same rows in order.
    """
    seed, threshold = spec.seed, spec.evaluation.success_threshold
    found = {
        "reward": compare(_row_means(ours, AGENT), _row_means(theirs, AGENT), seed=seed),
        "success": compare(
            _row_means(ours, AGENT, threshold), _row_means(theirs, AGENT, threshold), seed=seed
        ),
    }
    for scorer in spec.evaluation.scorers:
        name = scorer.name
        found[f"scorer/{name}"] = compare(
            _row_means(ours, name), _row_means(theirs, name), seed=seed
        )
    return {measure: each for measure, each in found.items() if each is not None}


def comparison_metrics(found: Mapping[str, Comparison], model: str) -> Values:
    """eval/compare/{model}/{measure}/*: the first model minus this one."""
    values: Values = {}
    for measure, each in found.items():
        prefix = f"eval/compare/{model}/{measure}"
        values |= {
            f"{prefix}/difference": each.difference,
            f"{prefix}/p_value": each.p_value,
            f"{prefix}/paired_rows": each.rows,
            f"{prefix}/unpaired_rows": each.unpaired,
        }
        if each.low is not None and each.high is not None:
            values |= {f"{prefix}/difference_low": each.low, f"{prefix}/difference_high": each.high}
    return values


def _row_means(
    rows: Sequence[AttemptedRow], scorer: str, threshold: float | None = None
) -> list[float | None]:
    """The row's mean value or, with a threshold, its share of successes; None without a value."""
    values = [each.values(scorer) for each in rows]
    if threshold is not None:
        values = [[float(value >= threshold) for value in each] for each in values]
    return [fsum(each) / len(each) if each else None for each in values]


# ── what went wrong ───────────────────────────────────────────────────────────────────────────


def fault_counts(rows: Sequence[AttemptedRow]) -> list[tuple[str, str, int]]:
    """(blame/code, a message, count) of the slots that were not scored, commonest first."""
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for each in rows:
        for trajectory in each.last:
            if trajectory.rollout.is_scored:
                continue
            fault = trajectory.rollout.fault
            name = f"{fault.blame.value}/{fault.code}" if fault else "agent/agent_failed"
            counts[name] += 1
            messages.setdefault(name, fault.message if fault else "it said that it failed")
        if missing := each.slots - len(each.last):
            counts["agent/deadline"] += missing
            messages.setdefault("agent/deadline", "the group's time was over before it began")
    return [(name, messages[name], count) for name, count in counts.most_common()]


def problem_counts(rows: Sequence[AttemptedRow]) -> list[tuple[str, str, int]]:
    """(scorer, problem, count) of the scores that are missing, commonest first."""
    scores = [score for each in rows for score in each.scores.values()]
    counts = Counter((score.scorer, score.problem) for score in scores if score.value is None)
    return [(scorer, problem, count) for (scorer, problem), count in counts.most_common()]
