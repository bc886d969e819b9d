"""Model folders of several chat families, with small byte-level BPE tokenizers made here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_TEXT = (
    "The weather in Paris is sunny, 21 degrees; in Berlin it rains all day.",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
    '{"name": "get_weather", "parameters": {"city": "Berlin", "days": 1}}',
    "user\nassistant\nsystem\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
    "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
    '<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n</invoke>',
    "You may call one or more functions to assist with the user query. Let me think about it.",
)

_CHATML = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_GLM = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>"),
)
_DEEPSEEK = tuple(
    f"<｜{name}｜>"
    for name in (
        *("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁sep"),
        *("tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin", "tool▁call▁end"),
        *("tool▁outputs▁begin", "tool▁outputs▁end", "tool▁output▁begin", "tool▁output▁end"),
    )
)
_LLAMA = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|end_of_text|>", "<|eom_id|>"),
)
_MINIMAX = (
    *("]~!b[", "]~b]", "[e~[", "<think>", "</think>"),
    *("<minimax:tool_call>", "</minimax:tool_call>"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFamily:
    """What a test needs to know about a family. `call` writes one call as the model samples it."""

    __test__ = False

    name: str
    model_type: str
    special: tuple[str, ...]
    end: str  # the token a model ends its turn with
    call: str  # with {city}; get_weather(city)
    prefilled: bool = False  # its prompt ends in an open <think>
    thinks: bool = True
    named: bool = False  # not recognised by model_type: turnwise.json names it


def _xml_call(opener: str) -> str:
    return (
        f"<{opener}>\n<function=get_weather>\n<parameter=city>\n{{city}}\n</parameter>\n"
        f"</function>\n</{opener}>"
    )


_HERMES_CALL = (
    '<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>'
)
_GLM_CALL = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n</tool_call>"
)
_DEEPSEEK_CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{{"city": "{city}"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)

FAMILIES: Mapping[str, TestFamily] = {
    family.name: family
    for family in (
        TestFamily(
            name="qwen3", model_type="qwen3", special=_CHATML, end="<|im_end|>", call=_HERMES_CALL
        ),
        TestFamily(
            name="qwen3.5",
            model_type="qwen3_5",
            special=_CHATML + _VISION,
            end="<|im_end|>",
            call=_xml_call("tool_call"),
            prefilled=True,
        ),
        TestFamily(
            name="glm-4.5", model_type="glm4_moe", special=_GLM, end="<|user|>", call=_GLM_CALL
        ),
        TestFamily(
            name="minimax-m2",
            model_type="minimax_m2",
            special=_MINIMAX,
            end="[e~[",
            call='<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">{city}'
            "</parameter>\n</invoke>\n</minimax:tool_call>",
            prefilled=True,
        ),
        TestFamily(
            name="deepseek-v3",
            model_type="deepseek_v3",
            special=_DEEPSEEK,
            end="<｜end▁of▁sentence｜>",
            call=_DEEPSEEK_CALL,
        ),
        TestFamily(
            name="deepseek-r1",
            model_type="deepseek_v3",
            special=(*_DEEPSEEK, "<think>", "</think>"),
            end="<｜end▁of▁sentence｜>",
            call=_DEEPSEEK_CALL,
            prefilled=True,
            named=True,
        ),
        TestFamily(
            name="llama-3",
            model_type="llama",
            special=_LLAMA,
            end="<|eot_id|>",
            call='{{"name": "get_weather", "parameters": {{"city": "{city}"}}}}',
            thinks=False,
        ),
    )
}

WEATHER: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@cache
def tokenizer_json(special: tuple[str, ...], vocab_size: int = 512) -> str:
    """A trained byte-level BPE tokenizer with these special tokens, as `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer.to_str()


def save_family(folder: Path, name: str) -> Path:
    """Write the folder of a model of this family, without weights; the folder."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(family.special), encoding="utf-8")
    _write(folder / "tokenizer_config.json", {"eos_token": family.end})
    _write(folder / "config.json", {"model_type": family.model_type})
    if family.named:
        _write(folder / "turnwise.json", {"renderer": name})
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
