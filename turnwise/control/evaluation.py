"""The `evaluation` block of a job file: what makes no sense in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnwise import errors
from turnwise.control.objects.locations import check_address
from turnwise.domain.evaluation import AGENT
from turnwise.domain.job import EvaluationSpec, ScorerSpec

_SCORER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,39}")


def check_evaluation(evaluation: EvaluationSpec) -> None:
    """Raise `InvalidInput` for settings that cannot mean anything, with the reason."""
    _check_distinct("evaluation.models[{}]", evaluation.models, "model")
    _check_distinct("evaluation.scorers[{}].name", [s.name for s in evaluation.scorers], "scorer")
    for place, scorer in enumerate(evaluation.scorers):
        _check_scorer(f"evaluation.scorers[{place}]", scorer)
    try:
        re.compile(evaluation.format_pattern)
    except re.error as error:
        raise errors.InvalidInput(
            "evaluation.format_pattern",
            evaluation.format_pattern,
            f"is not a regular expression: {error}",
            remedy="quote special characters with a backslash",
        ) from None


def _check_distinct(field: str, names: Sequence[str], what: str) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise errors.InvalidInput(
                field.format(place), name, f"is there twice; each {what} is needed once"
            )


def _check_scorer(where: str, scorer: ScorerSpec) -> None:
    if not _SCORER_NAME.fullmatch(scorer.name):
        raise errors.InvalidInput(
            f"{where}.name",
            scorer.name,
            "is not a scorer's name",
            remedy="use 1 to 40 letters, digits, hyphens and underscores",
        )
    if scorer.name == AGENT:
        raise errors.InvalidInput(
            f"{where}.name", AGENT, "is the agent's own reward", remedy="choose another name"
        )
    if bool(scorer.target) == bool(scorer.url):
        raise errors.InvalidInput(
            where,
            scorer.name,
            "has both a target and a url" if scorer.url else "has neither a target nor a url",
            remedy="set one of them",
        )
    _check_target(f"{where}.target", scorer.target)
    _check_url(f"{where}.url", scorer.url)


def _check_url(field: str, url: str) -> None:
    if url:
        check_address(url, field, remedy="use http://host:port/path")


def _check_target(field: str, target: str) -> None:
    if target and not all(target.partition(":")):
        raise errors.InvalidInput(
            field, target, "names no function", remedy='use "package.module:function"'
        )
