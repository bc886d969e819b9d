from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.rl.graphs import Graph, chain
from turnwise.domain import metrics
from turnwise.domain.rollout import Delivery, Trajectory
from turnwise.rl.conduct import conduct_metrics, conversation, last_words_match, tool_calls


def call(name: str, arguments: Any = '{"id": 7}') -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def saying(*messages: dict[str, Any], **rollout: Any) -> Trajectory:
    """A rollout whose n-th reply is the n-th message."""
    plain = chain(len(messages), **rollout)
    nodes = list(plain.nodes)
    for turn, message in zip(plain.turns, messages, strict=True):
        nodes[turn.leaf] = replace(nodes[turn.leaf], messages=({"role": "assistant", **message},))
    return replace(plain, nodes=tuple(nodes))


def test_tool_calls_are_counted_by_name_and_by_whether_their_arguments_can_be_read() -> None:
    found = conduct_metrics(
        [
            saying({"tool_calls": [call("look"), call("note", "{bad")]}, {"content": "done"}),
            saying({"tool_calls": [call("look", '["a list"]')]}),
        ],
        prefix="eval",
    )

    metrics.check(found)
    assert found == {
        "eval/tools/calls_mean": 1.5,
        "eval/tools/valid_arguments_frac": pytest.approx(1 / 3),
        "eval/tools/by_name/look/calls_mean": 1.0,
        "eval/tools/by_name/note/calls_mean": 0.5,
    }


def test_calls_in_a_reply_that_the_agent_never_got_are_not_counted() -> None:
    graph = Graph()
    graph.turn(None, delivery=Delivery.UNDELIVERED)
    lost = graph.trajectory()
    node = replace(lost.nodes[1], messages=({"role": "assistant", "tool_calls": [call("look")]},))

    assert list(tool_calls(replace(lost, nodes=(lost.nodes[0], node)))) == []


def test_tools_that_the_model_made_up_cannot_flood_the_metrics() -> None:
    made_up = saying({"tool_calls": [call(f"tool {n}/x") for n in range(80)]})
    found = conduct_metrics([made_up], prefix="eval")

    metrics.check(found)
    names = [name for name in found if "by_name" in name]
    assert len(names) == 50
    assert "eval/tools/by_name/tool_0_x/calls_mean" in names


def test_rollouts_that_used_up_the_agents_turns_are_a_share() -> None:
    found = conduct_metrics([chain(2), chain(3), chain(5)], prefix="eval", max_turns=3)

    assert found == {"eval/turns/at_limit_frac": pytest.approx(2 / 3)}


def test_the_format_is_looked_for_in_the_last_reply_alone() -> None:
    right = saying({"content": "hm"}, {"content": "so\n<answer>7</answer>"})
    early = saying({"content": "<answer>7</answer>"}, {"content": "or not"})
    parts = saying({"content": [{"type": "text", "text": "<answer>1"}, {"text": "</answer>"}]})
    silent = saying({"content": None, "tool_calls": [call("look")]})
    pattern = r"<answer>\d</answer>$"

    assert [last_words_match(t, pattern) for t in (right, early, parts, silent, chain(0))] == [
        *(True, False, True, False, False),
    ]
    found = conduct_metrics([right, early], prefix="eval", pattern=pattern)
    assert found["eval/format/match_frac"] == 0.5


def test_a_conversation_is_the_way_to_the_last_delivered_reply() -> None:
    graph = Graph()
    first = graph.turn(None)
    graph.turn(first, delivery=Delivery.UNDELIVERED)
    graph.turn(None)  # the agent began anew

    said = [message["content"] for message in conversation(graph.trajectory())]
    assert said == ["question 2", "answer 2"]


def test_arguments_of_any_kind_are_borne() -> None:
    deep = "[" * 100_000
    odd = saying({"tool_calls": [call("a", None), call("b", {}), call("c", deep), {"x": 1}]})

    assert list(tool_calls(odd)) == [("a", False), ("b", True), ("c", False), ("", False)]
    json.dumps(conduct_metrics([odd], prefix="eval"))


def test_nothing_scored_gives_no_figures() -> None:
    assert conduct_metrics([], prefix="eval", max_turns=3, pattern="x") == {}
