"""Which chat family a model folder is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.families import FAMILIES as FOLDERS
from tests.families import save_family
from turnwise.domain.job import History
from turnwise.errors import InvalidInput
from turnwise.ports import Renderer
from turnwise.rendering import load_renderer
from turnwise.rendering.family import FAMILIES

SHARED = {  # families that read the tokenizer of another one
    "qwen3.5": ("prime-qwen3", "qwen3.6", "qwen3.8"),
    "glm-4.5": ("glm-5", "glm-5.1", "glm-5.3"),
}


def test_the_model_type_and_special_tokens_choose_the_family(
    renderers: Mapping[str, Renderer],
) -> None:
    prompts = {
        name: renderer.decode(renderer.render([{"role": "user", "content": "Hi"}], []))
        for name, renderer in renderers.items()
    }
    assert prompts == {
        "qwen3": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "qwen3.5": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "glm-4.5": "[gMASK]<sop><|user|>\nHi<|assistant|>",
        "minimax-m2": "]~!b[]~b]system\nYou are a helpful assistant. Your name is MiniMax-M2.5 and "
        "is built by MiniMax.[e~[\n]~b]user\nHi[e~[\n]~b]ai\n<think>\n",
        "deepseek-v3": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>",
        "deepseek-r1": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n",
        "llama-3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }


def test_every_supported_family_loads_and_reads_a_reply(tmp_path: Path) -> None:
    names = {name: name for name in FOLDERS} | {
        name: owner for owner, names in SHARED.items() for name in names
    }
    assert set(names) == set(FAMILIES)
    for name, owner in names.items():
        folder = save_family(tmp_path / name, owner)
        (folder / "turnwise.json").write_text(json.dumps({"renderer": name}))
        renderer = load_renderer(folder, History.TEMPLATE)
        prompt = renderer.render([{"role": "user", "content": "Hi"}], [])
        assert renderer.stop_ids
        assert renderer.parse(prompt, prompt[:0], []).message == {
            "role": "assistant",
            "content": "",
        }


def test_turnwise_json_wins_over_the_model_type(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3.5")
    (folder / "turnwise.json").write_text('{"renderer": "qwen3"}')
    renderer = load_renderer(folder, History.TEMPLATE)
    prompt = renderer.render([{"role": "user", "content": "Hi"}], [])
    assert renderer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_an_unknown_architecture_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InvalidInput) as caught:
        load_renderer(folder, History.TEMPLATE)
    assert str(caught.value).endswith(
        "has model_type 'gpt2' and special tokens of no chat family that is recognised; put "
        '{"renderer": NAME} in its turnwise.json, NAME one of qwen3, prime-qwen3, qwen3.5, '
        "qwen3.6, qwen3.8, glm-4.5, glm-5, glm-5.1, glm-5.3, minimax-m2, deepseek-v3, deepseek-r1, "
        "llama-3"
    )


def test_a_deepseek_vocabulary_with_reasoning_is_not_guessed(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "deepseek-r1")
    (folder / "turnwise.json").unlink()
    with pytest.raises(InvalidInput, match="no chat family that is recognised"):
        load_renderer(folder, History.TEMPLATE)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "qwen3")
    (folder / "turnwise.json").write_text('{"renderer": "chatml"}')
    with pytest.raises(
        InvalidInput, match=r"turnwise\.json renderer: 'chatml' is not supported; use one of qwen3,"
    ):
        load_renderer(folder, History.TEMPLATE)


def test_a_name_that_does_not_fit_the_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "qwen3")
    (folder / "turnwise.json").write_text('{"renderer": "glm-4.5"}')
    with pytest.raises(InvalidInput, match=r"renderer: 'glm-4\.5' does not fit model's tokenizer"):
        load_renderer(folder, History.TEMPLATE)
