"""Events of a job as lines of a log, and which lines a filter pattern lets through. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from turnwise import errors
from turnwise.domain.event import Event, EventKind, Level
from turnwise.domain.metrics import HEADLINE

#: Of a step's metrics, how many a line shows: first `HEADLINE`, then the others.
_MAX_METRICS = 12


def line(event: Event) -> str:
    """An event in words, on one line; the same event always gives the same line.

    >>> body = {"rollout_id": "rollout_a", "status": "REWARDED", "reward": 1.0, "turns": 2,
    ...     "tokens": 40}
    >>> line(Event(seq=1, job_id="j", at=0.0, kind=EventKind.ROLLOUT, level=Level.INFO, body=body))
    'rollout rollout_a REWARDED reward=1 turns=2 tokens=40'
    """
    text = " ".join(_WORDS[event.kind](event.body).split())
    loud = event.level in (Level.WARNING, Level.ERROR)
    return f"{event.level.value.upper()} {text}" if loud else text


def _status(body: Mapping[str, Any]) -> str:
    phase = body.get("secondary")
    text = f"status {body['status']}" + (f" ({phase})" if phase else "")
    return f"{text}: {body['message']}" if body.get("message") else text


def _log(body: Mapping[str, Any]) -> str:
    text = str(body["message"])
    for key in ("step", "rollout_id"):
        if body.get(key) is not None:
            text += f" {key}={body[key]}"
    if body.get("total"):
        text += f" ({body.get('completed', 0)} of {body['total']})"
    return text


def _metrics(body: Mapping[str, Any]) -> str:
    values: Mapping[str, Any] = body["values"]
    names = [name for name in HEADLINE if name in values]
    names += [name for name in sorted(values) if name not in names]
    shown = " ".join(f"{name}={_number(values[name])}" for name in names[:_MAX_METRICS])
    more = f" ({len(names)} metrics in all)" if len(names) > _MAX_METRICS else ""
    return f"step {body['step']} {shown}{more}"


def _rollout(body: Mapping[str, Any]) -> str:
    text = f"rollout {body['rollout_id']} {body['status']}"
    for key in ("reward", "turns", "tokens"):
        if body.get(key) is not None:
            text += f" {key}={_number(body[key])}"
    if fault := body.get("fault"):
        text += f" {fault['blame']} {fault['code']}: {fault['message']}"
    return text


def _step(body: Mapping[str, Any]) -> str:
    groups, tokens = len(body.get("groups", ())), body.get("trained_tokens", 0)
    policy = body.get("policy_step")
    return f"step {body['step']} finished: {groups} groups, {tokens} tokens, policy step {policy}"


def _checkpoint(body: Mapping[str, Any]) -> str:
    return f"step {body['step']} checkpoint {str(body.get('sha256', ''))[:12]} saved"


def _evaluation(body: Mapping[str, Any]) -> str:
    return f"{body['purpose']} {_metrics(body)}"


def _promotion(body: Mapping[str, Any]) -> str:
    return f"step {body['step']} model {body['model']} is the job's output"


_WORDS: Mapping[EventKind, Callable[[Mapping[str, Any]], str]] = {
    EventKind.STATUS: _status,
    EventKind.LOG: _log,
    EventKind.METRICS: _metrics,
    EventKind.ROLLOUT: _rollout,
    EventKind.STEP: _step,
    EventKind.CHECKPOINT: _checkpoint,
    EventKind.EVALUATION: _evaluation,
    EventKind.PROMOTION: _promotion,
}


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ── filter patterns ───────────────────────────────────────────────────────────────────────────

_TERM = re.compile(r'\s*(?P<sign>[?-]?)(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s"]+))')


@dataclass(frozen=True, slots=True)
class Filter:
    """What a pattern asks of a line. Terms are looked for as they are, with their case.

    >>> parse_filter('ERROR "timed out" -retry').matches("ERROR: timed out")
    True
    >>> parse_filter("?ERROR ?WARNING").matches("a WARNING")
    True
    """

    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()  # ?term
    none_of: tuple[str, ...] = ()  # -term

    def matches(self, text: str) -> bool:
        """Whether a line passes."""
        return (
            all(term in text for term in self.all_of)
            and (not self.any_of or any(term in text for term in self.any_of))
            and not any(term in text for term in self.none_of)
        )


def parse_filter(pattern: str) -> Filter:
    """Read CloudWatch's pattern of terms; "" lets all through.

    Raises `InvalidInput` for its patterns over JSON, over columns and of regular expressions.
    """
    kinds: dict[str, list[str]] = {"": [], "?": [], "-": []}
    at, end = 0, len(pattern.rstrip())
    if pattern.strip()[:1] in ("{", "[", "%"):
        raise _unreadable(pattern, "is of a kind that is not known here")
    while at < end:
        found = _TERM.match(pattern, at)
        if found is None:
            raise _unreadable(pattern, f"cannot be read from character {at + 1} on")
        quoted = found["quoted"]
        term = found["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if term:
            kinds[found["sign"]].append(term)
        at = found.end()
    return Filter(tuple(kinds[""]), tuple(kinds["?"]), tuple(kinds["-"]))


def _unreadable(pattern: str, reason: str) -> errors.InvalidInput:
    remedy = 'use terms, "quoted phrases", ?either ?or and -without'
    return errors.InvalidInput("filterPattern", pattern, reason, remedy=remedy)
