"""Losses against arithmetic by hand, and against autograd on another route."""

from __future__ import annotations

import math

import pytest
import torch

from turnwise.domain.training import LossName
from turnwise.rl.losses import LOSSES, cispo, importance_sampling, ppo, ratio, token_logprobs

BOUNDS = {"clip_low": 0.8, "clip_high": 1.2}

# (ratio, advantage): inside, above and below the bounds, with either sign.
CASES = [(1.0, 2.0), (1.5, 2.0), (1.5, -2.0), (0.5, 2.0), (0.5, -2.0), (1.1, 0.0), (0.9, -1.0)]


def values(name: LossName, r: float, advantage: float) -> tuple[float, float]:
    """Loss of one token, and its derivative by the logprob."""
    logprob = torch.tensor([math.log(r) - 3.0], dtype=torch.float64, requires_grad=True)
    sampled = torch.tensor([-3.0], dtype=torch.float64)
    loss = LOSSES[name](logprob, sampled, torch.tensor([advantage]).double(), **BOUNDS)
    loss.sum().backward()
    assert logprob.grad is not None
    return loss.item(), logprob.grad.item()


def test_every_loss_name_has_its_function() -> None:
    assert dict(LOSSES) == {
        LossName.PPO: ppo,
        LossName.CISPO: cispo,
        LossName.IMPORTANCE_SAMPLING: importance_sampling,
    }


@pytest.mark.parametrize(("r", "advantage"), CASES)
def test_ppo_by_hand(r: float, advantage: float) -> None:
    expected = -min(r * advantage, min(max(r, 0.8), 1.2) * advantage)
    # Past the bound that the advantage pushes towards there is no gradient; else it is -r A.
    stopped = (advantage > 0 and r > 1.2) or (advantage < 0 and r < 0.8)
    slope = 0.0 if stopped else -r * advantage
    assert values(LossName.PPO, r, advantage) == pytest.approx((expected, slope), abs=1e-12)


@pytest.mark.parametrize(("r", "advantage"), CASES)
def test_cispo_by_hand_keeps_the_gradient_of_a_clipped_token(r: float, advantage: float) -> None:
    weight = min(max(r, 0.8), 1.2)
    expected = (-weight * advantage * (math.log(r) - 3.0), -weight * advantage)
    assert values(LossName.CISPO, r, advantage) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("r", "advantage"), CASES)
def test_importance_sampling_by_hand_is_never_clipped(r: float, advantage: float) -> None:
    expected = (-r * advantage, -r * advantage)
    assert values(LossName.IMPORTANCE_SAMPLING, r, advantage) == pytest.approx(expected, abs=1e-12)


def test_on_policy_all_losses_have_the_gradient_of_reinforce() -> None:
    slopes = [values(name, 1.0, 0.7)[1] for name in LossName]
    assert slopes == pytest.approx([-0.7] * 3)


def test_bounds_may_be_unequal() -> None:
    r = torch.tensor([1.25, 0.85])
    asymmetric = ppo(r.log(), torch.zeros(2), torch.ones(2), clip_low=0.8, clip_high=1.28)
    assert asymmetric.tolist() == pytest.approx([-1.25, -0.85])


def test_an_extreme_ratio_stays_finite() -> None:
    logprobs = torch.tensor([0.0, -200.0], requires_grad=True)
    extreme = ratio(logprobs, torch.tensor([-200.0, 0.0]))
    assert extreme.tolist() == pytest.approx([math.exp(20), math.exp(-20)])
    importance_sampling(logprobs, torch.tensor([-200.0, 0.0]), torch.ones(2)).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_chunked_logprobs_are_the_log_softmax_and_its_gradient(chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 11, (7,), generator=generator)
    heat = torch.rand(7, generator=generator) + 0.5
    upstream = torch.randn(7, generator=generator, dtype=torch.float64)

    plain = torch.log_softmax(hidden @ weight.T / heat.unsqueeze(1), -1)
    expected = plain.gather(1, targets.unsqueeze(1)).squeeze(1)
    logprobs, entropies = token_logprobs(hidden, weight, targets, heat, chunk=chunk)

    assert torch.allclose(logprobs, expected, atol=1e-12)
    assert torch.allclose(entropies, torch.distributions.Categorical(logits=plain).entropy())
    assert not entropies.requires_grad
    (ours,) = torch.autograd.grad((logprobs * upstream).sum(), hidden)
    (theirs,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_temperature_belongs_to_the_token() -> None:
    hidden, weight = torch.eye(2), torch.eye(2) * 4
    logprobs, _ = token_logprobs(hidden, weight, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    assert logprobs.tolist() == pytest.approx(
        [-math.log1p(math.exp(-4)), -math.log1p(math.exp(-2))], rel=1e-5
    )


def test_half_precision_logits_are_normalised_in_single() -> None:
    hidden = torch.randn(4, 8).bfloat16().requires_grad_()
    weight = torch.randn(16, 8).bfloat16()
    logprobs, _ = token_logprobs(hidden, weight, torch.arange(4), torch.ones(4))
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
