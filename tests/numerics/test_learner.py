"""The learner against itself on other routes: what must not change a gradient, and what must stop
a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import save_tiny_model
from tests.unit.training.samples import (
    batch,
    conversation,
    learner_spec,
    request,
    row,
    scored,
    train,
)
from turnwise import errors
from turnwise.domain.training import (
    DataPosition,
    LoraSpec,
    LossName,
    LossSpec,
    MiniBatch,
    OptimizerSpec,
    Sample,
    WeightedSample,
)
from turnwise.training.learner import TorchLearner


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def learner(base: Path) -> TorchLearner:
    """A learner whose adapter has moved away from the base."""
    fresh = TorchLearner(learner_spec(base))
    train(fresh, [0, 1])
    return fresh


def gradient(
    learner: TorchLearner, mini_batch: MiniBatch, loss: LossName = LossName.PPO, **options: float
) -> torch.Tensor:
    learner.accumulate(mini_batch, LossSpec(name=loss, **options))
    parameters = learner.model.parameters.values()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def cast(learner: TorchLearner, dtype: torch.dtype) -> None:
    """Compute in `dtype`, norms included: transformers' own round to fp32 whatever they get."""
    model = learner.model.module.to(dtype)
    for path, module in list(model.named_modules()):
        if hasattr(module, "variance_epsilon"):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=dtype)
            norm.weight = module.weight
            model.set_submodule(path, norm)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert theirs.abs().max() > 0
    assert (ours - theirs).abs().max() / theirs.abs().max() <= tolerance


def off_policy(learner: TorchLearner, count: int = 6) -> list[Sample]:
    """Rows whose ratios are spread around 1, a good part of them beyond the clip bounds."""
    noise = np.random.default_rng(7)
    rows = []
    for i in range(count):
        made = scored(learner, conversation(i, advantage=noise.normal(), temperature=0.8))
        moved = noise.normal(0, 0.3, size=len(made.tokens)).astype(np.float32)
        rows.append(replace(made, logprobs=made.logprobs + moved * made.trained))
    return rows


def per_turn(sample: Sample) -> list[Sample]:
    """One row per turn: everything before its completion as a prompt, and only that trained."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.trained.view(np.int8), [0]])))
    rows = []
    for start, end in edges.reshape(-1, 2):
        only = np.zeros_like(sample.trained)
        only[start:end] = True
        rows.append(
            Sample(
                rollout_id=sample.rollout_id,
                tokens=sample.tokens[:end],
                trained=only[:end],
                logprobs=(sample.logprobs * only)[:end],
                advantages=(sample.advantages * only)[:end],
                temperatures=np.where(only, sample.temperatures, np.float32(1))[:end],
                policy_steps=(sample.policy_steps * only)[:end],
            )
        )
    return rows


PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.mark.parametrize("loss", list(LossName))
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_a_merged_row_has_the_gradient_of_its_turns(
    learner: TorchLearner, loss: LossName, dtype: torch.dtype, tolerance: float
) -> None:
    cast(learner, dtype)
    merged = off_policy(learner)
    turns = [turn for sample in merged for turn in per_turn(sample)]
    assert (len(merged), len(turns)) == (6, 18)
    assert_same(
        gradient(learner, batch(merged), loss), gradient(learner, batch(turns), loss), tolerance
    )


@pytest.mark.parametrize(
    ("loss", "options"), [(LossName.PPO, {}), (LossName.GSPO, {"kl_coef": 0.1})]
)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_micro_batches_and_order_of_rows_change_nothing(
    base: Path, dtype: torch.dtype, tolerance: float, loss: LossName, options: dict[str, float]
) -> None:
    def under(budget: int, order: Callable[[list[Sample]], Sequence[Sample]]) -> torch.Tensor:
        learner = TorchLearner(learner_spec(base, tokens_per_micro_batch=budget))
        cast(learner, dtype)
        return gradient(learner, batch(order(off_policy(learner, 8))), loss, **options)

    whole = under(10_000, list)
    assert_same(under(1, list), whole, tolerance)
    assert_same(under(90, list), whole, tolerance)
    assert_same(under(90, lambda rows: rows[::-1]), whole, tolerance)


def test_the_gradient_is_that_of_the_weighted_loss(learner: TorchLearner) -> None:
    cast(learner, torch.float64)
    rows = off_policy(learner, 2)
    weights = [np.linspace(0.1, 1, len(r.tokens)).astype(np.float32) * r.trained for r in rows]
    pairs = zip(rows, weights, strict=True)
    mini_batch = MiniBatch(samples=tuple(WeightedSample(sample=s, weights=w) for s, w in pairs))
    ours = gradient(learner, mini_batch)

    total = torch.zeros((), dtype=torch.float64)
    for sample, weight in zip(rows, weights, strict=True):
        tokens = torch.from_numpy(sample.tokens).long()
        logits = learner.model.module(input_ids=tokens[None]).logits[0]
        for t in np.flatnonzero(sample.trained):
            heated = logits[t - 1] / float(sample.temperatures[t])
            new = heated.log_softmax(-1)[tokens[t]]
            r = (new - float(sample.logprobs[t])).exp()
            a = float(sample.advantages[t])
            total = total - float(weight[t]) * torch.min(r * a, r.clamp(0.8, 1.2) * a)
    theirs = torch.autograd.grad(total, list(learner.model.parameters.values()))
    assert_same(ours, torch.cat([g.flatten() for g in theirs]), 1e-10)


def test_truncated_weights_compare_with_the_learner_as_the_step_began(
    learner: TorchLearner, tmp_path: Path
) -> None:
    """What they stand for, written out: other logprobs to be off from, and scaled advantages."""
    rows = off_policy(learner)
    start = learner.save(2, str(tmp_path / "start"))
    written_out = []
    for sample in rows:
        now = learner.model.plain_score(sample.tokens, sample.temperatures)
        weights = np.minimum(np.exp(now - sample.logprobs), 1.1).astype(np.float32)
        made = replace(sample, logprobs=now, advantages=weights * sample.advantages)
        written_out.append(made)

    def after(rows: list[Sample], **options: float) -> torch.Tensor:
        learner.restore(start)
        loss = LossSpec(clip_low=0.99, clip_high=1.01, **options)
        parts = (batch(rows[:2]), batch(rows[2:]))
        learner.step(request(3, *parts, loss=loss, learning_rate=1e-3))
        return torch.cat([p.detach().flatten() for p in learner.model.parameters.values()])

    weighted, expected = after(rows, tis_cap=1.1), after(written_out)

    torch.testing.assert_close(weighted, expected, rtol=0, atol=1e-5)
    assert (after(rows) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("budget", [1, 10_000])
def test_the_divergence_from_the_base_has_the_gradient_of_its_formula(
    base: Path, budget: int
) -> None:
    learner = TorchLearner(learner_spec(base, tokens_per_micro_batch=budget))
    train(learner, [0, 1])
    cast(learner, torch.float64)
    rows = [replace(row, advantages=row.advantages * 0) for row in off_policy(learner, 3)]
    parameters = list(learner.model.parameters.values())
    learner.accumulate(batch(rows), LossSpec(kl_coef=0.25))
    ours = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    def logprobs(sample: Sample) -> torch.Tensor:
        at, tokens = np.flatnonzero(sample.trained), torch.from_numpy(sample.tokens).long()
        logits = learner.model.module(input_ids=tokens[None]).logits[0, at - 1]
        heated = logits / torch.from_numpy(sample.temperatures).double()[at, None]
        return heated.log_softmax(-1).gather(1, tokens[at, None])

    with learner.model.holding(learner.model.without_adapter()), torch.no_grad():
        of_base = [logprobs(sample) for sample in rows]
    apart = torch.cat(of_base) - torch.cat([logprobs(sample) for sample in rows])
    weight = float(np.float32(1 / len(apart)))
    theirs = torch.autograd.grad(weight * 0.25 * (apart.exp() - apart - 1).sum(), parameters)
    assert_same(ours, torch.cat([g.flatten() for g in theirs]), 1e-10)


def test_the_divergence_from_the_base_is_reported_where_it_counts(learner: TorchLearner) -> None:
    rows = true_rows(learner)
    with learner.model.holding(learner.model.without_adapter()):
        base = true_rows(learner)
    apart = np.concatenate(
        [(b.logprobs - r.logprobs)[r.trained] for b, r in zip(base, rows, strict=True)]
    )

    result = learner.step(request(2, batch(rows), loss=LossSpec(kl_coef=0.1)))

    expected = float(np.mean(np.exp(apart) - apart - 1))
    assert result.metrics["training/kl_base"] == pytest.approx(expected, rel=1e-4)
    assert result.mismatch[0].mean <= 1e-5


# ── the parity gate ───────────────────────────────────────────────────────────────────────────


def true_rows(learner: TorchLearner, step: int = 2, temperature: float = 1.0) -> list[Sample]:
    rows = [conversation(i, policy_step=step, temperature=temperature) for i in range(50, 56)]
    return [scored(learner, made) for made in rows]


def test_the_gate_passes_what_the_sampler_should_have_said(learner: TorchLearner) -> None:
    result = learner.step(request(2, batch(true_rows(learner, temperature=0.7))))
    (found,) = result.mismatch
    assert found.age == 0
    assert found.mean <= 1e-5
    assert found.tokens == result.trained_tokens
    assert result.updates == 1


def off_by_one(sample: Sample) -> Sample:
    trained, logprobs = np.roll(sample.trained, 1), np.roll(sample.logprobs, 1)
    trained[0] = logprobs[0] = 0
    return replace(sample, trained=trained, logprobs=logprobs)


def wrong_rows(learner: TorchLearner, what: str) -> list[Sample]:
    if what == "mask":
        return [off_by_one(sample) for sample in true_rows(learner)]
    if what == "temperature":
        heated = true_rows(learner, temperature=1.0)
        cold = np.float32(0.6)
        return [replace(s, temperatures=np.where(s.trained, cold, 1)) for s in heated]
    values = learner.model.without_adapter() if what == "base" else learner._previous
    assert values is not None
    with learner.model.holding(values):
        return true_rows(learner)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("mask", "mask and logprobs are off by one: its values are the token before's"),
        ("temperature", "it did not apply the temperature: its values are those at 1"),
        ("base", "it did not apply the adapter: its values are the base model's"),
        ("stale", "it serves a stale adapter: its values are the last step's"),
    ],
)
def test_the_gate_stops_a_wrong_sampler_before_any_update(
    learner: TorchLearner, what: str, cause: str
) -> None:
    rows, before = wrong_rows(learner, what), learner.model.values()
    with pytest.raises(errors.ParityExceeded) as caught:
        learner.step(request(2, batch(rows)))
    text = str(caught.value)
    assert text.startswith("step 2: sampler and learner give ")
    assert "tokens of the current adapter different logprobs: mean |difference| " in text
    assert "nats (limit 1e-05), max " in text
    assert f"so the sampler is wrong: {cause}" in text
    assert text.endswith("Nothing was updated")
    after = learner.model.values()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_gate_finds_one_wrong_row_among_many_micro_batches(learner: TorchLearner) -> None:
    rows = true_rows(learner)
    rows[3] = replace(rows[3], logprobs=rows[3].logprobs * np.float32(1.5))
    with pytest.raises(errors.ParityExceeded, match="likely causes: a stale adapter, another temp"):
        learner.step(request(2, batch(rows)))


def test_the_gate_stops_logprobs_that_are_no_numbers(learner: TorchLearner) -> None:
    rows = true_rows(learner)
    rows[0] = replace(rows[0], logprobs=rows[0].logprobs + np.float32("nan"))
    with pytest.raises(errors.ParityExceeded, match=r"mean \|difference\| nan"):
        learner.step(request(2, batch(rows)))


def test_older_tokens_are_measured_but_not_judged(learner: TorchLearner) -> None:
    assert learner._previous is not None
    with learner.model.holding(learner._previous):
        old = true_rows(learner, step=1)
    result = learner.step(request(2, batch(old[:3] + true_rows(learner)[3:])))
    young, older = result.mismatch
    assert (young.age, older.age) == (0, 1)
    assert young.mean <= 1e-5 < older.mean
    assert 0 < older.ess < 1


def test_a_limit_of_none_lets_everything_pass(learner: TorchLearner) -> None:
    rows = wrong_rows(learner, "base")
    assert learner.step(request(2, batch(rows), parity_limit=None)).updates == 1


# ── steps ─────────────────────────────────────────────────────────────────────────────────────


def test_a_step_reports_what_it_did(learner: TorchLearner) -> None:
    rows = true_rows(learner)
    result = learner.step(request(2, batch(rows[:3]), batch(()), batch(rows[3:])))
    assert result.updates == 2
    assert result.trained_tokens == sum(s.num_trained for s in rows)
    metrics = dict(result.metrics)
    assert sorted(metrics) == [
        "training/clip_fraction",
        "training/entropy",
        "training/grad_norm",
        "training/kl_k3",
        "training/learning_rate",
        "training/loss",
        "training/micro_batches",
        "training/padded_tokens",
        "training/ratio_max",
        "training/ratio_mean",
        "training/ratio_p25",
        "training/ratio_p5",
        "training/ratio_p50",
        "training/ratio_p75",
        "training/ratio_p95",
    ]
    assert metrics["training/learning_rate"] == 1e-2
    assert metrics["training/loss"] == pytest.approx(-1, abs=0.3)
    assert 0 < metrics["training/entropy"] < np.log(512)
    # The second mini-batch was sampled before the first update moved the policy.
    assert metrics["training/kl_k3"] > 0
    assert metrics["training/ratio_max"] > 1.0001
    spread = [metrics[f"training/ratio_p{p}"] for p in (5, 25, 50, 75, 95)]
    assert spread == sorted(spread)
    assert spread[-1] <= metrics["training/ratio_max"]


def test_a_step_without_a_trained_token_changes_nothing(learner: TorchLearner) -> None:
    before = learner.model.files().id
    result = learner.step(request(2, batch([row(np.arange(9), [])][:0]), batch(())))
    assert (result.updates, result.trained_tokens, result.mismatch) == (0, 0, ())
    assert result.metrics["training/micro_batches"] == 0
    assert learner.model.files().id == before


def test_learning_raises_the_logprob_of_what_was_good(base: Path) -> None:
    learner = TorchLearner(learner_spec(base))
    good, bad = conversation(0, advantage=1.0), conversation(1, advantage=-1.0)

    def means() -> tuple[float, float]:
        scores = [learner.score(s.tokens)[s.trained].mean() for s in (good, bad)]
        return float(scores[0]), float(scores[1])

    before = means()
    for step in range(3):
        rows = [scored(learner, replace(s, policy_steps=s.policy_steps * 0)) for s in (good, bad)]
        learner.step(request(step, batch(rows), parity_limit=None))
    after = means()
    assert after[0] > before[0] + 0.5
    assert after[1] < before[1] - 0.5


def test_a_loss_that_is_no_number_makes_no_update(learner: TorchLearner) -> None:
    rows = true_rows(learner)
    rows[0] = replace(rows[0], advantages=rows[0].advantages * np.float32("nan"))
    before = learner.model.files().id
    with pytest.raises(errors.TurnwiseError) as caught:
        learner.step(request(2, batch(rows)))
    assert str(caught.value) == (
        "step 2, mini-batch 0: loss nan, gradient norm nan; this update was not made; "
        "lower the learning rate and resume from the last checkpoint"
    )
    assert learner.model.files().id == before


def test_the_gradient_is_clipped_to_its_norm(base: Path) -> None:
    clipped = TorchLearner(learner_spec(base, optimizer=OptimizerSpec(grad_clip_norm=1e-3)))
    free = TorchLearner(learner_spec(base, optimizer=OptimizerSpec(grad_clip_norm=0)))
    norms = {}
    for name, learner in (("clipped", clipped), ("free", free)):
        gradient(learner, batch(off_policy(learner)))
        before = learner._clip()
        after = learner._clip()
        norms[name] = (before, after)
    assert norms["clipped"][0] == norms["free"][0] == norms["free"][1] > 1e-2
    assert norms["clipped"][1] == pytest.approx(1e-3, rel=1e-3)


def test_score_is_the_model_s_own_logprob(learner: TorchLearner) -> None:
    tokens = conversation(3).tokens
    for temperature in (1.0, 0.5):
        plain = learner.model.plain_score(tokens, np.full(len(tokens), temperature, np.float32))
        assert np.abs(learner.score(tokens, temperature) - plain).max() <= 1e-5
    assert learner.score(tokens[:1]).tolist() == [0.0]
    with pytest.raises(errors.InvalidInput, match="temperature: 0 must be greater than 0"):
        learner.score(tokens, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.array([1, 2, 512])}, "512 is outside the model's vocabulary of 512 tokens"),
        ({"trained": np.array([True, False, True])}, "0 trains its first token, which nothing"),
        ({"temperatures": np.zeros(3)}, "at temperature 0; mask greedy turns"),
    ],
)
def test_a_sample_that_cannot_be_trained_is_refused(
    learner: TorchLearner, changes: dict[str, np.ndarray], message: str
) -> None:
    wrong = replace(row(np.array([1, 2, 3]), [(2, 3)]), **changes)
    with pytest.raises(errors.InvalidInput) as caught:
        learner.step(request(2, batch([wrong])))
    assert str(caught.value).startswith("sample of rollout rollout_a: ")
    assert message in str(caught.value)


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────


def test_two_steps_a_restart_and_two_steps_are_four_steps(base: Path, tmp_path: Path) -> None:
    straight = TorchLearner(learner_spec(base))
    train(straight, range(4))
    first = TorchLearner(learner_spec(base))
    train(first, range(2))
    position = DataPosition(next=4, ahead=(6,))
    checkpoint = first.save(1, str(tmp_path / "step_1"), position)
    second = TorchLearner(learner_spec(base, seed=99))
    assert second.restore(checkpoint) == position
    assert second.model.files().id == checkpoint.adapter.adapter_id == first.model.files().id
    train(second, range(2, 4))
    ours, theirs = second._state(), straight._state()
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = second.model.values(), straight.model.values()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_state_before_training_is_a_checkpoint_too(base: Path, tmp_path: Path) -> None:
    learner = TorchLearner(learner_spec(base))
    start = learner.save(-1, str(tmp_path / "start"))
    assert sorted(str(p.relative_to(start.path)) for p in Path(start.path).rglob("*.*")) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "meta.json",
        "state.safetensors",
    ]
    train(learner, [0])
    moved = learner.model.files().id
    learner.restore(start)
    assert learner.model.files().id == start.adapter.adapter_id != moved
    train(learner, [0])
    assert learner.model.files().id == moved


def test_a_checkpoint_that_was_touched_is_not_restored(
    learner: TorchLearner, tmp_path: Path
) -> None:
    checkpoint = learner.save(1, str(tmp_path / "step_1"))
    state = Path(checkpoint.path) / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(bytes(content))
    with pytest.raises(errors.Corrupted):
        learner.restore(checkpoint)


def test_a_checkpoint_of_another_base_or_shape_is_refused(
    learner: TorchLearner, base: Path, tmp_path: Path
) -> None:
    checkpoint = learner.save(1, str(tmp_path / "step_1"))
    other = TorchLearner(learner_spec(save_tiny_model(tmp_path / "other", seed=1)))
    with pytest.raises(errors.InvalidInput, match="was trained on another base model"):
        other.restore(checkpoint)
    wide = TorchLearner(learner_spec(base, lora=LoraSpec(rank=8, alpha=8.0)))
    with pytest.raises(errors.InvalidInput, match="is not the job's rank 8"):
        wide.restore(checkpoint)


def test_a_job_can_start_from_an_adapter(learner: TorchLearner, base: Path, tmp_path: Path) -> None:
    checkpoint = learner.save(1, str(tmp_path / "step_1"))
    started = TorchLearner(learner_spec(base, input_adapter=checkpoint.adapter.path))
    assert started.model.files().id == checkpoint.adapter.adapter_id
    assert started._optimizer.state == {}
