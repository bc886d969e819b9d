"""Rows computed as a trie against the same rows each for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FalconForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.numerics.test_learner import PRECISIONS, assert_same, cast, gradient
from tests.tiny import save_tiny_model
from tests.unit.training.samples import batch, learner_spec, request, row
from turnwise.domain.training import LossName, LossSpec, Sample
from turnwise.rl.packing import micro_batches
from turnwise.rl.trie import Trie, tries
from turnwise.training.attention import Layout, install, trie_attention
from turnwise.training.learner import TorchLearner
from turnwise.training.model import TrainedModel

ARCHITECTURES = ["qwen3", "qwen2", "llama"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model", request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


def learner(
    base: Path, dtype: torch.dtype = torch.float32, *, share: bool, budget: int = 10_000
) -> TorchLearner:
    """A learner whose adapter does something."""
    made = TorchLearner(learner_spec(base, share_prefixes=share, tokens_per_micro_batch=budget))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.model.parameters.values():
            parameter.normal_(0, 0.05, generator=generator)
    cast(made, dtype)
    return made


# ── rows that begin alike ─────────────────────────────────────────────────────────────────────

Random = np.random.Generator


def tokens(random: Random, *lengths: int) -> list[np.ndarray]:
    return [random.integers(0, 512, size=length) for length in lengths]


def trained(random: Random, *pieces: np.ndarray, spans: Sequence[int]) -> Sample:
    """A row of pieces, those of `spans` trained, sampled by a policy somewhat off."""
    ends = np.cumsum([0, *map(len, pieces)])
    made = row(
        np.concatenate(pieces),
        [(int(ends[i]), int(ends[i + 1])) for i in spans],
        advantage=float(random.normal()),
        temperature=float(random.choice([0.7, 1.0])),
    )
    said = -6 + random.normal(0, 0.7, size=len(made.tokens))
    return replace(made, logprobs=(said * made.trained).astype(np.float32))


def siblings(random: Random) -> list[Sample]:
    (prompt,) = tokens(random, 40)
    return [
        trained(random, prompt, *tokens(random, 5 + i, 6, 9 - i), spans=[1, 3]) for i in range(4)
    ]


def a_fork(random: Random) -> list[Sample]:
    prompt, first, one, other, again = tokens(random, 40, 37, 8, 9, 21)
    return [
        trained(random, prompt, first, one, *tokens(random, 11), spans=[1, 3]),
        trained(random, prompt, first, other, *tokens(random, 7), spans=[3]),
        trained(random, prompt, again, one, *tokens(random, 6), spans=[3]),
    ]


def equal_siblings(random: Random) -> list[Sample]:
    pieces = tokens(random, 10, 20, 3, 8)
    return [trained(random, *pieces, spans=[1, 3]) for _ in range(3)]


def parted_within_a_turn(random: Random) -> list[Sample]:
    prompt, said = tokens(random, 20, 40)
    return [
        trained(random, prompt, np.concatenate([said[:at], *tokens(random, 9)]), spans=[1])
        for at in (18, 35, 37)
    ]


def one_inside_another(random: Random) -> list[Sample]:
    prompt, first, tool, second = tokens(random, 10, 20, 4, 18)
    return [
        trained(random, prompt, first, spans=[1]),
        trained(random, prompt, first, tool, second, spans=[3]),
    ]


def several_prompts(random: Random) -> list[Sample]:
    (system,) = tokens(random, 24)
    groups = [tokens(random, 20 + i) for i in range(2)]
    return [
        trained(random, system, prompt, *tokens(random, 10), spans=[2])
        for (prompt,) in groups
        for _ in range(3)
    ]


FAMILIES = [
    siblings,
    a_fork,
    equal_siblings,
    parted_within_a_turn,
    one_inside_another,
    several_prompts,
]
Family = Callable[[Random], list[Sample]]


def all_families() -> list[Sample]:
    random = np.random.default_rng(8)
    return [made for family in FAMILIES for made in family(random)]


# ── gradients ─────────────────────────────────────────────────────────────────────────────────


def by_turn(learner: TorchLearner, rows: Sequence[Sample]) -> torch.Tensor:
    """The gradient by one forward per turn through the model's own head, as PPO is written."""
    total = torch.zeros((), dtype=learner.model.module.dtype)
    weight = float(np.float32(1 / sum(made.num_trained for made in rows)))
    for made in rows:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], made.trained, [0]])))
        for start, end in edges.reshape(-1, 2):
            read = torch.from_numpy(made.tokens[:end]).long()
            logits = learner.model.module(input_ids=read[None]).logits[0, start - 1 : end - 1]
            heated = logits / float(made.temperatures[start])
            new = heated.log_softmax(-1).gather(1, read[start:end, None])[:, 0]
            r = (new - torch.from_numpy(made.logprobs[start:end])).exp()
            a = float(made.advantages[start])
            total = total - weight * torch.min(r * a, r.clamp(0.8, 1.2) * a).sum()
    found = torch.autograd.grad(total, list(learner.model.parameters.values()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_a_trie_has_the_gradient_of_its_rows_and_their_turns(
    base: Path, family: Family, dtype: torch.dtype, tolerance: float
) -> None:
    rows = family(np.random.default_rng(4))
    sharing, alone = (learner(base, dtype, share=share) for share in (True, False))
    (used,) = micro_batches(batch(rows).samples, 10_000, share=True)
    assert used.segments
    ours = gradient(sharing, batch(rows))
    assert_same(ours, gradient(alone, batch(rows)), tolerance)
    assert_same(ours, by_turn(alone, rows), tolerance)


@pytest.mark.parametrize(
    ("loss", "options"), [(LossName.PPO, {}), (LossName.GSPO, {"kl_coef": 0.1})]
)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_neither_budget_nor_order_nor_architecture_changes_a_trie_s_gradient(
    any_base: Path, dtype: torch.dtype, tolerance: float, loss: LossName, options: dict[str, float]
) -> None:
    rows = all_families()
    plain = gradient(learner(any_base, dtype, share=False), batch(rows), loss, **options)
    for budget, tries_used in ((10_000, 1), (150, 5)):
        sharing = learner(any_base, dtype, share=True, budget=budget)
        found = sharing._micro_batches(batch(rows))
        assert len([each for each in found if each.segments]) == len(found) == tries_used
        assert_same(gradient(sharing, batch(rows), loss, **options), plain, tolerance)
        assert_same(gradient(sharing, batch(rows[::-1]), loss, **options), plain, tolerance)


@pytest.mark.parametrize("loss", [LossSpec(kl_coef=0.1), LossSpec(tis_cap=1.5)])
def test_a_step_reports_and_leaves_the_same_with_and_without_tries(
    base: Path, loss: LossSpec
) -> None:
    rows = all_families()
    sharing, alone = (learner(base, share=share) for share in (True, False))
    asked = request(3, batch(rows[:10]), batch(rows[10:]), loss=loss)
    ours, theirs = sharing.step(asked), alone.step(asked)
    less = ours.metrics["training/padded_tokens"] / theirs.metrics["training/padded_tokens"]
    assert less < 0.6
    for name, value in theirs.metrics.items():
        if name not in ("training/padded_tokens", "training/micro_batches"):
            assert ours.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert [m.mean for m in ours.mismatch] == pytest.approx([m.mean for m in theirs.mismatch])
    after = [torch.cat([v.flatten() for v in x.model.values().values()]) for x in (sharing, alone)]
    torch.testing.assert_close(*after, rtol=0, atol=1e-4)


# ── attention ─────────────────────────────────────────────────────────────────────────────────


def seen(trie: Trie) -> torch.Tensor:
    """Which tokens each token may see, [T, T], by its rows."""
    found = torch.zeros(len(trie.tokens), len(trie.tokens), dtype=torch.bool)
    for places in trie.places:
        for count, place in enumerate(places, 1):
            found[place, places[:count]] = True
    return found


def masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor
) -> torch.Tensor:
    """Attention under a dense mask [T, T], written out."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~sees, -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_by_parts_is_attention_under_the_mask(kv_heads: int) -> None:
    rows = [made.tokens for made in all_families()]
    (trie,) = tries(rows, 10_000)
    size = len(trie.tokens)
    generator = torch.Generator().manual_seed(1)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, size, 8, generator=generator, dtype=torch.float64)

    inputs = [draw(heads).requires_grad_() for heads in (4, kv_heads, kv_heads)]
    towards = draw(4)
    layout = Layout(trie.segments, torch.device("cpu"))
    ours, theirs = trie_attention(*inputs, layout, 0.3), masked(*inputs, seen(trie))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, towards),
        torch.autograd.grad(theirs, inputs, towards),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_heads_may_lie_in_memory_in_any_order() -> None:
    (trie,) = tries([made.tokens for made in all_families()], 10_000)
    generator = torch.Generator().manual_seed(2)
    inputs = [
        torch.randn(1, 2, 8, len(trie.tokens), generator=generator).transpose(2, 3)
        for _ in range(3)
    ]

    ours = trie_attention(*inputs, Layout(trie.segments, torch.device("cpu")), 0.3)

    torch.testing.assert_close(ours, masked(*inputs, seen(trie)), rtol=0, atol=1e-5)


def test_flex_attention_is_given_that_mask() -> None:
    """As CUDA uses it; the CPU has no backward of it to test."""
    (trie,) = tries([made.tokens for made in all_families()], 10_000)
    mask = Layout(trie.segments, torch.device("cpu")).block_mask
    places = torch.arange(len(trie.tokens))
    zero = torch.zeros((), dtype=torch.long)
    found = mask.mask_mod(zero, zero, places[:, None], places[None])
    assert mask.seq_lengths == (len(places), len(places))
    assert torch.equal(found, seen(trie))


def test_a_model_whose_window_slides_reads_plain_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.1}
    config = MistralConfig(vocab_size=512, **shape, **heads, sliding_window=8)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    sharing, alone = (learner(tmp_path, share=share) for share in (True, False))
    rows = all_families()
    assert not sharing.model.reads_tries
    assert torch.equal(gradient(sharing, batch(rows)), gradient(alone, batch(rows)))


class Forgetful(Qwen3Model):
    """Drops what it does not know, as a model's own code may."""

    def forward(self, *args: Any, trie: Layout | None = None, **options: Any) -> Any:
        return super().forward(*args, **options)


def tiny(kind: type[Any]) -> Any:
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return kind(kind.config_class(**shape, **heads)).eval()


def test_a_model_that_cannot_read_tries_is_left_as_it_was() -> None:
    own_attention, forgetful = tiny(FalconForCausalLM), tiny(Qwen3ForCausalLM)
    forgetful.model.__class__ = Forgetful
    for model in (own_attention, forgetful):
        assert not install(model)
        assert model.config._attn_implementation == "sdpa"
    assert install(tiny(Qwen3ForCausalLM))


def test_prefixes_are_shared_where_asked_for(base: Path) -> None:
    assert TrainedModel(learner_spec(base)).reads_tries
    assert not TrainedModel(learner_spec(base, share_prefixes=False)).reads_tries
