"""The checks, in the order in which they are told. Pure: the same records give the same findings.

Rewards are judged against `validation.success_threshold`, the one number of a job that says how
large a reward is. Every limit below says why it is what it is; most are meant to be quiet on runs
that learn, rather than to be the first to notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby

from turnwise.diagnostics.findings import Check, Evidence, Finding, Found, Recorded, Severity
from turnwise.diagnostics.measures import best, ends, mean, middle, spread, standard_error
from turnwise.domain.curves import Curve, gap
from turnwise.domain.rollout import Blame, Fault, Purpose, RolloutStatus

#: Steps at either end of a curve that are compared: single steps differ by chance.
WINDOW = 5

#: Steps before a reward that does not rise is called stuck. Warm-up and luck need a few.
STUCK_STEPS = 20
#: Of the success threshold: a reward below this share still has most of the task to learn ...
LOW_REWARD = 0.5
#: ... and a rise of less than this share over all those steps is no rise.
LEAST_RISE = 0.05

#: A fall of the mean reward by this share of the success threshold ...
LARGE_DROP = 0.2
#: ... and by as many standard errors: then it is not the rows that a step happened to get.
SURE = 3.0

#: Failed rollouts cost their siblings: of groups of eight, one failure in ten leaves more than half
#: of the groups incomplete.
MANY_FAILURES = 0.1
#: Rollouts that must have ended before a share of them is worth telling.
FEW_ROLLOUTS = 10

#: How many of its early spreads the loss may rise: clipped losses move about, but not that far.
LOSS_SPREADS = 10.0
#: Losses this close to where they began are the same: normalised advantages make them about 0.
SMALL_LOSS = 0.1
#: A gradient this many times as large as at the start, and larger than clipping lets through, is
#: scaled down step after step: its direction is noise.
LARGE_GRADIENT = 10.0

#: Above this share of groups without advantage, most sampling buys no gradient.
MOST_GROUPS = 0.5
#: Of the entropy at the start: below it, siblings rarely differ and nothing new is tried.
COLLAPSED_ENTROPY = 0.1

#: Mean KL (k3) between learner and sampler, in nats per token. Stale tokens account for hundredths;
#: above this the clipped objective mostly sees tokens that the policy would no longer say.
LARGE_KL = 0.05
#: The mean ratio of a policy that is close to its sampler is 1; sampling noise keeps within this.
RATIO_OFF = 0.1

#: Share of steps that use all the age they are allowed: from here on the bound sets the pace.
MOST_STEPS = 0.5

#: Share of turns cut off by a token limit from which the limit shapes what is learned.
MANY_TRUNCATED = 0.1

#: Of the success threshold: how much the gap between training and validation must have grown.
GROWN_GAP = 0.15
#: Validations before a trend is read from them.
FEW_VALIDATIONS = 3
#: Of the success threshold: how much worse than the start a validation must be, besides noise.
WORSE = 0.05

#: Below so many groups a step's direction is that of a handful of rows.
FEW_GROUPS = 4

TRAIN_REWARD = "rollout/reward/mean"
VALIDATION_REWARD = "val/reward/mean"

#: Faults that say nothing about agent or sampler: the service itself ended the rollout.
_OWN = frozenset({"superseded", "cancelled"})
_SAMPLER = frozenset({"sampler_error"})


def findings(recorded: Recorded) -> tuple[Finding, ...]:
    """What all checks find, errors first."""
    found = [each for check in CHECKS if (each := check.finding(recorded)) is not None]
    rank = list(Severity)
    return tuple(sorted(found, key=lambda finding: rank.index(finding.severity)))


# ── reward ────────────────────────────────────────────────────────────────────────────────────


def _stuck(recorded: Recorded) -> Found | None:
    curve, scale = recorded.curve(TRAIN_REWARD), _scale(recorded)
    if len(curve) < STUCK_STEPS or (parts := ends(curve, WINDOW)) is None:
        return None
    early, late = parts
    if mean(late) >= LOW_REWARD * scale or mean(late) - mean(early) >= LEAST_RISE * scale:
        return None
    title = f"Reward is stuck at {_n(mean(late))}: it was {_n(mean(early))} at the start"
    return Found(
        title=title,
        evidence=_points(TRAIN_REWARD, early[0], late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _dropped(recorded: Recorded) -> Found | None:
    curve = recorded.curve(TRAIN_REWARD)
    parts = ends(curve, WINDOW)
    if parts is None:
        return None
    late, top = parts[1], best(curve[:-WINDOW], min(WINDOW, len(curve) - WINDOW))
    fall = mean(top) - mean(late)
    if fall <= max(LARGE_DROP * _scale(recorded), SURE * _error_of(recorded, late)):
        return None
    title = f"Reward fell from {_n(mean(top))} to {_n(mean(late))}"
    return Found(
        title=title,
        evidence=_points(TRAIN_REWARD, top[-1], late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _error_of(recorded: Recorded, late: Curve) -> float:
    """Standard error of the mean reward over the newest steps; 0 where it is not known."""
    stds, counts = recorded.curve("rollout/reward/std"), recorded.curve("training/num_trajectories")
    if not stds or not counts:
        return 0.0
    return standard_error(middle(stds[-len(late) :]), middle(counts[-len(late) :]) * len(late))


def _worse(recorded: Recorded) -> Found | None:
    curve = recorded.curve(VALIDATION_REWARD)
    if len(curve) < FEW_VALIDATIONS:
        return None
    (_, first), (_, last) = curve[0], curve[-1]
    prompts, stds = recorded.curve("val/reward/num_prompts"), recorded.curve("val/reward/std")
    noise = 0.0
    if prompts and stds:
        noise = 2 * standard_error(stds[-1][1], prompts[-1][1])
    if first - last <= max(WORSE * _scale(recorded), noise):
        return None
    return Found(
        title=f"Validation reward is {_n(last)}, below the {_n(first)} it started from",
        evidence=_points(VALIDATION_REWARD, curve[0], curve[-1]),
        rollouts={"step": str(curve[-1][0]), "purpose": Purpose.VALIDATION.value},
    )


def _overfits(recorded: Recorded) -> Found | None:
    validation = recorded.curve(VALIDATION_REWARD)
    gaps = gap(recorded.curve(TRAIN_REWARD), validation)
    if len(gaps) < FEW_VALIDATIONS:
        return None
    smallest = min(gaps, key=lambda point: point[1])
    has_grown = gaps[-1][1] - smallest[1] > GROWN_GAP * _scale(recorded)
    if not has_grown or validation[-1][1] >= max(value for _, value in validation):
        return None
    return Found(
        title=f"Training reward runs {_n(gaps[-1][1])} ahead of validation, and that has grown",
        evidence=(
            *_points("training - validation", smallest, gaps[-1]),
            *_points(VALIDATION_REWARD, validation[-1]),
        ),
        rollouts={"step": str(validation[-1][0]), "purpose": Purpose.VALIDATION.value},
    )


# ── rollouts ──────────────────────────────────────────────────────────────────────────────────


def _failing(wanted: Callable[[str], bool], what: str) -> Callable[[Recorded], Found | None]:
    """Whether many of the newest steps' training rollouts failed by faults of that sort."""

    def look(recorded: Recorded) -> Found | None:
        newest = _newest_steps(recorded)
        ended = sum(sum(counts.values()) for counts in newest.values())
        faults = Counter(
            {
                code: sum(counts[code] for counts in newest.values())
                for code in {code for counts in newest.values() for code in counts}
                if code and wanted(code)
            }
        )
        failed = faults.total()
        if ended < FEW_ROLLOUTS or failed <= MANY_FAILURES * ended:
            return None
        [(most, _)] = faults.most_common(1)
        step = max(newest)
        return Found(
            title=f"{failed} of the last {ended} training rollouts {what} ({_codes(faults)})",
            evidence=(Evidence(step=step, metric="rollout/failed", value=float(failed)),),
            rollouts={"fault_code": most},
        )

    return look


def _newest_steps(recorded: Recorded) -> Mapping[int, Counter[str]]:
    """Faults of ended training rollouts ("" for none), by step, of the newest steps."""
    found: dict[int, Counter[str]] = {}
    ordered = sorted(recorded.rollouts, key=lambda tally: tally.step)
    for step, tallies in groupby(ordered, key=lambda tally: tally.step):
        counts: Counter[str] = Counter()
        for tally in tallies:
            is_ended = tally.status in (RolloutStatus.FAILED, RolloutStatus.REWARDED)
            if tally.purpose is Purpose.TRAIN and is_ended and tally.fault_code not in _OWN:
                counts[tally.fault_code or ""] += tally.count
        if counts:
            found[step] = counts
    return {step: found[step] for step in sorted(found)[-WINDOW:]}


def _codes(faults: Counter[str]) -> str:
    return ", ".join(f"{code}: {count}" for code, count in faults.most_common())


def _truncated(recorded: Recorded) -> Found | None:
    return _above(
        recorded,
        "rollout/turns/at_cap_frac",
        MANY_TRUNCATED,
        lambda share: f"{_p(share)} of turns are cut off by a token limit",
    )


# ── learning ──────────────────────────────────────────────────────────────────────────────────


def _loss_rises(recorded: Recorded) -> Found | None:
    parts = ends(recorded.curve("training/loss"), WINDOW)
    if parts is None:
        return None
    early, late = parts
    rise = middle(late) - middle(early)
    if rise <= max(SMALL_LOSS, LOSS_SPREADS * spread(early)):
        return None
    return Found(
        title=f"Loss rose from {_n(middle(early))} to {_n(middle(late))}",
        evidence=_points("training/loss", early[0], late[-1]),
    )


def _gradient_rises(recorded: Recorded) -> Found | None:
    parts = ends(recorded.curve("training/grad_norm"), WINDOW)
    if parts is None:
        return None
    early, late = parts
    limit = max(LARGE_GRADIENT * middle(early), recorded.spec.optimizer.grad_clip_norm)
    if middle(late) <= limit:
        return None
    return Found(
        title=f"Gradient norm rose from {_n(middle(early))} to {_n(middle(late))}",
        evidence=_points("training/grad_norm", early[0], late[-1]),
    )


def _entropy_collapsed(recorded: Recorded) -> Found | None:
    parts = ends(recorded.curve("training/entropy"), WINDOW)
    if parts is None:
        return None
    early, late = parts
    if middle(early) <= 0 or middle(late) >= COLLAPSED_ENTROPY * middle(early):
        return None
    return Found(
        title=f"Entropy fell from {_n(middle(early))} to {_n(middle(late))} nats",
        evidence=_points("training/entropy", early[0], late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _no_advantage(recorded: Recorded) -> Found | None:
    late = recorded.curve("analysis/batch_valid_ratio")[-WINDOW:]
    if len(late) < WINDOW or mean(late) > 0:
        return None
    return Found(
        title=f"No group of the last {WINDOW} steps had rewards that differ",
        evidence=_points("analysis/batch_valid_ratio", late[0], late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _little_advantage(recorded: Recorded) -> Found | None:
    late = recorded.curve("analysis/batch_valid_ratio")[-WINDOW:]
    if len(late) < WINDOW or not 0 < mean(late) < 1 - MOST_GROUPS:
        return None
    return Found(
        title=f"{_p(1 - mean(late))} of groups had no rewards that differ, so nothing to learn",
        evidence=_points("analysis/batch_valid_ratio", late[0], late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _few_groups(recorded: Recorded) -> Found | None:
    late = recorded.curve("training/num_groups")[-WINDOW:]
    if not late or mean(late) >= FEW_GROUPS:
        return None
    return Found(
        title=f"A step learns from {_n(mean(late))} groups",
        evidence=_points("training/num_groups", late[-1]),
    )


# ── sampler against learner ───────────────────────────────────────────────────────────────────


def _mismatch(recorded: Recorded) -> Found | None:
    """The first of three measures that is off, the one that says most first."""
    parity = recorded.spec.parity.max_mean_difference
    for metric, expected, limit in (
        ("mismatch/age_0/mean", 0.0, parity),
        ("training/kl_k3", 0.0, LARGE_KL),
        ("training/ratio_mean", 1.0, RATIO_OFF),
    ):
        late = recorded.curve(metric)[-WINDOW:]
        if late and abs(middle(late) - expected) > limit:
            away = f"more than {_n(limit)} off {_n(expected)}"
            return Found(
                title=f"Sampler and learner disagree: {metric} is {_n(middle(late))}, {away}",
                evidence=_points(metric, late[-1]),
            )
    return None


def _stale(recorded: Recorded) -> Found | None:
    bound = recorded.spec.async_config.max_steps_off_policy
    late = recorded.curve("staleness/max")[-2 * WINDOW :]
    at_bound = [point for point in late if point[1] >= bound]
    if not bound or len(late) < 2 * WINDOW or len(at_bound) <= MOST_STEPS * len(late):
        return None
    return Found(
        title=f"{len(at_bound)} of the last {len(late)} steps trained tokens of age {bound}, "
        "the oldest allowed",
        evidence=_points("staleness/max", at_bound[-1]),
    )


# ── parts ─────────────────────────────────────────────────────────────────────────────────────


def _scale(recorded: Recorded) -> float:
    """The reward of a success; 1 for a job whose threshold is not above 0."""
    threshold = recorded.spec.validation.success_threshold
    return threshold if threshold > 0 else 1.0


def _above(
    recorded: Recorded, metric: str, limit: float, title: Callable[[float], str]
) -> Found | None:
    late = recorded.curve(metric)[-WINDOW:]
    if not late or mean(late) <= limit:
        return None
    return Found(
        title=title(mean(late)),
        evidence=_points(metric, late[-1]),
        rollouts={"step": str(late[-1][0])},
    )


def _points(metric: str, *points: tuple[int, float]) -> tuple[Evidence, ...]:
    return tuple(Evidence(step=step, metric=metric, value=value) for step, value in points)


def _n(value: float) -> str:
    return f"{value:.3g}"


def _p(share: float) -> str:
    return f"{100 * share:.0f} %"


def _is_late(code: str) -> bool:
    return Fault(blame=Blame.AGENT, code=code).is_late


CHECKS: tuple[Check, ...] = (
    Check(
        code="low_reward",
        severity=Severity.ERROR,
        when=f"after {STUCK_STEPS} steps the mean training reward is below {_p(LOW_REWARD)} of "
        f"validation.success_threshold and has risen by less than {_p(LEAST_RISE)} of it.",
        remedy="read a few rollouts: is the reward what you mean, and does any attempt earn it? "
        "Then start from a model that sometimes succeeds, add easier rows, use a larger "
        "batch.group_size, or raise optimizer.learning_rate.",
        look=_stuck,
    ),
    Check(
        code="reward_dropped",
        severity=Severity.ERROR,
        when=f"the mean training reward of the last {WINDOW} steps is below its best {WINDOW} by "
        f"more than {_p(LARGE_DROP)} of the success threshold and {SURE:g} standard errors.",
        remedy="continue from the checkpoint before the fall with a lower "
        "optimizer.learning_rate, a lower algorithm.clip_high_threshold or a positive "
        "algorithm.kl_coef; look whether the agent or its environment changed then.",
        look=_dropped,
    ),
    Check(
        code="validation_worse",
        severity=Severity.ERROR,
        when=f"the newest of {FEW_VALIDATIONS} or more validations is below the first by more than "
        f"{_p(WORSE)} of the success threshold and two standard errors.",
        remedy="the base is better than what was trained. Compare training and validation rows; "
        "lower optimizer.learning_rate, or look for a reward that can be earned without the task.",
        look=_worse,
    ),
    Check(
        code="overfitting",
        severity=Severity.WARNING,
        when="training reward minus validation reward has grown by more than "
        f"{_p(GROWN_GAP)} of the success threshold since it was smallest, and validation is below "
        "its best.",
        remedy="use an earlier checkpoint, the one of the best validation; add rows, or lower "
        "schedule.max_epochs, lora.rank or optimizer.learning_rate.",
        look=_overfits,
    ),
    Check(
        code="rollout_timeouts",
        severity=Severity.WARNING,
        when=f"of the last {WINDOW} steps' training rollouts more than {_p(MANY_FAILURES)} ran out "
        "of time.",
        remedy="raise rollout.rollout_timeout, make the agent faster, or lower "
        "rollout.rollout_max_concurrency if it is overloaded. no_reward: the agent completes "
        "rollouts without reporting a reward.",
        look=_failing(_is_late, "ran out of time"),
    ),
    Check(
        code="agent_errors",
        severity=Severity.WARNING,
        when=f"of the last {WINDOW} steps' training rollouts more than {_p(MANY_FAILURES)} failed "
        "by a fault of the agent.",
        remedy="read the fault of one of them and the agent's own log; a rollout that fails is "
        "left out of its group, so siblings lose their comparison.",
        look=_failing(
            lambda code: not _is_late(code) and code not in _SAMPLER, "failed in the agent"
        ),
    ),
    Check(
        code="sampler_errors",
        severity=Severity.WARNING,
        when=f"of the last {WINDOW} steps' training rollouts more than {_p(MANY_FAILURES)} failed "
        "in the sampler.",
        remedy="read the job's log and the engine's in the data folder; too long prompts need a "
        "larger engine_max_length.",
        look=_failing(lambda code: code in _SAMPLER, "failed in the sampler"),
    ),
    Check(
        code="no_advantage",
        severity=Severity.ERROR,
        when=f"in each of the last {WINDOW} steps every group's rewards were alike.",
        remedy="rows are all too hard or all too easy, or the reward does not tell attempts "
        "apart: choose other rows, a finer reward, a larger batch.group_size or a higher "
        "sampling_params.temperature.",
        look=_no_advantage,
    ),
    Check(
        code="little_advantage",
        severity=Severity.WARNING,
        when=f"over the last {WINDOW} steps more than {_p(MOST_GROUPS)} of groups had rewards that "
        "are all alike.",
        remedy="set batch.refill to replace such groups, or batch.pilot_size to spend less on "
        "them; drop rows that are always or never solved.",
        look=_little_advantage,
    ),
    Check(
        code="few_groups",
        severity=Severity.INFO,
        when=f"a step takes fewer than {FEW_GROUPS} groups.",
        remedy="raise batch.global_batch_size: few rows make a noisy direction and curves that "
        "jump.",
        look=_few_groups,
    ),
    Check(
        code="truncation",
        severity=Severity.WARNING,
        when=f"over the last {WINDOW} steps more than {_p(MANY_TRUNCATED)} of turns were cut off "
        "by a token limit.",
        remedy="raise sampling_params.max_tokens or rollout.rollout_max_tokens, or say with "
        "rollout.truncated_turns that such turns are masked or penalised.",
        look=_truncated,
    ),
    Check(
        code="loss_rising",
        severity=Severity.WARNING,
        when=f"the median loss of the last {WINDOW} steps is above that of the first {WINDOW} by "
        f"more than {SMALL_LOSS:g} and {LOSS_SPREADS:g} times its early spread.",
        remedy="lower optimizer.learning_rate or batch.updates_per_step; a loss with "
        "algorithm.kl_coef rises as the policy leaves the base.",
        look=_loss_rises,
    ),
    Check(
        code="gradient_rising",
        severity=Severity.WARNING,
        when=f"the median gradient norm of the last {WINDOW} steps is above {LARGE_GRADIENT:g} "
        f"times that of the first {WINDOW} and above optimizer.grad_clip_norm.",
        remedy="lower optimizer.learning_rate, add schedule.warmup_steps, or raise "
        "batch.global_batch_size.",
        look=_gradient_rises,
    ),
    Check(
        code="entropy_collapsed",
        severity=Severity.WARNING,
        when=f"the median entropy of the last {WINDOW} steps is below {_p(COLLAPSED_ENTROPY)} of "
        f"that of the first {WINDOW}.",
        remedy="raise algorithm.clip_high_threshold (DAPO's clip-higher) or "
        "sampling_params.temperature, or lower optimizer.learning_rate.",
        look=_entropy_collapsed,
    ),
    Check(
        code="mismatch",
        severity=Severity.WARNING,
        when="sampler and learner disagree over the last steps: mismatch/age_0/mean is above "
        f"parity.max_mean_difference, training/kl_k3 above {LARGE_KL:g} nats, or "
        f"training/ratio_mean off 1 by more than {RATIO_OFF:g}.",
        remedy="at age 0: sampler and learner compute in different precision, or with different "
        "templates. Otherwise the policy moves too far between steps: lower "
        "async_config.max_steps_off_policy, batch.updates_per_step or optimizer.learning_rate, "
        "or set algorithm.tis_cap.",
        look=_mismatch,
    ),
    Check(
        code="stale",
        severity=Severity.INFO,
        when=f"more than {_p(MOST_STEPS)} of the last {2 * WINDOW} steps trained tokens as old as "
        "async_config.max_steps_off_policy allows.",
        remedy="the slowest rollouts set the pace. Lower the bound if ratios suffer, raise it if "
        "the learner waits; look for agents that are slow on certain rows.",
        look=_stale,
    ),
)
