"""Eval-protocol's rows: ours written for it, its scored ones read. Pure; contract §4."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from turnwise import errors
from turnwise.domain.rollout import SamplingParams
from turnwise.evaluators.joining import Scored

#: Status codes of a row that is no error: OK, finished, and a score that does not count.
OK, FINISHED, SCORE_INVALID = 0, 100, 102

#: The code of a rollout that its own server calls an error.
INTERNAL = 13

#: The names of other errors.
CODES = {
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
    101: "RUNNING",
    103: "RESPONSE_QUALITY_ERROR",
}

#: Most steps of a result that are told.
MAX_STEPS = 100

#: What an earlier run left in a row; ids of another rollout would mislead.
_STALE = ("execution_metadata", "rollout_status", "evaluation_result", "eval_metadata", "pid")

#: The model as eval-protocol must name it: only under this provider does litellm keep
#: `choices[].raw_output`, which a row is joined to its rollout by.
MODEL = "fireworks_ai/default"

#: An upper bound for texts that come from an evaluator.
MAX_TEXT = 8192

#: Metrics of one row that are kept: each becomes a curve of the job.
MAX_METRICS = 100


def row_for(fields: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """A dataset's record as an EvaluationRow; one without messages asks its prompt."""
    row = {name: value for name, value in fields.items() if name not in _STALE}
    if not row.get("messages"):
        row["messages"] = [{"role": "user", "content": prompt}]
    return row


def completion_params(
    base_url: str, sampling: SamplingParams, extra_body: Mapping[str, Any]
) -> dict[str, Any]:
    """What `--ep-completion-params` sets."""
    body = dict(extra_body)
    if sampling.top_k:
        body.setdefault("top_k", sampling.top_k)
    return {
        "model": MODEL,
        "api_base": base_url,
        "api_key": "not-needed",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "raw_output": True,
        "extra_body": body,
    }


def read_row(line: str) -> Scored:
    """A scored row. Raises `InvalidInput` for what is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidInput("row", line[:60], f"is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise errors.InvalidInput("row", line[:60], "must be an object")
    result, ran = _object(row, "evaluation_result"), _object(row, "execution_metadata")
    status = _object(row, "rollout_status")
    code = status.get("code", FINISHED)
    metrics, reasons = _metrics(_object(result, "metrics"))
    is_error = isinstance(code, int) and code not in (OK, FINISHED, SCORE_INVALID)
    return Scored(
        score=_number(result.get("score")),
        is_valid=result.get("is_score_valid", True) is not False and code != SCORE_INVALID,
        reason=_text(result.get("reason") or result.get("error")) or "; ".join(reasons)[:MAX_TEXT],
        steps=_steps(result.get("step_outputs")),
        metrics=metrics,
        problem=_problem(code, _text(status.get("message"))) if is_error else "",
        status=code if isinstance(code, int) else FINISHED,
        turn_ids=_turn_ids(_object(ran, "raw_output")),
        call_ids=_call_ids(row.get("messages")),
        their_id=_text(ran.get("rollout_id")),
    )


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _turn_ids(raw_output: Mapping[str, Any]) -> tuple[str, ...]:
    turn_id = raw_output.get("turn_id")
    return (turn_id,) if isinstance(turn_id, str) else ()


def _call_ids(messages: Any) -> tuple[str, ...]:
    return tuple(
        call["id"]
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict)
        for call in message.get("tool_calls") or ()
        if isinstance(call, dict) and isinstance(call.get("id"), str)
    )


def _metrics(given: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The scores of a result's metrics that count, and their reasons."""
    numbers: dict[str, float] = {}
    reasons: list[str] = []
    for name, metric in given.items():
        if not isinstance(metric, Mapping):
            continue
        score = _number(metric.get("score"))
        is_counted = score is not None and metric.get("is_score_valid", True) is not False
        if score is not None and is_counted and len(numbers) < MAX_METRICS:
            numbers[_text(name)] = score
        if len(reasons) < MAX_METRICS and (reason := _text(metric.get("reason"))):
            reasons.append(f"{name}: {reason}")
    return numbers, reasons


def _steps(given: Any) -> tuple[str, ...]:
    """What a result says of each step."""
    steps = [step for step in given if isinstance(step, Mapping)] if isinstance(given, list) else []
    return tuple(map(_step, steps[:MAX_STEPS]))


def _step(step: Mapping[str, Any]) -> str:
    reward = _number(step.get("base_reward"))
    worth = "no reward" if reward is None else f"{reward:g}"
    said = _text(step.get("reason"))
    return f"step {_text(str(step.get('step_index')))}: {worth}" + (f", {said}" if said else "")


def _problem(code: int, message: str) -> str:
    """An error's message, with the code's name where that says more than that it is one."""
    name = "" if code == INTERNAL else CODES.get(code, f"status {code}")
    return ": ".join(filter(None, (name, message))) or "INTERNAL"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """Text that can be stored, of bounded length."""
    if not isinstance(value, str):
        return ""
    return value[:MAX_TEXT].replace("\0", "").encode("utf-8", "replace").decode()
