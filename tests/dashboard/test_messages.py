import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.dashboard.rollouts.messages import MessageView, readable, view

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_a_readable_text_can_be_sent_and_hides_nothing(text: str):
    shown = readable(text)

    shown.encode()
    assert not set(shown) & set("\x00\x1b\r\u202e\u2066\u200b\ufeff\x7f\x85")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: anything
            for name in ("role", "content", "tool_calls", "reasoning_content", "name", "else")
        },
    )
)
def test_any_message_can_be_shown(message: dict[str, Any]):
    view(message).written.encode()


def test_a_message_is_told_in_parts():
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "open", "arguments": '{"valve":2}'},
    }
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "I open it."}, {"type": "image_url", "url": "x"}],
        "reasoning_content": "\nvalve 2\n",
        "tool_calls": [call],
        "refusal": None,
    }

    shown = view(message)

    assert (shown.role, shown.reasoning, shown.rest) == ("assistant", "valve 2", "")
    assert shown.text == 'I open it.\n{\n  "type": "image_url",\n  "url": "x"\n}'
    assert [(c.name, c.call_id, c.arguments) for c in shown.calls] == [
        ("open", "call_1", '{\n  "valve": 2\n}')
    ]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("{not json", "{not json"),
        ('{"a": "\\ud800"}', '{\n  "a": "\\ud800"\n}'),
        ({"a": 1}, '{\n  "a": 1\n}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_that_are_no_sound_json_are_shown_as_they_are(arguments: Any, shown: str):
    call = {"function": {"name": "f", "arguments": arguments}}

    assert view({"role": "assistant", "tool_calls": [call]}).calls[0].arguments == shown


def test_fields_that_no_chat_message_has_are_shown_too():
    shown: MessageView = view({"role": "tool", "tool_call_id": "c1", "content": "ok", "cost": 3})

    assert (shown.answers, json.loads(shown.rest)) == ("c1", {"cost": 3})
