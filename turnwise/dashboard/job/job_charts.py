"""Which charts a training job's page has, and which metrics each draws. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from turnwise.dashboard.charts import Chart, chart
from turnwise.domain.curves import Curve, gap

CurvesByLabel = Mapping[str, Curve]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Charts under one heading."""

    id: str
    title: str
    note: str  # what to look for
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    """A chart that is there once one of its curves is."""

    id: str
    title: str
    curves: Callable[[CurvesByLabel], CurvesByLabel]
    is_validation: bool = False
    band: tuple[str, str] | None = None


def _lines(curves: CurvesByLabel, /, **metrics: str) -> CurvesByLabel:
    return {label.replace("_", " "): curves.get(name, ()) for label, name in metrics.items()}


def _plot(id: str, title: str, /, **metrics: str) -> _Plot:
    """A chart of metrics by label; an underscore in a label is a space."""
    return _Plot(id=id, title=title, curves=partial(_lines, **metrics))


def _gap(curves: CurvesByLabel) -> CurvesByLabel:
    training, validation = curves.get("rollout/reward/mean", ()), curves.get("val/reward/mean", ())
    return {"training - validation": gap(training, validation)}


def _ages(curves: CurvesByLabel) -> CurvesByLabel:
    """Mean mismatch of each age of token."""
    ages = sorted(
        int(name.split("/")[1].removeprefix("age_"))
        for name in curves
        if name.startswith("mismatch/") and name.endswith("/mean")
    )
    return {f"age {age}": curves[f"mismatch/age_{age}/mean"] for age in ages}


_QUANTILES = {"p95": "p95", "p75": "p75", "median": "p50", "p25": "p25", "p5": "p5"}


def _spread(prefix: str, curves: CurvesByLabel) -> CurvesByLabel:
    return {label: curves.get(f"{prefix}{name}", ()) for label, name in _QUANTILES.items()}


_SECTIONS: tuple[tuple[str, str, str, tuple[_Plot, ...]], ...] = (
    (
        "reward",
        "Reward",
        "Whether it learns. Validation rows are not trained on.",
        (
            _Plot(
                id="reward-training",
                title="Training reward",
                curves=partial(
                    _lines,
                    mean="rollout/reward/mean",
                    max="rollout/reward/max",
                    min="rollout/reward/min",
                ),
                band=("max", "min"),
            ),
            _Plot(
                id="reward-validation",
                title="Validation reward",
                curves=partial(_lines, mean="val/reward/mean", success_rate="val/reward/pass_at_1"),
                is_validation=True,
            ),
            _Plot(
                id="generalisation",
                title="Generalisation gap",
                curves=_gap,
                is_validation=True,
            ),
        ),
    ),
    (
        "learning",
        "Learning",
        "How far and how fast the policy moves.",
        (
            _plot("loss", "Loss", loss="training/loss"),
            _plot("kl", "KL", from_sampler="training/kl_k3", from_base="training/kl_base"),
            _plot("entropy", "Entropy", entropy="training/entropy"),
            _plot("grad-norm", "Gradient norm", before_clipping="training/grad_norm"),
            _plot("learning-rate", "Learning rate", rate="training/learning_rate"),
        ),
    ),
    (
        "mismatch",
        "Sampler against learner",
        "Ratios are exp(learner - sampler logprob) per trained token; 1 is agreement.",
        (
            _Plot(id="mismatch-age", title="Mismatch by age, nats", curves=_ages),
            _plot("ratio", "Ratio", mean="training/ratio_mean", max="training/ratio_max"),
            _Plot(
                id="ratio-spread",
                title="Distribution of ratios",
                curves=partial(_spread, "training/ratio_"),
                band=("p95", "p5"),
            ),
            _plot("clip", "Clipped tokens, share", share="training/clip_fraction"),
        ),
    ),
    (
        "rollouts",
        "Rollouts",
        "What the agent's attempts look like.",
        (
            _plot(
                "response",
                "Tokens sampled per rollout",
                mean="rollout/tokens/response_mean",
                max="rollout/tokens/response_max",
            ),
            _plot(
                "turns",
                "Turns per rollout",
                mean="rollout/turns/mean",
                max="rollout/turns/max",
                min="rollout/turns/min",
            ),
            _plot("completion", "Completed, share", share="analysis/batch_completion_ratio"),
            _plot(
                "faults",
                "Failed rollouts",
                failed="rollout/failed",
                expired="rollout/expired",
                retried="rollout/retried",
            ),
            _plot("truncated", "Truncated turns, share", turns="rollout/turns/at_cap_frac"),
        ),
    ),
    (
        "signal",
        "Signal",
        "How much of a step there is to learn from: groups whose rewards differ.",
        (
            _plot("valid", "Groups with an advantage, share", share="analysis/batch_valid_ratio"),
            _plot(
                "batch-size",
                "Effective batch size",
                trained_rollouts="training/num_trajectories",
                groups="training/num_groups",
            ),
            _plot(
                "filtered",
                "Filtered groups",
                zero_advantage="analysis/zero_adv_groups",
                unpaired="analysis/unpaired_groups",
                refilled="analysis/refilled_groups",
                settled_by_pilot="analysis/settled_groups",
            ),
            _Plot(
                id="advantages",
                title="Distribution of advantages",
                curves=partial(_spread, "rollout/advantage/"),
                band=("p95", "p5"),
            ),
        ),
    ),
    (
        "freshness",
        "Freshness",
        "Age of the trained tokens, in steps.",
        (_plot("staleness", "Age of trained tokens", mean="staleness/mean", max="staleness/max"),),
    ),
    (
        "speed",
        "Speed",
        "",
        (
            _plot(
                "throughput",
                "Tokens per second",
                sampled="throughput/sampled_tokens_per_s",
                trained="throughput/trained_tokens_per_s",
            ),
            _plot(
                "time",
                "Where a step's time goes, s",
                waiting_for_rollouts="timing_s/wait",
                training="timing_s/training",
                checkpoint="timing_s/save_checkpoint",
                publishing="timing_s/publish",
                whole_step="timing_s/step",
            ),
        ),
    ),
)


def sections(curves: CurvesByLabel, rollouts: str) -> tuple[Section, ...]:
    """The charts of what was recorded; `rollouts` is the address of the job's rollouts.

    A chart without a point is left out, and so is a section without a chart.
    """
    made = [
        Section(
            id=id,
            title=title,
            note=note,
            charts=tuple(
                found for plot in plots if (found := _drawn(plot, curves, rollouts)) is not None
            ),
        )
        for id, title, note, plots in _SECTIONS
    ]
    return tuple(section for section in made if section.charts)


def _drawn(plot: _Plot, curves: CurvesByLabel, rollouts: str) -> Chart | None:
    lines = {label: curve for label, curve in plot.curves(curves).items() if curve}
    if not lines:
        return None
    step = "step={x}&purpose=validation" if plot.is_validation else "trained={x}"
    band = plot.band if plot.band is not None and set(plot.band) <= set(lines) else None
    return chart(plot.id, plot.title, lines, href=f"{rollouts}?{step}", band=band)
