"""The model is trained on exactly the tokens it sampled, in every family (design §4).

A conversation is simulated turn by turn: completions are drawn as a model would sample them, and
an append-only agent echoes what it got and adds a tool result or a question.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families import FAMILIES, WEATHER, save_family
from turnwise.domain.job import History
from turnwise.domain.rollout import Tokens
from turnwise.ports import Renderer
from turnwise.rendering import load_renderer
from turnwise.rendering.tokenizer import Tokenizer

DROPS_REASONING = ("qwen3", "qwen3.5", "glm-4.5", "minimax-m2", "deepseek-r1")
ANY_FAMILY = pytest.mark.parametrize("name", FAMILIES)
QUESTION = {"role": "user", "content": "And tomorrow?"}
START = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is the weather in Paris?"},
)


@dataclass(frozen=True)
class Model:
    """One family: its renderers, and a way to write what it samples."""

    name: str
    tokenizer: Tokenizer
    template: Renderer
    exact: Renderer

    def sample(self, text: str) -> Tokens:
        return np.asarray(self.tokenizer.encode(text), np.int32)

    def reply(self, reasoning: str = "", content: str = "", city: str = "") -> str:
        """A whole reply; "" for reasoning leaves it out where the prompt does not open it."""
        it = FAMILIES[self.name]
        opening = "" if it.prefilled else "<think>\n"
        think = f"{opening}{reasoning}\n</think>\n\n" if reasoning or it.prefilled else ""
        return think + content + (it.call.format(city=city) if city else "") + it.end


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    root = tmp_path_factory.mktemp("families")
    folders: dict[str, Path] = {name: save_family(root / name, name) for name in FAMILIES}
    return {
        name: Model(
            name,
            Tokenizer.load(folder),
            load_renderer(folder, History.TEMPLATE),
            load_renderer(folder, History.EXACT),
        )
        for name, folder in folders.items()
    }


def random_reply(model: Model, rng: random.Random) -> Tokens:
    """Any reply: thinking or not, calling or not, malformed, unfinished, or plain noise."""
    thinks = FAMILIES[model.name].thinks and rng.random() < 0.6
    ids = [id for id in range(420, 560) if id not in model.exact.stop_ids]  # special, and padding
    noise = rng.choices([*range(300), *ids], k=rng.randrange(6))
    text = model.reply(
        reasoning=rng.choice(["Hm.", "Let me look 🙂\n\nthen"]) if thinks else "",
        content=rng.choice(["", "Sunny.", " \nÇa va "]),
        city=rng.choice(["", "Paris", "北京"]),
    )
    tokens = model.sample(text)
    at = rng.randrange(len(tokens))
    tokens = np.concatenate([tokens[:at], np.asarray(noise, np.int32), tokens[at:]])
    return tokens[: rng.randint(1, len(tokens))] if rng.random() < 0.3 else tokens


def answer(message: Mapping[str, Any], rng: random.Random) -> Sequence[Mapping[str, Any]]:
    """What an append-only agent adds: the results of all calls, else a question."""
    calls = message.get("tool_calls", [])
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": rng.choice(["Rain", "21 °C"])}
        for call in calls
    ]
    return results or [{"role": "user", "content": rng.choice(["And tomorrow?", "Sure?"])}]


@ANY_FAMILY
@pytest.mark.parametrize("seed", range(5))
def test_an_append_only_agent_always_continues_the_exact_tokens(
    models: Mapping[str, Model], name: str, seed: int
) -> None:
    model, rng = models[name], random.Random(seed)
    tokens = model.exact.render(START, [WEATHER])
    for turn in range(8):
        completion = random_reply(model, rng)
        message = model.exact.parse(tokens, completion, [WEATHER]).message
        new = answer(message, rng)
        suffix = model.exact.bridge(tokens, completion, new, [WEATHER])
        assert suffix is not None, f"turn {turn} forked: {model.tokenizer.decode(completion)!r}"
        text = model.exact.decode(suffix)
        assert all(str(added["content"]) in text or name == "llama-3" for added in new)
        tokens = np.concatenate([tokens, completion, suffix])


def forks(model: Model, renderer: Renderer, replies: Sequence[str]) -> list[bool]:
    """For each reply, whether the user's next question starts a new sequence."""
    messages: list[Mapping[str, Any]] = list(START)
    tokens = renderer.render(messages, [])
    forked = []
    for reply in replies:
        completion = model.sample(reply)
        messages += [renderer.parse(tokens, completion, []).message, QUESTION]
        suffix = renderer.bridge(tokens, completion, [QUESTION], [])
        forked.append(suffix is None)
        tokens = (
            renderer.render(messages, [])
            if suffix is None
            else np.concatenate([tokens, completion, suffix])
        )
    return forked


@pytest.mark.parametrize("name", DROPS_REASONING)
def test_where_the_template_drops_reasoning_only_exact_history_continues(
    models: Mapping[str, Model], name: str
) -> None:
    model = models[name]
    replies = [model.reply("I think so.", "Sunny.")] * 3
    assert forks(model, model.template, replies) == [True, True, True]
    assert forks(model, model.exact, replies) == [False, False, False]


@ANY_FAMILY
def test_without_reasoning_there_is_nothing_to_drop_and_every_history_continues(
    models: Mapping[str, Model], name: str
) -> None:
    model = models[name]
    assert forks(model, model.template, [model.reply("", "Sunny.")] * 3) == [False, False, False]


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "glm-4.5", "minimax-m2"])
def test_reasoning_is_kept_while_tools_are_called(models: Mapping[str, Model], name: str) -> None:
    model = models[name]
    prompt = model.template.render(START, [WEATHER])
    completion = model.sample(model.reply("I look it up.", city="Paris"))
    result = {"role": "tool", "tool_call_id": "a", "content": "Rain"}
    assert model.template.bridge(prompt, completion, [result], [WEATHER]) is not None


@ANY_FAMILY
def test_the_agent_may_not_put_words_into_the_models_mouth(
    models: Mapping[str, Model], name: str
) -> None:
    model = models[name]
    prompt = model.exact.render(START, [])
    said = {"role": "assistant", "content": "I said so."}
    completion = model.sample(model.reply("", "Sunny."))
    assert model.exact.bridge(prompt, completion, [said, QUESTION], []) is None


@ANY_FAMILY
def test_a_bridge_writes_what_the_template_writes(models: Mapping[str, Model], name: str) -> None:
    """Where the sampled tokens are the template's own, bridging equals rendering it all."""
    model = models[name]
    for new, said in (
        ({"role": "tool", "tool_call_id": "a", "content": "Rain"}, {"city": "Paris"}),
        (QUESTION, {}),
    ):
        if name == "deepseek-r1" or (name in DROPS_REASONING and not said):
            continue  # its template rewrites what was sampled
        assistant: dict[str, Any] = {"role": "assistant", "content": "" if said else "Sunny."}
        if said:
            function = {"name": "get_weather", "arguments": json.dumps(said)}
            call = {"id": "a", "type": "function", "function": function}
            assistant["tool_calls"] = [call]
        if name in DROPS_REASONING:
            assistant["reasoning_content"] = "I look it up."
        prompt = model.template.render(START, [WEATHER])
        full = model.template.render([*START, assistant, new], [WEATHER])
        assert full[: len(prompt)].tolist() == prompt.tolist()
        rest = full[len(prompt) :].tolist()
        ends = [at for at, id in enumerate(rest) if id in model.template.stop_ids]
        completion = full[len(prompt) : len(prompt) + ends[0] + 1]
        suffix = model.template.bridge(prompt, completion, [new], [WEATHER])
        assert suffix is not None
        assert model.template.decode(np.concatenate([prompt, completion, suffix])) == (
            model.template.decode(full)
        )
        assert [*prompt, *completion, *suffix] == full.tolist()


GOLDEN = {
    "qwen3": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow is the weather in Paris?<|im_end|>\n"
        "<|im_start|>assistant\nSunny.<|im_end|>\n"
        "<|im_start|>user\nAnd tomorrow?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "qwen3.5": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow is the weather in Paris?<|im_end|>\n"
        "<|im_start|>assistant\nSunny.<|im_end|>\n"
        "<|im_start|>user\nAnd tomorrow?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    ),
    "glm-4.5": (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHow is the weather in Paris?"
        "<|assistant|>\n<think></think>\nSunny.<|user|>\nAnd tomorrow?<|assistant|>"
    ),
    "minimax-m2": (
        "]~!b[]~b]system\nBe brief.[e~[\n]~b]user\nHow is the weather in Paris?[e~[\n"
        "]~b]ai\nSunny.[e~[\n]~b]user\nAnd tomorrow?[e~[\n]~b]ai\n<think>\n"
    ),
    "deepseek-v3": (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>How is the weather in Paris?"
        "<｜Assistant｜>Sunny.<｜end▁of▁sentence｜><｜User｜>And tomorrow?<｜Assistant｜>"
    ),
    "deepseek-r1": (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>How is the weather in Paris?"
        "<｜Assistant｜>Sunny.<｜end▁of▁sentence｜><｜User｜>And tomorrow?<｜Assistant｜><think>\n"
    ),
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHow is the weather in Paris?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSunny.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd tomorrow?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@ANY_FAMILY
def test_a_conversation_renders_as_the_familys_published_template(
    models: Mapping[str, Model], name: str
) -> None:
    """Checked by hand against the models' chat templates; earlier reasoning is gone in each."""
    model = models[name]
    said = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}
    tokens = model.template.render([*START, said, QUESTION], [])
    assert model.template.decode(tokens) == GOLDEN[name]
