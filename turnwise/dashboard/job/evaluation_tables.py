"""What an evaluation found, from its results document to tables of text. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnwise.dashboard.formats import NONE, number, percent

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Texts in columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    is_part: bool = False  # a detail, for which half a page is enough


_FIGURES: tuple[tuple[str, str, bool], ...] = (  # label, metric, whether it is a share
    ("Reward", "eval/reward/mean", False),
    ("Success rate", "eval/reward/success_rate", True),
    ("Completed", "eval/completion_rate", True),
    ("Turns per rollout", "eval/turns/mean", False),
    ("Tokens per rollout", "eval/tokens/response_mean", False),
    ("Turns cut off", "eval/turns/at_cap_frac", True),
    ("At the turn limit", "eval/turns/at_limit_frac", True),
    ("Format kept", "eval/format/match_frac", True),
    ("Tool calls per rollout", "eval/tools/calls_mean", False),
    ("Valid arguments", "eval/tools/valid_arguments_frac", True),
)
_PASS = re.compile(r"eval/reward/pass_(at|power)_([0-9]+)")
_TOOL = re.compile(r"eval/tools/by_name/(.+)/calls_mean")
_MEASURED = re.compile(r"eval/metrics/(.+)/mean")


def tables(results: Json) -> tuple[Table, ...]:
    """From the whole to the parts; what there is nothing of is left out."""
    made = (
        _figures(results),
        _comparisons(results),
        _labels(results),
        _scorers(results),
        _by_name("Tool calls per rollout", "Tool", results, _TOOL),
        _by_name("Reported by the agent", "Measure", results, _MEASURED),
        _failures(results),
    )
    return tuple(table for table in made if table.rows)


def _figures(results: Json) -> Table:
    passes = [found for name in _names(results) if (found := _PASS.fullmatch(name))]
    shares = [
        (f"pass{'@' if found[1] == 'at' else '^'}{found[2]}", found[0], True)
        for found in sorted(passes, key=lambda found: (int(found[2]), found[1]))
    ]
    figures = (*_FIGURES[:2], *shares, *_FIGURES[2:])
    names = _names(results)
    return Table(
        title="Results",
        columns=("", *_models(results)),
        rows=tuple(
            (label, *(_bounded(model["metrics"], metric, share) for model in results["models"]))
            for label, metric, share in figures
            if metric in names
        ),
        note=f"{results['rows']} rows, rollouts per row: {results['group_size']}; a success is a "
        f"reward of at least {results['success_threshold']:g}; in brackets, 95 % intervals.",
    )


def _comparisons(results: Json) -> Table:
    return Table(
        title="Paired comparison",
        columns=("Measure", "Against", "Difference", "p", "Paired rows", "In words"),
        rows=tuple(
            (
                each["measure"],
                each["against"],
                f"{_signed(each['difference'])} "
                f"({_signed(each['low'])} to {_signed(each['high'])})",
                number(each["p_value"], 3),
                number(each["rows"]),
                each["sentence"],
            )
            for each in results["comparisons"]
        ),
        note=f"{results['models'][0]['name']} minus the other, over the rows that both have; "
        "in brackets, the 95 % interval.",
    )


def _labels(results: Json) -> Table:
    return Table(
        title="By label",
        columns=("Label", "Rows", *(f"{name}: success" for name in _models(results))),
        rows=tuple(
            (
                str(label["label"]),
                number(label["rows"]),
                *(
                    _bounded(
                        model["metrics"], f"eval/label/{label['key']}/reward/success_rate", True
                    )
                    for model in results["models"]
                ),
            )
            for label in results["labels"]
        ),
    )


def _scorers(results: Json) -> Table:
    others = [name for name in results["scorers"] if name != "agent"]
    return Table(
        title="Scorers",
        columns=("Scorer", "Model", "Mean", "Success", "Agrees with the reward", "Missing"),
        rows=tuple(
            (
                scorer,
                model["name"],
                _bounded(model["metrics"], f"eval/scorer/{scorer}/mean", False),
                _bounded(model["metrics"], f"eval/scorer/{scorer}/success_rate", True),
                percent(model["metrics"].get(f"eval/scorer/{scorer}/agreement")),
                number(model["metrics"].get(f"eval/scorer/{scorer}/failed")),
            )
            for scorer in others
            for model in results["models"]
        ),
    )


def _by_name(title: str, column: str, results: Json, pattern: re.Pattern[str]) -> Table:
    found = {name: match[1] for name in _names(results) if (match := pattern.fullmatch(name))}
    return Table(
        title=title,
        columns=(column, *_models(results)),
        rows=tuple(
            (found[name], *(number(model["metrics"].get(name)) for model in results["models"]))
            for name in sorted(found)
        ),
        is_part=True,
    )


def _failures(results: Json) -> Table:
    return Table(
        title="What went wrong",
        columns=("Model", "What", "Message", "Rollouts"),
        rows=tuple(
            (model["name"], what, message, number(count))
            for model in results["models"]
            for what, message, count in _wrong(model)
        ),
    )


def _wrong(model: Json) -> Iterator[tuple[str, str, int]]:
    for each in model["faults"]:
        yield each["fault"], each["message"], each["rollouts"]
    for each in model["score_problems"]:
        yield f"no score by {each['scorer']}", each["problem"], each["rollouts"]


def _models(results: Json) -> Sequence[str]:
    return [model["name"] for model in results["models"]]


def _names(results: Json) -> set[str]:
    return {name for model in results["models"] for name in model["metrics"]}


def _bounded(metrics: Json, name: str, is_share: bool) -> str:
    """A number with its interval, where it has one."""
    shown = percent if is_share else number
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    value = metrics.get(name)
    if value is None:
        return NONE
    if low is None or high is None or low == high:
        return shown(value)
    return f"{shown(value)} ({shown(low)} to {shown(high)})"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3g}"
