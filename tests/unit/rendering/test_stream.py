"""The joined stream is the whole reply, for every family and every cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.families import FAMILIES, WEATHER
from turnwise.domain.rollout import Message, Tokens
from turnwise.ports import Renderer
from turnwise.rendering.stream import join
from turnwise.rendering.tokenizer import Tokenizer

ASK = ({"role": "user", "content": "How is the weather?"},)
ANY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

words = st.text(st.sampled_from("ab Zé🙂\n漢\ufffd<think/>{}\"'") | st.characters(), max_size=12)
cities = st.sampled_from(["Paris", "São Paulo", "北京", "Zürich 🙂"])


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
    return np.asarray(tokenizer.encode(text), np.int32)


def loaded(folders: Mapping[str, Path], family: str) -> Tokenizer:
    return Tokenizer.load(folders[family])


def said(family: str, reasoning: str = "", content: str = "", cities: Sequence[str] = ()) -> str:
    """A well-formed reply as the family's model samples it, without its end token."""
    it = FAMILIES[family]
    opening = "" if it.prefilled else "<think>\n"
    think = f"{opening}{reasoning}\n</think>\n\n" if reasoning or it.prefilled else ""
    return think + content + "".join(it.call.format(city=city) for city in cities)


def message(renderer: Renderer, prompt: Tokens, pieces: Sequence[Tokens]) -> Message:
    reader = renderer.stream(prompt, [WEATHER])
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    return join([*deltas, *reader.finish()])


@st.composite
def wild_completions(draw: st.DrawFn, family: str, tokenizer: Tokenizer) -> Tokens:
    """Text, marks in any order, whole and broken calls, any token at all; cut anywhere."""
    it = FAMILIES[family]
    call = cities.map(lambda city: it.call.format(city=city))
    piece = st.one_of(
        words,
        st.sampled_from([*it.special, "<think>", "</think>", "{", " \n", "</thi", "nk>"]),
        call,
        call.map(lambda text: text.replace('"', "").replace("city", "", 1)),
        call.map(lambda text: text[: len(text) // 2]),
        st.just(it.end),
    )
    ids: list[int] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            text = draw(piece).encode("utf-8", "replace").decode()
            ids += tokenizer.encode(text)
        else:
            ids += draw(st.lists(st.integers(0, 560), max_size=6))
    return np.asarray(ids[: draw(st.integers(0, len(ids)))], np.int32)


@ANY_FAMILY
@QUICK
@given(data=st.data())
def test_the_joined_stream_equals_the_whole_reply_however_it_is_cut(
    renderers: Mapping[str, Renderer],
    folders: Mapping[str, Path],
    family: str,
    data: st.DataObject,
) -> None:
    renderer = renderers[family]
    prompt = renderer.render(ASK, [WEATHER])
    completion = data.draw(wild_completions(family, loaded(folders, family)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(completion)), max_size=5)))
    pieces = np.split(completion, cuts)
    whole = renderer.parse(prompt, completion, [WEATHER])
    assert message(renderer, prompt, pieces) == whole.message
    assert message(renderer, prompt, np.split(completion, len(completion) or 1)) == whole.message
    assert whole.has_tool_calls == ("tool_calls" in whole.message)
    json.dumps(whole.message).encode()


@ANY_FAMILY
@QUICK
@given(
    reasoning=st.sampled_from(["", "Let me see.", "漢字 🙂\n\nthen so"]),
    content=st.sampled_from(["", "Here it is", "Voilà:\n\n- ça 🙂"]),
    cities=st.lists(cities, max_size=2),
    ended=st.booleans(),
)
def test_a_well_formed_reply_is_read_as_what_was_said(
    renderers: Mapping[str, Renderer],
    folders: Mapping[str, Path],
    family: str,
    reasoning: str,
    content: str,
    cities: list[str],
    ended: bool,
) -> None:
    it = FAMILIES[family]
    if not it.thinks:
        reasoning, content, cities = "", "" if cities else content, cities[:1]
    text = said(family, reasoning, content, cities) + (it.end if ended else "")
    renderer = renderers[family]
    prompt = renderer.render(ASK, [WEATHER])
    parsed = renderer.parse(prompt, encode(loaded(folders, family), text), [WEATHER])
    calls = parsed.message.get("tool_calls", [])
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": json.dumps({"city": city}, ensure_ascii=False)}
        for city in cities
    ]
    assert len({call["id"] for call in calls}) == len(cities)
    assert (parsed.message["content"] or "") == content
    assert parsed.message.get("reasoning_content", "") == reasoning


@ANY_FAMILY
def test_text_goes_out_as_it_is_sampled(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path], family: str
) -> None:
    renderer, tokenizer = renderers[family], loaded(folders, family)
    prompt = renderer.render(ASK, [])
    reader = renderer.stream(prompt, [])
    before = said(family)
    reader.feed(encode(tokenizer, before))
    text, sent = "It rains in Zürich 🙂 and 3 cities more.", ""
    for n, token in enumerate(encode(tokenizer, text)):
        sent += "".join(d.get("content", "") for d in reader.feed(np.asarray([token], np.int32)))
        assert sent == tokenizer.decode(tokenizer.encode(text)[: n + 1]).rstrip("\ufffd").rstrip()


def test_half_a_mark_that_is_written_out_is_held_back(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    renderer, tokenizer = renderers["deepseek-v3"], loaded(folders, "deepseek-v3")
    reader = renderer.stream(renderer.render(ASK, []), [])
    steps = ["<thi", "nk>so</", "think", "> 1 <", "2"]
    assert [[dict(d) for d in reader.feed(encode(tokenizer, step))] for step in steps] == [
        [],
        [{"reasoning_content": "so"}],
        [],
        [{"content": "1"}],
        [{"content": " <2"}],
    ]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama-3"])
def test_a_tool_call_goes_out_when_its_block_closes(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path], family: str
) -> None:
    renderer = renderers[family]
    reader = renderer.stream(renderer.render(ASK, [WEATHER]), [WEATHER])
    deltas = reader.feed(
        encode(loaded(folders, family), said(family, "Hm.", "Look: ", ["Paris", "Rome"]))
    )
    assert [list(delta) for delta in deltas] == [
        ["reasoning_content"],
        ["content"],
        ["tool_calls"],
        ["tool_calls"],
    ]
    assert [d["tool_calls"][0]["index"] for d in deltas[2:]] == [0, 1]
    assert deltas[2]["tool_calls"][0]["id"] != deltas[3]["tool_calls"][0]["id"]


def read(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path], family: str, text: str
) -> Message:
    renderer = renderers[family]
    completion = encode(loaded(folders, family), text)
    return renderer.parse(renderer.render(ASK, [WEATHER]), completion, [WEATHER]).message


@pytest.mark.parametrize(
    "broken",
    [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": }}\n</tool_call>',
        '<tool_call>\n{"arguments": {"city": "Paris"}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": "\\ud800"}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}\n</tool_call>",
        "<tool_call>\n" + "[" * 5000 + "\n</tool_call>",
        '<tool_call>\n{"name": "get_weather", "argum',
    ],
    ids=lambda text: text[12:50],
)
def test_a_call_that_cannot_be_read_stays_in_the_content(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path], broken: str
) -> None:
    assert read(renderers, folders, "qwen3", f"Look:\n{broken}") == {
        "role": "assistant",
        "content": f"Look:\n{broken}",
    }


def test_good_calls_beside_a_broken_one_are_still_calls(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    good = FAMILIES["qwen3"].call.format(city="Paris")
    found = read(renderers, folders, "qwen3", f"{good}\n<tool_call>\n{{\n</tool_call>\n{good}\nso.")
    assert found["content"] == "<tool_call>\n{\n</tool_call>\n\nso."
    assert len(found["tool_calls"]) == 2


def test_a_call_drafted_while_thinking_is_not_made(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    call = FAMILIES["qwen3"].call.format(city="Paris")
    assert read(renderers, folders, "qwen3", f"<think>\nIf {call} then</think>No.") == {
        "role": "assistant",
        "content": "No.",
        "reasoning_content": f"If {call} then",
    }


def test_a_call_ends_reasoning_that_is_never_closed(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    call = FAMILIES["qwen3"].call.format(city="Paris")
    found = read(renderers, folders, "qwen3", f"<think>\nI look it up.\n{call}<|im_end|>")
    assert (found["content"], found["reasoning_content"]) == (None, "I look it up.")
    assert len(found["tool_calls"]) == 1


def test_nothing_after_the_end_of_turn_is_read(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    assert read(renderers, folders, "qwen3", "Yes. <|im_end|>\nuser") == {
        "role": "assistant",
        "content": "Yes.",
    }


def test_a_value_of_the_wrong_type_is_still_a_call(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    tool = {
        "type": "function",
        "function": {"name": "add", "parameters": {"properties": {"n": {"type": "integer"}}}},
    }
    renderer = renderers["glm-4.5"]
    completion = encode(
        loaded(folders, "glm-4.5"),
        "<think></think><tool_call>add\n<arg_key>n</arg_key>\n<arg_value>two</arg_value>\n"
        "</tool_call>",
    )
    parsed = renderer.parse(renderer.render(ASK, [tool]), completion, [tool])
    assert [call["function"] for call in parsed.message["tool_calls"]] == [
        {"name": "add", "arguments": '{"n": "two"}'}
    ]


def test_a_json_answer_is_no_call_where_no_tool_is_offered(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    renderer = renderers["llama-3"]
    answer = FAMILIES["llama-3"].call.format(city="Paris")
    completion = encode(loaded(folders, "llama-3"), answer)
    parsed = renderer.parse(renderer.render(ASK, []), completion, [])
    assert parsed.message == {"role": "assistant", "content": answer}
