"""A trajectory as one OpenTelemetry trace: a root, a span per turn, a span per tool call. Pure.

    rollout           AGENT       prompt -> last reply and reward
      turn 0          CHAT_MODEL  messages -> reply, tokens, the adapter that answered
      calculator      TOOL        arguments -> result, from the reply to the next call
      turn 1          CHAT_MODEL

The ids come from the rollout's, so that a trace that is sent twice is one trace. The encoding is
OTLP's JSON; attributes that begin with `mlflow.` are those that MLflow shows as its own.
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise.domain.job import Job
from turnwise.domain.rollout import Message, Rollout, Trajectory, Turn

Json = dict[str, Any]

#: What traces are searched by. Each costs MLflow as much as a span does.
_TAGS = ("rollout_id", "purpose", "step", "row", "reward")

#: Longest text of a span's messages; of longer ones the oldest are left out.
MAX_CHARS = 64_000
#: Longest text of one message.
MAX_MESSAGE_CHARS = 16_000

_OK, _ERROR = 1, 2


def is_traced(rollout_id: str, share: float) -> bool:
    """Whether a rollout is in a sample of that share. Depends on its id alone.

    >>> is_traced("rollout_a", 1.0), is_traced("rollout_a", 0.0)
    (True, False)
    """
    first = int.from_bytes(hashlib.sha256(rollout_id.encode()).digest()[:4])
    return first < share * 2**32


def otlp(traces: Sequence[Sequence[Json]]) -> bytes:
    """One export request with the spans of these traces."""
    spans = [span for trace in traces for span in trace]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()


def spans_of(job: Job, trajectory: Trajectory) -> list[Json]:
    """A trajectory's spans, the root first."""
    rollout = trajectory.rollout
    turns = [_turn_span(job, trajectory, turn) for turn in trajectory.turns]
    return [_root(job, trajectory), *turns, *_tool_spans(rollout, trajectory)]


def _root(job: Job, trajectory: Trajectory) -> Json:
    rollout = trajectory.rollout
    reply = _reply(trajectory, trajectory.delivered[-1]) if trajectory.delivered else None
    asked = _asked(trajectory, trajectory.turns[0]) if trajectory.turns else ()
    outputs = {"reward": rollout.reward, "status": rollout.status.value, "reply": reply}
    labels: Json = {
        "job": job.name,
        "rollout_id": rollout.rollout_id,
        "group_id": rollout.group_id,
        "purpose": rollout.purpose.value,
        "step": rollout.step,
        "row": rollout.row_index,
        "slot": rollout.slot,
        "attempt": rollout.attempt,
        "status": rollout.status.value,
    }
    if rollout.reward is not None:
        labels["reward"] = rollout.reward
    if rollout.fault is not None:
        labels["fault"] = f"{rollout.fault.blame.value}/{rollout.fault.code}"
    attributes: Json = {
        "mlflow.spanType": "AGENT",
        "mlflow.spanInputs": {"row": rollout.row_index, "messages": _shortened(asked)},
        "mlflow.spanOutputs": outputs,
        "session.id": rollout.group_id,
        "turnwise.rewards": list(rollout.rewards or ()),
        "turnwise.metrics": dict(rollout.metrics),
    }
    attributes |= {f"turnwise.{name}": value for name, value in labels.items()}
    attributes |= {
        f"mlflow.traceTag.turnwise.{name}": str(labels[name]) for name in _TAGS if name in labels
    }
    ends = [turn.ended_at for turn in trajectory.turns]
    end = rollout.ended_at or max(ends, default=rollout.created_at)
    status: Json = {"code": _OK}
    if rollout.fault is not None:
        status = {"code": _ERROR, "message": rollout.fault.message}
    return _span(rollout, 0, "rollout", rollout.created_at, end, attributes, status=status)


def _turn_span(job: Job, trajectory: Trajectory, turn: Turn) -> Json:
    usage = {
        "input_tokens": turn.prompt_tokens,
        "output_tokens": turn.completion_tokens,
        "total_tokens": turn.prompt_tokens + turn.completion_tokens,
        "cache_read_input_tokens": turn.cached_tokens,
    }
    attributes = {
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": {"messages": _shortened(_asked(trajectory, turn))},
        "mlflow.spanOutputs": {"messages": _shortened([_reply(trajectory, turn)])},
        "mlflow.chat.tokenUsage": usage,
        "mlflow.llm.model": Path(job.spec.model).name,
        "turnwise.turn": turn.index,
        "turnwise.turn_id": turn.turn_id,
        "turnwise.adapter_id": turn.policy.adapter_id or "base",
        "turnwise.policy_step": turn.policy.policy_step,
        "turnwise.finish_reason": turn.finish_reason.value,
        "turnwise.delivery": turn.delivery.value,
        "turnwise.temperature": turn.sampling.temperature,
        "turnwise.logprob_mean": _mean_logprob(trajectory, turn),
    }
    rewards = trajectory.rollout.rewards or ()
    at = (
        [each.turn_id for each in trajectory.delivered].index(turn.turn_id)
        if turn.is_delivered
        else -1
    )
    if len(rewards) > 1 and 0 <= at < len(rewards):
        attributes["turnwise.reward"] = rewards[at]
    name = f"turn {turn.index}"
    place = 1 + turn.index
    return _span(
        trajectory.rollout, place, name, turn.started_at, turn.ended_at, attributes, parent=0
    )


def _tool_spans(rollout: Rollout, trajectory: Trajectory) -> Iterator[Json]:
    """The tools that replies called, with what a later prompt says of their results."""
    results = {
        message["tool_call_id"]: message.get("content")
        for node in trajectory.nodes
        for message in node.messages
        if message.get("role") == "tool" and isinstance(message.get("tool_call_id"), str)
    }
    place = 1 + len(trajectory.turns)
    for turn, following in zip(
        trajectory.delivered, [*trajectory.delivered[1:], None], strict=False
    ):
        end = following.started_at if following is not None else turn.ended_at
        for call in _reply(trajectory, turn).get("tool_calls") or ():
            function = call.get("function") or {}
            attributes = {
                "mlflow.spanType": "TOOL",
                "mlflow.spanInputs": _parsed(function.get("arguments")),
                "mlflow.spanOutputs": results.get(call.get("id")),
                "turnwise.turn": turn.index,
            }
            name = str(function.get("name") or "tool")
            yield _span(rollout, place, name, turn.ended_at, end, attributes, parent=0)
            place += 1


def _span(
    rollout: Rollout,
    place: int,
    name: str,
    start: float,
    end: float,
    attributes: Mapping[str, Any],
    *,
    parent: int | None = None,
    status: Mapping[str, Any] | None = None,
) -> Json:
    span = {
        "traceId": hashlib.sha256(rollout.rollout_id.encode()).hexdigest()[:32],
        "spanId": _span_id(rollout, place),
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(_nanoseconds(start)),
        "endTimeUnixNano": str(_nanoseconds(max(start, end))),
        "attributes": [_attribute(key, value) for key, value in attributes.items()],
        "status": status or {"code": _OK},
    }
    if parent is not None:
        span["parentSpanId"] = _span_id(rollout, parent)
    return span


def _span_id(rollout: Rollout, place: int) -> str:
    return hashlib.sha256(f"{rollout.rollout_id}/{place}".encode()).hexdigest()[:16]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e6) * 1000


def _attribute(key: str, value: Any) -> Json:
    """Text as it is, numbers as numbers, and what has parts as JSON text."""
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return {"key": key, "value": {"stringValue": _whole(text)}}


def _whole(text: str) -> str:
    """Text that UTF-8 can write: JSON can spell half a character."""
    return text.encode("utf-8", "replace").decode()


def _asked(trajectory: Trajectory, turn: Turn) -> list[Message]:
    """All messages that the model had before it spoke."""
    return [m for node in trajectory.path(turn.leaf)[:-1] for m in node.messages]


def _reply(trajectory: Trajectory, turn: Turn) -> Message:
    messages = trajectory.nodes[turn.leaf].messages
    return messages[-1] if messages else {"role": "assistant", "content": ""}


def _mean_logprob(trajectory: Trajectory, turn: Turn) -> float:
    logprobs = trajectory.nodes[turn.leaf].logprobs
    return float(logprobs.mean()) if logprobs is not None and len(logprobs) else 0.0


def _shortened(messages: Sequence[Message]) -> list[Message]:
    """The newest messages that fit, long ones cut; a first one says how many are left out."""
    kept: list[Message] = []
    room = MAX_CHARS
    for message in reversed(messages):
        short = _cut(message)
        room -= len(json.dumps(short, default=str))
        if room < 0 and kept:
            left = len(messages) - len(kept)
            kept.append({"role": "system", "content": f"({left} earlier messages not shown)"})
            break
        kept.append(short)
    return kept[::-1]


def _cut(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, str) and len(content) > MAX_MESSAGE_CHARS:
        more = len(content) - MAX_MESSAGE_CHARS
        return {**message, "content": f"{content[:MAX_MESSAGE_CHARS]} ... ({more} more characters)"}
    return message


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
