from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.gateway.kit import assistant, call, ids, tool, user
from turnwise.domain.rollout import ForkCause, Message, Node, NodeKind
from turnwise.gateway.graph import Graph, Match, path_sha256, same_message, tools_sha256, turn_seed

SYSTEM = {"role": "system", "content": "be brief"}


def a_graph(*turns: tuple[int | None, list[Message], Message], tools: str = "") -> Graph:
    """Turns as (completion they extend, new messages, reply); nodes 2i and 2i + 1."""
    graph = Graph()
    for parent, messages, reply in turns:
        at = len(graph.nodes)
        graph.add(
            Node(
                node_id=at,
                parent=parent,
                kind=NodeKind.PROMPT,
                messages=tuple(messages),
                tokens=ids(f"p{at}"),
                tools_sha256=tools if parent is None else "",
            )
        )
        graph.add(
            Node(
                node_id=at + 1,
                parent=at,
                kind=NodeKind.COMPLETION,
                messages=(reply,),
                tokens=ids(f"c{at}"),
            )
        )
    return graph


def two_turns() -> Graph:
    """system, u1 -> a1 -> tool t1 -> a2"""
    return a_graph(
        (None, [SYSTEM, user("u1")], assistant("a1")), (1, [tool("t1")], assistant("a2"))
    )


def test_the_first_request_is_a_root_without_a_cause():
    assert Graph().match([user("hi")], "") == Match(completion=None, new=(user("hi"),))


def test_few_shot_examples_in_a_first_request_are_no_fork():
    shots = [user("1+1"), assistant("2"), user("2+2")]
    assert Graph().match(shots, "") == Match(completion=None, new=tuple(shots))


def test_a_request_extends_the_deepest_completion_on_its_path():
    sent = [SYSTEM, user("u1"), assistant("a1"), tool("t1"), assistant("a2"), user("u2")]
    assert two_turns().match(sent, "") == Match(completion=3, new=(user("u2"),))


def test_a_second_branch_extends_the_earlier_completion_without_a_cause():
    sent = [SYSTEM, user("u1"), assistant("a1"), tool("another result")]
    assert two_turns().match(sent, "") == Match(completion=1, new=(tool("another result"),))


def test_the_same_request_again_finds_its_prompt():
    sent = [SYSTEM, user("u1"), assistant("a1"), tool("t1")]
    assert two_turns().match(sent, "") == Match(completion=1, new=(tool("t1"),), prompt=2)


def test_another_conversation_of_the_same_rollout_is_independent():
    sent = [SYSTEM, user("sub-task"), assistant("an example"), user("go")]
    assert two_turns().match(sent, "") == Match(completion=None, new=tuple(sent))


def test_an_undelivered_reply_is_not_extended():
    graph = two_turns()
    graph.conceal(3)
    sent = [SYSTEM, user("u1"), assistant("a1"), tool("t1"), assistant("a2"), user("u2")]
    assert graph.match(sent, "").completion == 1


FORKS = [
    (
        "an edited reply",
        [SYSTEM, user("u1"), assistant("a1, edited"), tool("t1")],
        ForkCause.EDITED_ASSISTANT,
    ),
    (
        "an edited second reply",
        [SYSTEM, user("u1"), assistant("a1"), tool("t1"), assistant("edited"), user("u2")],
        ForkCause.EDITED_ASSISTANT,
    ),
    (
        "an injected reply",
        [SYSTEM, user("u1"), assistant("a1"), tool("t1"), assistant("a2"), assistant("mine")],
        ForkCause.EDITED_ASSISTANT,
    ),
    (
        "another system prompt",
        [{"role": "system", "content": "be long"}, user("u1"), assistant("a1"), tool("t1")],
        ForkCause.REWRITTEN_HISTORY,
    ),
    (
        "a rewritten tool result before a reply",
        [SYSTEM, user("u1"), assistant("a1"), tool("T1"), assistant("a2"), user("u2")],
        ForkCause.REWRITTEN_HISTORY,
    ),
    (
        "dropped first messages",
        [user("u1"), assistant("a1"), tool("t1"), assistant("a2"), user("u2")],
        ForkCause.TRUNCATED,
    ),
    (
        "a dropped turn in the middle",
        [SYSTEM, user("u1"), assistant("a2"), user("u2")],
        ForkCause.TRUNCATED,
    ),
]


@pytest.mark.parametrize(("sent", "cause"), [f[1:] for f in FORKS], ids=[f[0] for f in FORKS])
def test_what_the_agent_changed_is_the_cause(sent: list[Message], cause: ForkCause):
    assert two_turns().match(sent, "").cause is cause


def test_other_tools_are_rewritten_history():
    graph = a_graph((None, [user("u1")], assistant("a1")), tools=tools_sha256([{"a": 1}]))
    sent = [user("u1"), assistant("a1"), user("u2")]
    assert graph.match(sent, tools_sha256([{"a": 2}])) == Match(
        completion=None, new=tuple(sent), cause=ForkCause.REWRITTEN_HISTORY
    )


def test_the_history_of_a_fork_root_is_matched_too():
    graph = two_turns()
    forked = [SYSTEM, user("u1"), assistant("edited"), tool("t1")]
    at = len(graph.nodes)
    graph.add(
        Node(node_id=at, parent=None, kind=NodeKind.PROMPT, messages=tuple(forked), tokens=ids("f"))
    )
    graph.add(
        Node(
            node_id=at + 1,
            parent=at,
            kind=NodeKind.COMPLETION,
            messages=(assistant("a3"),),
            tokens=ids("g"),
        )
    )
    sent = [*forked, assistant("a3"), user("u3")]
    assert graph.match(sent, "") == Match(completion=at + 1, new=(user("u3"),))
    assert graph.match(forked[:3], "").cause is ForkCause.TRUNCATED


SAME = [
    (assistant("hi"), assistant(" hi \n")),
    (assistant(None, tool_calls=[call("f", "{}")]), assistant("", tool_calls=[call("f", "")])),
    (assistant("hi"), assistant([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}])),
    (assistant("hi", reasoning_content="why"), assistant("hi")),
    (assistant("hi", reasoning_content="why"), assistant("hi", reasoning="why ")),
    (assistant("hi"), assistant("hi", refusal=None, audio=None, annotations=[], tool_calls=[])),
    (
        assistant(None, tool_calls=[call("f", '{"a": 1.0, "b": [2]}')]),
        assistant(None, tool_calls=[call("f", '{"b":[2],"a":1}') | {"id": "other"}]),
    ),
    (user("hi"), user("hi") | {"name": None}),
]

DIFFERENT = [
    (assistant("hi"), assistant("ho")),
    (assistant("hi"), user("hi")),
    (assistant("hi", reasoning_content="why"), assistant("hi", reasoning_content="because")),
    (assistant(None, tool_calls=[call("f", '{"a": 1}')]), assistant(None)),
    (
        assistant(None, tool_calls=[call("f", '{"a": 1}')]),
        assistant(None, tool_calls=[call("f", '{"a": true}')]),
    ),
    (
        assistant(None, tool_calls=[call("f", "not json")]),
        assistant(None, tool_calls=[call("f", "{}")]),
    ),
    (
        assistant(None, tool_calls=[call("f", "{}")]),
        assistant(None, tool_calls=[call("f", "[" * 100_000)]),
    ),
    (user("hi"), user("hi ")),
    (tool("hi", "call_1"), tool("hi", "call_2")),
]


@pytest.mark.parametrize(("known", "sent"), SAME)
def test_messages_that_mean_the_same(known: Message, sent: Message):
    assert same_message(known, sent)


@pytest.mark.parametrize(("known", "sent"), DIFFERENT)
def test_messages_that_do_not(known: Message, sent: Message):
    assert not same_message(known, sent)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), VALUES), st.sampled_from([None, 1, 4]), st.booleans())
def test_arguments_may_be_written_again_by_any_json_writer(
    arguments: dict[str, Any], indent: int | None, ascii_only: bool
):
    again = json.dumps(dict(reversed(arguments.items())), indent=indent, ensure_ascii=ascii_only)
    known = assistant(None, tool_calls=[call("f", json.dumps(arguments))])
    assert same_message(known, assistant("", tool_calls=[call("f", again)]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_an_agent_that_only_appends_extends_its_last_reply(turns: list[int]):
    graph, history, parent = Graph(), [], None
    for index, size in enumerate(turns):
        new = [tool(f"{index}.{i}") for i in range(size)] + [user(f"u{index}")]
        history += new
        found = graph.match(history, "")
        assert found == Match(completion=parent, new=tuple(new))
        prompt = Node(
            node_id=2 * index,
            parent=parent,
            kind=NodeKind.PROMPT,
            messages=found.new,
            tokens=ids("p"),
        )
        reply = assistant(f"a{index}")
        said = Node(
            node_id=2 * index + 1,
            parent=2 * index,
            kind=NodeKind.COMPLETION,
            messages=(reply,),
            tokens=ids("c"),
        )
        graph.add(prompt)
        graph.add(said)
        history.append(reply)
        parent = said.node_id


def test_nodes_come_in_order():
    node = Node(node_id=1, parent=None, kind=NodeKind.PROMPT, messages=(), tokens=ids(""))
    with pytest.raises(ValueError, match="node 1 added where 0 is next"):
        Graph().add(node)


def test_a_path_holds_every_token_from_the_root():
    assert np.array_equal(two_turns().path_tokens(3), ids("p0c0p2c2"))


def test_turn_seeds_differ_by_place_prompt_repetition_and_wish():
    place, path = (7, "train", 0, 1, 2, 0), path_sha256(ids("hi"))
    seeds = {
        turn_seed(place, path, 0, None),
        turn_seed((7, "train", 0, 1, 3, 0), path, 0, None),
        turn_seed(place, path_sha256(ids("ho")), 0, None),
        turn_seed(place, path, 1, None),
        turn_seed(place, path, 0, 5),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert turn_seed(place, path, 0, None) in seeds
