"""What `turnwise eval` prints at its end."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from turnwise.terminal import summary

Json = dict[str, Any]


def bounded(name: str, value: float, low: float, high: float) -> Json:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def model(name: str, reward: float, **more: Any) -> Json:
    figures = (
        bounded("eval/reward/mean", reward, reward - 0.05, reward + 0.05)
        | bounded("eval/reward/success_rate", 0.5, 0.25, 0.75)
        | bounded("eval/completion_rate", 1.0, 1.0, 1.0)
        | bounded("eval/label/hard_er/reward/mean", reward / 2, 0.0, 1.0)
        | {"eval/turns/mean": 2.25, "eval/tokens/response_mean": 1234.5}
    )
    return {
        "name": name,
        "key": name,
        "adapter_id": None,
        "metrics": figures | more.pop("metrics", {}),
        "faults": [],
        "score_problems": [],
    } | more


SENTENCE = (
    "tuned is better than base by 0.31 (95 % interval 0.24 to 0.38, p < 0.001, 12 paired rows)"
)
RESULTS: Json = {
    "rows": 12,
    "group_size": 1,
    "success_threshold": 1.0,
    "sampling": {"temperature": 0.0},
    "scorers": ["agent"],
    "labels": [{"key": "hard_er", "label": "hard/er", "rows": 4}],
    "models": [model("tuned", 0.91), model("base", 0.6)],
    "comparisons": [{"sentence": SENTENCE}],
}


def shown(results: Json) -> list[str]:
    """The summary's lines, without spaces at their ends."""
    written = io.StringIO()
    console = Console(file=written, width=200, markup=False, highlight=False)
    for part in summary(results):
        console.print(part)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_two_models_stand_side_by_side_with_intervals_and_a_sentence() -> None:
    assert shown(RESULTS) == [
        "12 rows, 1 rollout per row, greedy; a success is a reward of at least 1; "
        "in brackets: 95 % intervals",
        "           tuned                  base",
        "reward     0.91 (0.86 to 0.96)    0.6 (0.55 to 0.65)",
        "success    50.0 % (25.0 to 75.0)  50.0 % (25.0 to 75.0)",
        "completed  100.0 %                100.0 %",
        "turns      2.25                   2.25",
        "tokens     1234                   1234",
        SENTENCE,
        "label    rows  tuned: reward   tuned: success  base: reward  base: success",
        "hard/er  4     0.455 (0 to 1)  -               0.3 (0 to 1)  -",
    ]


def test_attempts_scorers_tools_and_failures_are_shown_where_there_are_any() -> None:
    metrics = (
        bounded("eval/reward/pass_at_1", 0.5, 0.4, 0.6)
        | bounded("eval/reward/pass_at_4", 0.9, 0.8, 1.0)
        | {"eval/reward/pass_power_4": 0.1}
        | bounded("eval/scorer/agent/mean", 0.5, 0.4, 0.6)
        | {"eval/scorer/judge/mean": 0.25, "eval/scorer/judge/agreement": 0.75}
        | {"eval/scorer/judge/reward_only_frac": 0.125, "eval/scorer/judge/failed": 2.0}
        | {"eval/tools/by_name/look/calls_mean": 1.5, "eval/metrics/speed/mean": 3.0}
    )
    one = model(
        "base",
        0.5,
        metrics=metrics,
        faults=[{"fault": "agent/http_error", "message": "answered\x1b[31m 500", "rollouts": 2}],
        score_problems=[{"scorer": "judge", "problem": "raised KeyError()", "rollouts": 1}],
    )
    results = RESULTS | {"models": [one], "comparisons": [], "labels": [], "group_size": 4}
    results |= {"scorers": ["agent", "judge"], "sampling": {"temperature": 0.7}, "rows": 1}

    assert shown(results) == [
        "1 row, 4 rollouts per row, at temperature 0.7; a success is a reward of at least 1; "
        "in brackets: 95 % intervals",
        "           base",
        "reward     0.5 (0.45 to 0.55)",
        "success    50.0 % (25.0 to 75.0)",
        "pass@1     50.0 % (40.0 to 60.0)",
        "pass@4     90.0 % (80.0 to 100.0)",
        "pass^4     10.0 %",
        "completed  100.0 %",
        "turns      2.25",
        "tokens     1234",
        "scorer  model  mean              success  agrees  only reward says success  missing",
        "agent   base   0.5 (0.4 to 0.6)  -        -       -                         -",
        "judge   base   0.25              -        75.0 %  12.5 %                    2",
        "calls per rollout  base",
        "look               1.5",
        "reported by the agent  base",
        "speed                  3",
        "base: 2 rollouts failed: agent/http_error: answered\\x1b[31m 500",
        "base: 1 score by judge missing: raised KeyError()",
    ]


def test_an_evaluation_of_which_nothing_was_scored_is_shown_too() -> None:
    empty = model("base", 0.5) | {"metrics": {"eval/completion_rate": 0.0}}
    results = RESULTS | {"models": [empty], "comparisons": [], "labels": []}

    assert shown(results)[1:] == ["           base", "completed  0.0 %"]
