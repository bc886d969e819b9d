"""The learner on CUDA: a bf16 base with an fp32 adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.numerics.test_trie import all_families
from tests.tiny import save_tiny_model
from tests.unit.training.samples import batch, conversation, learner_spec, request, scored, train
from turnwise import errors
from turnwise.domain.training import LossName, LossSpec
from turnwise.rl.trie import tries
from turnwise.training.attention import Layout, trie_attention
from turnwise.training.learner import TorchLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

# bf16 keeps 8 bits: logprobs of about -5 agree to some hundredths.
LIMIT = 5e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model", hidden_size=128)


@pytest.fixture
def learner(base: Path) -> TorchLearner:
    return TorchLearner(learner_spec(base, device="cuda"))


def test_the_base_is_bf16_and_the_adapter_fp32(learner: TorchLearner) -> None:
    assert learner.model.module.dtype == torch.bfloat16
    assert {p.dtype for p in learner.model.parameters.values()} == {torch.float32}
    assert {p.device.type for p in learner.model.parameters.values()} == {"cuda"}


def test_both_devices_draw_the_same_adapter(base: Path, learner: TorchLearner) -> None:
    assert learner.model.files().id == TorchLearner(learner_spec(base)).model.files().id


def test_a_step_on_cuda_follows_the_step_on_the_cpu(base: Path, learner: TorchLearner) -> None:
    reference = TorchLearner(learner_spec(base))
    rows = [scored(reference, conversation(i, advantage=(-1.0) ** i)) for i in range(6)]
    ours = learner.step(request(0, batch(rows), parity_limit=LIMIT))
    theirs = reference.step(request(0, batch(rows)))
    assert ours.mismatch[0].mean <= LIMIT
    assert ours.metrics["training/entropy"] == pytest.approx(
        theirs.metrics["training/entropy"], rel=0.02
    )
    mine, other = (
        torch.cat([v.cpu().flatten() for v in one.model.values().values()])
        for one in (learner, reference)
    )
    start = torch.cat(
        [v.flatten() for v in TorchLearner(learner_spec(base)).model.values().values()]
    )
    cosine = torch.cosine_similarity(mine - start, other - start, dim=0)
    assert cosine > 0.8


def test_a_trie_has_the_gradient_of_its_rows(base: Path) -> None:
    """Flex attention beside padded rows, both in bf16."""
    rows = all_families()
    gradients = []
    for share in (True, False):
        learner = TorchLearner(
            learner_spec(base, device="cuda", share_prefixes=share, tokens_per_micro_batch=10_000)
        )
        assert learner.model.reads_tries == share
        forwards = learner.accumulate(batch(rows), LossSpec(name=LossName.IMPORTANCE_SAMPLING))
        assert bool(forwards[0].batch.segments) == share
        parameters = learner.model.parameters.values()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert float(gradients[0].norm() / gradients[1].norm()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_over_a_trie_is_the_cpu_s(kv_heads: int) -> None:
    (trie,) = tries([made.tokens for made in all_families()], 10_000)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(1, heads, len(trie.tokens), 16, generator=generator)
        for heads in (4, kv_heads, kv_heads)
    )
    found = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).requires_grad_() for x in (q, k, v)]
        out = trie_attention(*inputs, Layout(trie.segments, torch.device(device)), 0.3)
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        found.append([x.detach().cpu() for x in (out, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_the_gate_stops_a_sampler_without_the_adapter(learner: TorchLearner) -> None:
    for step in range(3):
        rows = [scored(learner, conversation(i, policy_step=step)) for i in range(4)]
        learner.step(request(step, batch(rows), parity_limit=LIMIT))
    with learner.model.holding(learner.model.without_adapter()):
        rows = [scored(learner, conversation(i, policy_step=3)) for i in range(4)]
    with pytest.raises(errors.ParityExceeded, match="it did not apply the adapter"):
        learner.step(request(3, batch(rows), parity_limit=LIMIT))


def test_a_checkpoint_restores_on_either_device(
    base: Path, learner: TorchLearner, tmp_path: Path
) -> None:
    rows = [scored(learner, conversation(i)) for i in range(4)]
    learner.step(request(0, batch(rows), parity_limit=LIMIT))
    checkpoint = learner.save(0, str(tmp_path / "step_0"))
    again = TorchLearner(learner_spec(base, device="cuda", seed=5))
    again.restore(checkpoint)
    on_cpu = TorchLearner(learner_spec(base))
    on_cpu.restore(checkpoint)
    assert again.model.files().id == on_cpu.model.files().id == checkpoint.adapter.adapter_id
    tokens = conversation(9).tokens
    assert np.abs(again.score(tokens) - on_cpu.score(tokens)).mean() <= LIMIT
    train(on_cpu, [1])
