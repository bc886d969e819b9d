"""Sampling throughput: the embedded engine beside `transformers.generate` on the same PEFT model.

Both sample the same number of tokens from the same random prompts (no prefix in common) at
temperature 1, both give a logprob for every token, both keep their KV cache, on one thread.
The model is "S" of the measurements behind the engine: 4 million parameters, fp32, with a LoRA
adapter of rank 8 on all linears. What is timed alternates, so that a busy machine hits both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from turnwise.domain.rollout import SamplingParams, Tokens
from turnwise.modeling.adapters import adapter_id
from turnwise.ports import EngineSpec, SampleRequest
from turnwise.sampling.engine import Engine

VOCAB = 4096
PROMPT_TOKENS = 64
NEW_TOKENS = 96
REQUESTS = 64
REPEATS = 5
GOAL = 2.5


def run() -> list[dict[str, Any]]:
    """The records: engine against generate, and what deterministic mode costs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about transformers
        base, adapter = _models(Path(folder))
        engine, fixed = (_engine(base, adapter, deterministic=d) for d in (False, True))
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        name = adapter_id(adapter)
        contenders: list[Callable[[np.ndarray], None]] = [
            lambda prompts: _sample(engine, name, prompts),
            lambda prompts: _sample(fixed, name, prompts),
            lambda prompts: _generate(model, prompts),
        ]
        ours, ours_fixed, peer = _interleaved(contenders)
    return [
        _record("engine/generate, 64 requests, adapter", ours, peer, GOAL),
        _record("engine/deterministic mode", ours_fixed, ours, None),
    ]


def _models(folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder / "base")
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=linears, init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def _engine(base: Path, adapter: Path, *, deterministic: bool) -> Engine:
    spec = EngineSpec(base_model=str(base), max_slots=REQUESTS, deterministic=deterministic)
    engine = Engine(spec)
    engine.load(adapter_id(adapter), str(adapter))
    return engine


def _interleaved(contenders: list[Callable[[np.ndarray], None]]) -> list[list[float]]:
    """Tokens per second of each, in rounds; the first round warms up and does not count."""
    rng = np.random.default_rng(0)
    speeds: list[list[float]] = [[] for _ in contenders]
    for _ in range(REPEATS + 1):
        prompts = rng.integers(0, VOCAB, (REQUESTS, PROMPT_TOKENS)).astype(np.int32)
        for contender, results in zip(contenders, speeds, strict=True):
            started = time.perf_counter()
            contender(prompts)
            results.append(REQUESTS * NEW_TOKENS / (time.perf_counter() - started))
    return [results[1:] for results in speeds]


def _sample(engine: Engine, adapter: str, prompts: np.ndarray) -> None:
    for index, prompt in enumerate(prompts):
        engine.submit(engine.new_entry(_request(index, adapter, prompt)))
    sampled = 0
    while not engine.is_idle:
        sampled += sum(len(output.chunk.tokens) for output in engine.step())
    assert sampled == REQUESTS * NEW_TOKENS


def _request(index: int, adapter: str, prompt: Tokens) -> SampleRequest:
    return SampleRequest(
        request_id=str(index),
        claimant="bench",
        prompt=prompt,
        adapter_id=adapter,
        sampling=SamplingParams(max_tokens=NEW_TOKENS),
        seed=index,
    )


def _generate(model: Any, prompts: np.ndarray) -> None:
    ids = torch.from_numpy(prompts).long()
    model.base_model.model.generation_config.use_cache = True
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        logprobs = model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
    assert logprobs.shape == (REQUESTS, NEW_TOKENS)


def _record(name: str, ours: list[float], peer: list[float], goal: float | None) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "name": name,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "goal": goal,
        "unit": "tokens/s",
        "spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
    }


if __name__ == "__main__":
    for record in run():
        print(record)
