"""OpenAI's messages in, tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.families import WEATHER
from turnwise.errors import InvalidInput
from turnwise.ports import Renderer

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'},
}


def test_text_parts_and_the_developer_role_render_as_text_and_system(
    renderers: Mapping[str, Renderer],
) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]
    qwen3 = renderers["qwen3"]
    tokens = qwen3.render(
        [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}], []
    )
    assert tokens.dtype == np.int32
    assert qwen3.decode(tokens) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello you<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_and_calls_reach_the_template_as_hugging_face_would_hand_them_over(
    renderers: Mapping[str, Renderer],
) -> None:
    qwen3 = renderers["qwen3"]
    text = qwen3.decode(
        qwen3.render(
            [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
            ],
            [WEATHER],
        )
    )
    assert '<tools>\n{"type": "function", "function": {"name": "get_weather", ' in text
    assert text.endswith(
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nRain.\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            {"role": "user", "content": [{"type": "text", "text": "See:"}, IMAGE]},
            "messages[1].content[1]: 'image_url' cannot be shown to this model; "
            'send parts of type "text" only',
        ),
        (
            {"role": "robot", "content": "Hi"},
            "messages[1].role: 'robot' is not a known role; "
            "use one of system, developer, user, assistant, tool",
        ),
        (
            {"role": "user", "content": None},
            "messages[1].content: None is not text; send a string or text parts",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a"}]},
            "messages[1].tool_calls[0]: {'id': 'a'} is not a function call with a name",
        ),
        (
            {"role": "assistant", "tool_calls": "none"},
            "messages[1].tool_calls: 'none' is not a list",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(
    renderers: Mapping[str, Renderer], message: Mapping[str, Any], error: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        renderers["qwen3"].render([{"role": "user", "content": "Hi"}, message], [])
    assert str(caught.value) == error


def test_an_empty_conversation_is_refused(renderers: Mapping[str, Renderer]) -> None:
    with pytest.raises(InvalidInput, match=r"messages: \[\] is empty; send at least one message"):
        renderers["qwen3"].render([], [])


def test_what_a_template_cannot_express_is_refused_with_its_reason(
    renderers: Mapping[str, Renderer],
) -> None:
    two = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    with pytest.raises(InvalidInput, match="only supports a single tool call"):
        renderers["llama-3"].render([{"role": "user", "content": "Hi"}, two], [WEATHER])


def test_half_a_surrogate_pair_is_refused(renderers: Mapping[str, Renderer]) -> None:
    with pytest.raises(InvalidInput, match="do not fit the model's chat template"):
        renderers["qwen3"].render([{"role": "user", "content": "\ud800"}], [])
