"""Which chat family a model folder belongs to, and its renderer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import renderers

from turnwise.domain.job import History
from turnwise.errors import InvalidInput
from turnwise.ports import Renderer
from turnwise.rendering.renderer import ChatRenderer
from turnwise.rendering.stream import Grammar
from turnwise.rendering.tokenizer import Tokenizer, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of `renderers`: the `model_type`s it is chosen for, and how its replies read.

    `has` and `lacks` are tokens that tell it from other families of the same architecture. A
    family without model types is chosen by name only, in the model folder's `turnwise.json`.
    """

    grammar: Grammar
    model_types: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def fits(self, model_type: str, tokenizer: Tokenizer) -> bool:
        """Whether a folder without an explicit choice is of this family."""
        return (
            model_type in self.model_types
            and all(tokenizer.token_id(token) is not None for token in self.has)
            and all(tokenizer.token_id(token) is None for token in self.lacks)
        )


_TAGGED = Grammar()
_DEEPSEEK = Grammar(call_open="<｜tool▁calls▁begin｜>", call_close="<｜tool▁calls▁end｜>")

FAMILIES: Mapping[str, Family] = {
    "qwen3": Family(
        grammar=_TAGGED, model_types=("qwen3", "qwen3_moe"), has=("<|im_start|>", "</think>")
    ),
    "prime-qwen3": Family(grammar=_TAGGED),
    "qwen3.5": Family(
        grammar=_TAGGED,
        model_types=("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
        has=("<|im_start|>", "</think>"),
    ),
    "qwen3.6": Family(grammar=_TAGGED),
    "qwen3.8": Family(grammar=_TAGGED),
    "glm-4.5": Family(grammar=_TAGGED, model_types=("glm4_moe",), has=("[gMASK]", "</think>")),
    "glm-5": Family(grammar=_TAGGED, model_types=("glm_moe_dsa",), has=("[gMASK]", "</think>")),
    "glm-5.1": Family(grammar=_TAGGED),
    "glm-5.3": Family(grammar=_TAGGED),
    "minimax-m2": Family(
        grammar=Grammar(call_open="<minimax:tool_call>", call_close="</minimax:tool_call>"),
        model_types=("minimax_m2",),
        has=("]~b]",),
    ),
    # R1 and V3.1 share V3's architecture; their vocabulary holds <think>, V3's does not.
    "deepseek-v3": Family(
        grammar=_DEEPSEEK,
        model_types=("deepseek_v3",),
        has=("<｜tool▁calls▁begin｜>",),
        lacks=("<think>",),
    ),
    "deepseek-r1": Family(grammar=_DEEPSEEK),
    "llama-3": Family(
        grammar=Grammar(
            think_open=None, think_close=None, call_open=None, call_close=None, bare_calls=True
        ),
        model_types=("llama",),
        has=("<|start_header_id|>", "<|eom_id|>"),
    ),
}


def load_renderer(model_folder: Path, history: History) -> Renderer:
    """The renderer of a model folder (`config.json`, `tokenizer.json`, `tokenizer_config.json`).

    `"renderer": NAME` in a `turnwise.json` beside them wins over what they suggest.
    Raises `InvalidInput` for a family that is not supported, with those that are.
    """
    tokenizer = Tokenizer.load(model_folder)
    name = _named(model_folder) or _recognised(model_folder, tokenizer)
    config = renderers.config_from_name(name)
    keeping = config.model_copy(update={"thinking_retention": "all"})
    try:
        template, kept = (renderers.create_renderer(tokenizer, c) for c in (config, keeping))
    except AssertionError as error:  # how the package reports a special token that is missing
        raise InvalidInput(
            "renderer", name, f"does not fit {model_folder.name}'s tokenizer: {error}"
        ) from error
    return ChatRenderer(
        tokenizer,
        FAMILIES[name].grammar,
        template=template,
        keeping=kept,
        exact=history is History.EXACT,
    )


def _named(folder: Path) -> str | None:
    name = read_json(folder / "turnwise.json").get("renderer")
    if name is not None and name not in FAMILIES:
        raise InvalidInput(
            "turnwise.json renderer", name, "is not supported", remedy=f"use one of {_supported()}"
        )
    return name


def _recognised(folder: Path, tokenizer: Tokenizer) -> str:
    model_type = str(read_json(folder / "config.json").get("model_type", ""))
    for name, family in FAMILIES.items():
        if family.fits(model_type, tokenizer):
            return name
    raise InvalidInput(
        "base_model",
        str(folder),
        f"has model_type {model_type!r} and special tokens of no chat family that is recognised",
        remedy=f'put {{"renderer": NAME}} in its turnwise.json, NAME one of {_supported()}',
    )


def _supported() -> str:
    return ", ".join(FAMILIES)
