"""The embedded engine on CUDA, in bf16."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.numerics.test_engine import expected, prompt, request, run, save_adapter, with_adapter
from tests.tiny import save_tiny_model
from turnwise.ports import EngineSpec
from turnwise.sampling.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

#: bf16 keeps 8 bits: sampler and an fp32 forward differ by about this much, nats.
LIMIT = 0.05


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_logprobs_in_bf16_stay_near_those_of_fp32(tmp_path: Path, architecture: str) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    adapter_id = save_adapter(tmp_path / "adapter", base, rank=8, seed=0)
    oracles = {
        None: AutoModelForCausalLM.from_pretrained(base).eval(),
        adapter_id: with_adapter(base, tmp_path / "adapter"),
    }
    engine = Engine(EngineSpec(base_model=str(base), device="cuda", max_slots=8))
    engine.load(adapter_id, str(tmp_path / "adapter"))
    sent = {
        f"{adapter}-{length}": request(f"{adapter}-{length}", prompt(7, length), adapter_id=adapter)
        for length in (1, 33, 150, 700)
        for adapter in oracles
    }
    got = run(engine, sent.values())
    differences = [
        np.abs(expected(oracles[s.adapter_id], s, got[name]) - got[name].logprobs)
        for name, s in sent.items()
    ]
    assert np.concatenate(differences).mean() <= LIMIT


def test_a_batch_is_decoded_much_faster_than_its_requests_one_by_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path, hidden_size=256, layers=4)
    engine = Engine(EngineSpec(base_model=str(base), device="cuda", max_slots=64))
    requests = [request(str(i), prompt(i, 64), max_tokens=64) for i in range(64)]
    run(engine, requests[:1])
    started = time.perf_counter()
    run(engine, [request("alone", prompt(100, 64), max_tokens=64)])
    alone = time.perf_counter() - started
    started = time.perf_counter()
    run(engine, [request(f"b{i}", prompt(200 + i, 64), max_tokens=64) for i in range(64)])
    assert time.perf_counter() - started < 64 * alone / 8
