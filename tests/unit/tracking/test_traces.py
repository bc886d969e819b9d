"""A trajectory as a trace."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tests import builders
from turnwise.domain.rollout import (
    Blame,
    Delivery,
    Fault,
    Policy,
    RolloutStatus,
    Trajectory,
)
from turnwise.tracking import traces
from turnwise.tracking.traces import is_traced, otlp, spans_of


def conversation(**changes: Any) -> Trajectory:
    """Two turns, with a tool called in between."""
    call = {
        "id": "call_a",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
    }
    (asked, said), first = builders.turn_with_nodes(
        0, policy=Policy(adapter_id="ad", policy_step=3)
    )
    (told, answered), second = builders.turn_with_nodes(1)
    said = replace(said, messages=({"role": "assistant", "content": "", "tool_calls": [call]},))
    told = replace(told, messages=({"role": "tool", "tool_call_id": "call_a", "content": "3"},))
    rollout = builders.rollout(
        status=RolloutStatus.REWARDED, rewards=(0.25, 0.5), ended_at=1004.0, row_index=5, step=2
    )
    return Trajectory(
        rollout=replace(rollout, **changes),
        nodes=(asked, said, told, answered),
        turns=(first, second),
    )


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """A span's attributes as they were given, JSON read."""

    def value(kept: dict[str, Any]) -> Any:
        if "intValue" in kept:
            return int(kept["intValue"])
        if "stringValue" in kept:
            text = kept["stringValue"]
            return json.loads(text) if text[:1] in "{[n" else text
        return next(iter(kept.values()))

    return {each["key"]: value(each["value"]) for each in span["attributes"]}


def test_a_rollout_is_a_root_with_a_span_per_turn_and_per_tool_call() -> None:
    spans = spans_of(builders.job(), conversation())
    assert [span["name"] for span in spans] == ["rollout", "turn 0", "turn 1", "add"]
    root = spans[0]
    assert "parentSpanId" not in root
    assert {span["parentSpanId"] for span in spans[1:]} == {root["spanId"]}
    assert len({span["spanId"] for span in spans}) == 4
    kinds = [attributes(span)["mlflow.spanType"] for span in spans]
    assert kinds == ["AGENT", "CHAT_MODEL", "CHAT_MODEL", "TOOL"]


def test_the_root_says_what_was_asked_what_was_said_and_the_reward() -> None:
    root = attributes(spans_of(builders.job(), conversation())[0])
    assert root["mlflow.spanInputs"]["messages"] == [{"role": "user", "content": "question 0"}]
    assert root["mlflow.spanOutputs"]["reward"] == 0.75
    assert root["mlflow.spanOutputs"]["reply"]["content"] == "answer 1"
    assert (root["turnwise.row"], root["turnwise.step"], root["turnwise.slot"]) == (5, 2, 0)
    assert root["mlflow.traceTag.turnwise.rollout_id"] == "rol_a"
    assert root["session.id"] == "grp_a"


def test_a_turn_has_its_messages_its_tokens_its_adapter_and_its_reward() -> None:
    _, first, second, _ = map(attributes, spans_of(builders.job(), conversation()))
    roles = [message["role"] for message in second["mlflow.spanInputs"]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert second["mlflow.spanOutputs"]["messages"][0]["content"] == "answer 1"
    assert first["mlflow.chat.tokenUsage"] == {
        "input_tokens": 3,
        "output_tokens": 2,
        "total_tokens": 5,
        "cache_read_input_tokens": 0,
    }
    assert (first["turnwise.adapter_id"], first["turnwise.policy_step"]) == ("ad", 3)
    assert (first["turnwise.reward"], second["turnwise.reward"]) == (0.25, 0.5)
    assert second["turnwise.adapter_id"] == "base"


def test_a_tool_has_its_arguments_its_result_and_the_time_between_two_turns() -> None:
    *_, tool = spans_of(builders.job(), conversation())
    said = attributes(tool)
    assert said["mlflow.spanInputs"] == {"a": 1, "b": 2}
    assert said["mlflow.spanOutputs"] == "3"
    times = [int(tool[f"{end}TimeUnixNano"]) / 1e9 for end in ("start", "end")]
    assert times == [1001.5, 1002.0]


def test_a_rollout_that_failed_before_its_first_turn_is_a_trace_with_the_reason() -> None:
    fault = Fault(blame=Blame.AGENT, code="unreachable", message="nobody answers")
    rollout = builders.rollout(status=RolloutStatus.FAILED, fault=fault, ended_at=1001.0)
    (root,) = spans_of(builders.job(), Trajectory(rollout=rollout))
    assert root["status"] == {"code": 2, "message": "nobody answers"}
    assert attributes(root)["turnwise.fault"] == "agent/unreachable"
    assert attributes(root)["mlflow.spanOutputs"]["reply"] is None


def test_a_reply_that_was_not_delivered_is_there_and_marked() -> None:
    found = conversation(rewards=(1.0,))
    lost = replace(found.turns[1], delivery=Delivery.UNDELIVERED)
    spans = spans_of(builders.job(), replace(found, turns=(found.turns[0], lost)))
    assert attributes(spans[2])["turnwise.delivery"] == "undelivered"


def test_the_same_rollout_has_the_same_ids_each_time() -> None:
    def ids(rollout_id: str) -> list[tuple[str, str]]:
        found = spans_of(builders.job(), conversation(rollout_id=rollout_id))
        return [(span["traceId"], span["spanId"]) for span in found]

    assert ids("rol_a") == ids("rol_a")
    assert not set(ids("rol_a")) & set(ids("rol_b"))


def test_a_long_conversation_keeps_its_newest_messages() -> None:
    found = conversation()
    old = tuple({"role": "user", "content": f"{n} " + "x" * 9000} for n in range(20))
    long = replace(found.nodes[0], messages=old)
    spans = spans_of(builders.job(), replace(found, nodes=(long, *found.nodes[1:])))
    shown = attributes(spans[2])["mlflow.spanInputs"]["messages"]
    assert "earlier messages not shown" in shown[0]["content"]
    assert shown[-1]["role"] == "tool"
    assert len(json.dumps(shown)) < traces.MAX_CHARS + 1000


def test_one_endless_message_is_cut() -> None:
    found = conversation()
    long = replace(found.nodes[0], messages=({"role": "user", "content": "y" * 100_000},))
    spans = spans_of(builders.job(), replace(found, nodes=(long, *found.nodes[1:])))
    (shown,) = attributes(spans[0])["mlflow.spanInputs"]["messages"]
    assert shown["content"].endswith(f"({100_000 - traces.MAX_MESSAGE_CHARS} more characters)")


def test_half_a_character_does_not_break_the_export() -> None:
    found = conversation()
    odd = replace(found.nodes[0], messages=({"role": "user", "content": "a\ud800b"},))
    body = otlp([spans_of(builders.job(), replace(found, nodes=(odd, *found.nodes[1:])))])
    (root, *_) = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert attributes(root)["mlflow.spanInputs"]["messages"][0]["content"] == "a?b"


def test_a_share_is_a_share() -> None:
    chosen = sum(is_traced(f"rollout_{n}", 0.1) for n in range(5000))
    assert 400 < chosen < 600
    both = [n for n in range(500) if is_traced(f"r{n}", 0.1) and not is_traced(f"r{n}", 0.2)]
    assert both == []  # a larger sample holds the smaller one
