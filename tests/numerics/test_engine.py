"""The embedded engine against plain transformers and peft, and against itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.tiny import save_tiny_model
from turnwise import errors
from turnwise.domain.rollout import SamplingParams, Tokens
from turnwise.modeling.adapters import AdapterFiles, write_adapter
from turnwise.ports import Chunk, EngineSpec, SampleRequest
from turnwise.sampling.engine import Engine

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCAB = 512
ARCHITECTURES = ("qwen3", "qwen2", "llama")
#: Mean |difference| allowed between engine and transformers, nats, fp32 (design §4.8).
LIMIT = 1e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name, tie=name != "llama") for name in ARCHITECTURES}


def save_adapter(
    folder: Path, base: Path, *, rank: int, seed: int, targets: Sequence[str] = ALL_LINEARS
) -> str:
    """Write a random adapter that changes the model clearly; its id."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in AutoModelForCausalLM.from_pretrained(base).named_parameters():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in targets and name.endswith(".weight"):
            key = f"base_model.model.{module}"
            out, in_ = weight.shape
            tensors[f"{key}.lora_A.weight"] = 0.1 * torch.randn(rank, in_, generator=generator)
            tensors[f"{key}.lora_B.weight"] = 0.1 * torch.randn(out, rank, generator=generator)
    files = AdapterFiles(
        rank=rank, alpha=2.0 * rank, target_modules=tuple(sorted(targets)), tensors=tensors
    )
    write_adapter(folder, files, str(base))
    return files.id


def prompt(seed: int, length: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def request(name: str, tokens: Tokens, **changes: object) -> SampleRequest:
    sampling = {
        key: changes.pop(key)
        for key in ("temperature", "top_p", "top_k", "max_tokens")
        if key in changes
    }
    fields = {
        "request_id": name,
        "claimant": "job/train",
        "prompt": tokens,
        "adapter_id": None,
        "sampling": SamplingParams(**({"max_tokens": 12} | sampling)),
        "seed": sum(name.encode()),
    }
    return SampleRequest(**(fields | changes))


def run(engine: Engine, requests: Iterable[SampleRequest]) -> dict[str, Chunk]:
    """Submit all at once and step until all have ended."""
    for each in requests:
        engine.submit(engine.new_entry(each))
    return finish(engine)


def finish(engine: Engine) -> dict[str, Chunk]:
    done: dict[str, Chunk] = {}
    while not engine.is_idle:
        done |= {o.entry.request.request_id: o.chunk for o in engine.step()}
    return done


def expected(model: PreTrainedModel, sent: SampleRequest, got: Chunk) -> np.ndarray:
    """Logprobs of the sampled tokens by one plain forward over all tokens."""
    ids = torch.from_numpy(np.concatenate([sent.prompt, got.tokens])).long()
    with torch.no_grad():
        logits = model(ids[None]).logits[0] / (sent.sampling.temperature or 1.0)
    first = len(sent.prompt)
    chosen = logits.log_softmax(-1)[first - 1 : -1].gather(1, ids[first:, None])
    return chosen[:, 0].numpy()


def with_adapter(base: Path, folder: Path) -> PreTrainedModel:
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 for a deprecated property
        warnings.simplefilter("ignore")
        from peft import PeftModel

        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def differences(model: PreTrainedModel, sent: SampleRequest, got: Chunk) -> np.ndarray:
    return np.abs(expected(model, sent, got) - got.logprobs)


@pytest.mark.parametrize("merged_weights", [0, 1 << 24], ids=["unmerged", "merged"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_those_of_transformers_and_peft(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    deterministic: bool,
    merged_weights: int,
) -> None:
    monkeypatch.setattr("turnwise.sampling.model.MERGED_WEIGHTS", merged_weights)
    base = models[architecture]
    engine = Engine(EngineSpec(base_model=str(base), max_slots=6, deterministic=deterministic))
    oracles: dict[str | None, PreTrainedModel] = {
        None: AutoModelForCausalLM.from_pretrained(base).eval()
    }
    targets = {3: ALL_LINEARS, 8: ("q_proj", "v_proj", "up_proj")}
    for rank, modules in targets.items():
        folder = tmp_path / str(rank)
        adapter_id = save_adapter(folder, base, rank=rank, seed=rank, targets=modules)
        engine.load(adapter_id, str(folder))
        oracles[adapter_id] = with_adapter(base, folder)
    # Mixed adapters in one batch, prompts longer than one prefill chunk, shared prefixes.
    lengths = (1, 2, 33, 64, 150, 700, 1100)
    sent = {
        f"{adapter}-{length}": request(
            f"{adapter}-{length}", prompt(7, length), adapter_id=adapter, temperature=0.8
        )
        for length in lengths
        for adapter in oracles
    }
    got = run(engine, sent.values())
    assert got.keys() == sent.keys()
    errors_ = [differences(oracles[s.adapter_id], s, got[name]) for name, s in sent.items()]
    assert np.concatenate(errors_).mean() <= LIMIT
    assert engine.stats().cached_tokens > 0
    scored = engine.score(sent[f"{None}-700"].prompt, None, 0.8)
    plain = expected(
        oracles[None],
        request("all", prompt(7, 1), temperature=0.8),
        Chunk(tokens=prompt(7, 700)[1:], logprobs=np.zeros(0, np.float32)),
    )
    assert scored[0] == 0.0
    assert np.abs(scored[1:] - plain).mean() <= LIMIT


def test_the_next_turn_of_a_rollout_prefills_its_new_tokens_only(models: dict[str, Path]) -> None:
    base = models["qwen3"]
    oracle = AutoModelForCausalLM.from_pretrained(base).eval()
    engine = Engine(EngineSpec(base_model=str(base), max_slots=2))
    first = request("first", prompt(1, 40))
    reply = run(engine, [first])["first"]
    before = engine.stats().prefilled_tokens
    second = request("second", np.concatenate([first.prompt, reply.tokens, prompt(2, 9)]))
    answer = run(engine, [second])["second"]
    # The last sampled token was never fed to the model; its KV is computed with the new ones.
    assert engine.stats().prefilled_tokens - before == 10
    assert answer.cached_tokens == 51
    assert differences(oracle, second, answer).mean() <= LIMIT


def test_a_groups_prompt_is_prefilled_once(models: dict[str, Path]) -> None:
    engine = Engine(EngineSpec(base_model=str(models["qwen3"]), max_slots=8))
    shared = prompt(3, 200)
    got = run(engine, [request(str(i), shared, seed=i) for i in range(8)])
    assert engine.stats().prefilled_tokens == 200 + 7  # each needs its last token's logits
    assert len({got[str(i)].tokens.tobytes() for i in range(8)}) == 8


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(
    models: dict[str, Path],
) -> None:
    engine = Engine(EngineSpec(base_model=str(models["qwen3"]), max_slots=4))
    got = run(
        engine, [request(n, prompt(4, 20), seed=s) for n, s in (("a", 5), ("b", 5), ("c", 6))]
    )
    assert got["a"].tokens.tolist() == got["b"].tokens.tolist()
    assert got["a"].tokens.tolist() != got["c"].tokens.tolist()


@pytest.mark.parametrize("merged_weights", [0, 1 << 24], ids=["unmerged", "merged"])
def test_a_deterministic_sample_does_not_depend_on_its_neighbours_or_the_cache(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    merged_weights: int,
) -> None:
    monkeypatch.setattr("turnwise.sampling.model.MERGED_WEIGHTS", merged_weights)
    base = models["qwen3"]
    adapters = {
        save_adapter(tmp_path / str(rank), base, rank=rank, seed=rank): tmp_path / str(rank)
        for rank in (4, 16)
    }

    def engine(max_slots: int) -> Engine:
        made = Engine(EngineSpec(base_model=str(base), max_slots=max_slots, deterministic=True))
        for adapter_id, folder in adapters.items():
            made.load(adapter_id, str(folder))
        return made

    rng = np.random.default_rng(0)
    owners = [None, *adapters]
    sent = [
        request(
            str(i),
            np.concatenate([prompt(i % 3, 60), prompt(100 + i, int(rng.integers(1, 90)))]),
            adapter_id=owners[i % 3],
            temperature=(1.0, 0.7, 0.0)[i % 3],
            top_p=(1.0, 0.9)[i % 2],
            max_tokens=int(rng.integers(5, 60)),
        )
        for i in range(18)
    ]
    alone: dict[str, Chunk] = {}
    for each in sent:
        alone |= run(engine(1), [each])
    for trial, max_slots in enumerate((3, 16)):
        shared = engine(max_slots)
        # What other requests left in the cache: whole prompts with replies, decoded, not prefilled.
        run(shared, [request(f"w{i}", sent[i].prompt, max_tokens=40, seed=9) for i in range(4)])
        together: dict[str, Chunk] = {}
        for index in np.random.default_rng(trial).permutation(len(sent)).tolist():
            shared.submit(shared.new_entry(sent[index]))
            for _ in range(int(rng.integers(0, 4))):
                together |= {o.entry.request.request_id: o.chunk for o in shared.step()}
        together |= finish(shared)
        for name, chunk in alone.items():
            assert together[name].tokens.tolist() == chunk.tokens.tolist()
            assert together[name].logprobs.tobytes() == chunk.logprobs.tobytes()


def test_a_deterministic_second_turn_does_not_depend_on_how_its_prefix_was_computed(
    models: dict[str, Path],
) -> None:
    spec = EngineSpec(base_model=str(models["qwen3"]), max_slots=2, deterministic=True)
    first = request("first", prompt(5, 45), max_tokens=30)
    warm = Engine(spec)
    reply = run(warm, [first])["first"]
    second = request("second", np.concatenate([first.prompt, reply.tokens, prompt(6, 20)]))
    continued = run(warm, [second])["second"]
    fresh = run(Engine(spec), [second])["second"]
    assert (continued.cached_tokens, fresh.cached_tokens) == (45, 0)
    assert continued.logprobs.tobytes() == fresh.logprobs.tobytes()


def test_deterministic_mode_refuses_more_than_one_thread() -> None:
    with pytest.raises(errors.InvalidInput, match="use 1 thread in deterministic mode"):
        Engine(EngineSpec(base_model="nowhere", deterministic=True, threads=2))


def tiny_llama(**changes: object) -> LlamaConfig:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**(shape | changes))


def test_scaled_rotary_embeddings_and_biases_everywhere(tmp_path: Path) -> None:
    config = tiny_llama(
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    sent = request("long", prompt(8, 300))
    got = run(Engine(EngineSpec(base_model=str(tmp_path))), [sent])["long"]
    assert differences(model, sent, got).mean() <= LIMIT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "model hidden_act: 'gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "model rope_parameters.rope_type: 'dynamic' is not supported",
        ),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused_by_its_field(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    LlamaForCausalLM(tiny_llama(**changes)).save_pretrained(tmp_path)
    with pytest.raises(errors.InvalidInput) as caught:
        Engine(EngineSpec(base_model=str(tmp_path)))
    assert message in str(caught.value)


def test_an_adapter_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    wide = save_tiny_model(tmp_path / "wide", hidden_size=128)
    adapter_id = save_adapter(tmp_path / "adapter", wide, rank=2, seed=0)
    engine = Engine(EngineSpec(base_model=str(models["qwen3"])))
    with pytest.raises(errors.InvalidInput, match="does not fit the base model's linear"):
        engine.load(adapter_id, str(tmp_path / "adapter"))
    assert engine.stats().adapters == 0
