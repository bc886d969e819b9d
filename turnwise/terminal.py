"""An evaluation's results as text and tables, for people at a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

Json = dict[str, Any]

#: What a terminal would obey, but for tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Text of models and agents, with control characters spelled out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def summary(results: Json) -> Iterator[str | Table]:
    """The results from the whole to the parts: figures, comparisons, labels, scorers, failures."""
    yield harmless(_head(results))
    yield _figures(results)
    if results["comparisons"]:
        yield harmless("\n".join(each["sentence"] for each in results["comparisons"]))
    for table in (_labels(results), _scorers(results), _tools(results), _reported(results)):
        if table.row_count:
            yield table
    if failures := list(_failures(results)):
        yield harmless("\n".join(failures))


# ── numbers ───────────────────────────────────────────────────────────────────────────────────


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _mean(metrics: Json, name: str) -> str:
    """A number with its interval."""
    return _bounded(metrics, name, _number, "")


def _share(metrics: Json, name: str) -> str:
    """A percentage with its interval."""
    return _bounded(metrics, name, _percent, " %")


def _bounded(metrics: Json, name: str, shown: Callable[[float], str], unit: str) -> str:
    if (value := metrics.get(name)) is None:
        return "-"
    text = shown(value) + unit
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None or high is None or low == high:
        return text
    return f"{text} ({shown(low)} to {shown(high)})"


Shown = Callable[[Json, str], str]


# ── parts ─────────────────────────────────────────────────────────────────────────────────────


def _head(results: Json) -> str:
    rows, size = _plural(results["rows"], "row"), results["group_size"]
    temperature = results["sampling"]["temperature"]
    how = f"at temperature {temperature:g}" if temperature else "greedy"
    return (
        f"{rows}, {_plural(size, 'rollout')} per row, {how}; "
        f"a success is a reward of at least {results['success_threshold']:g}; "
        "in brackets: 95 % intervals"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


_FIGURES: tuple[tuple[str, str, Shown], ...] = (
    ("reward", "eval/reward/mean", _mean),
    ("success", "eval/reward/success_rate", _share),
    ("completed", "eval/completion_rate", _share),
    ("turns", "eval/turns/mean", _mean),
    ("tokens", "eval/tokens/response_mean", _mean),
    ("turns cut off", "eval/turns/at_cap_frac", _share),
    ("at turn limit", "eval/turns/at_limit_frac", _share),
    ("format kept", "eval/format/match_frac", _share),
    ("tool calls", "eval/tools/calls_mean", _mean),
    ("valid arguments", "eval/tools/valid_arguments_frac", _share),
)


def _figures(results: Json) -> Table:
    """A line per figure, a column per model."""
    names = {name for model in results["models"] for name in model["metrics"]}
    ks = [int(found[1]) for name in names if (found := _PASS.fullmatch(name))]
    passes = [
        (f"{sign}{k}", f"eval/reward/{name}_{k}", _share)
        for k in sorted(ks)
        for sign, name in (("pass@", "pass_at"), ("pass^", "pass_power"))
        if results["group_size"] > 1 and (k > 1 or name == "pass_at")
    ]
    table = _table("", *(model["name"] for model in results["models"]))
    for title, name, shown in (*_FIGURES[:2], *passes, *_FIGURES[2:]):
        if name in names:
            _add(table, title, *(shown(model["metrics"], name) for model in results["models"]))
    return table


_PASS = re.compile(r"eval/reward/pass_at_(\d+)")


def _labels(results: Json) -> Table:
    """A line per label; each model's reward and success."""
    table = _table("label", "rows", *_per_model(results, "reward", "success"))
    for label in results["labels"]:
        prefix = f"eval/label/{label['key']}/reward"
        cells = [
            shown(model["metrics"], f"{prefix}/{name}")
            for model in results["models"]
            for shown, name in ((_mean, "mean"), (_share, "success_rate"))
        ]
        _add(table, label["label"], str(label["rows"]), *cells)
    return table


def _scorers(results: Json) -> Table:
    """A line per scorer and model, where there are others than the agent's own reward."""
    columns = ("mean", "success", "agrees", "only reward says success", "missing")
    table = _table("scorer", "model", *columns)
    if len(results["scorers"]) == 1:
        return table
    for scorer in results["scorers"]:
        for model in results["models"]:
            metrics, name = model["metrics"], f"eval/scorer/{scorer}"
            _add(
                table,
                scorer,
                model["name"],
                _mean(metrics, f"{name}/mean"),
                _share(metrics, f"{name}/success_rate"),
                _share(metrics, f"{name}/agreement"),
                _share(metrics, f"{name}/reward_only_frac"),
                _mean(metrics, f"{name}/failed"),
            )
    return table


def _tools(results: Json) -> Table:
    return _by_name(results, "calls per rollout", r"eval/tools/by_name/(.+)/calls_mean")


def _reported(results: Json) -> Table:
    return _by_name(results, "reported by the agent", r"eval/metrics/(.+)/mean")


def _by_name(results: Json, title: str, pattern: str) -> Table:
    """A line per metric of that pattern, a column per model."""
    table = _table(title, *(model["name"] for model in results["models"]))
    names = {name for model in results["models"] for name in model["metrics"]}
    for name in sorted(names):
        if found := re.fullmatch(pattern, name):
            _add(table, found[1], *(_mean(model["metrics"], name) for model in results["models"]))
    return table


def _failures(results: Json) -> Iterator[str]:
    for model in results["models"]:
        for each in model["faults"]:
            count = _plural(each["rollouts"], "rollout")
            yield f"{model['name']}: {count} failed: {each['fault']}: {each['message']}"
        for each in model["score_problems"]:
            count = _plural(each["rollouts"], "score")
            yield f"{model['name']}: {count} by {each['scorer']} missing: {each['problem']}"


def _per_model(results: Json, *columns: str) -> list[str]:
    names = [model["name"] for model in results["models"]]
    if len(names) == 1:
        return list(columns)
    return [f"{name}: {column}" for name in names for column in columns]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(harmless(column), overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(harmless(cell) for cell in cells))
