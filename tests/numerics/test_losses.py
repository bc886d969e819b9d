"""Losses against arithmetic by hand, and against autograd on another route."""

from __future__ import annotations

import math

import pytest
import torch

from turnwise.domain.training import LossName, LossSpec
from turnwise.rl.losses import (
    LOSSES,
    cispo,
    gspo,
    importance_sampling,
    k3,
    ppo,
    ratio,
    token_logprobs,
    token_losses,
)

BOUNDS = {"clip_low": 0.8, "clip_high": 1.2}

# (ratio, advantage): inside, above and below the bounds, with either sign.
CASES = [(1.0, 2.0), (1.5, 2.0), (1.5, -2.0), (0.5, 2.0), (0.5, -2.0), (1.1, 0.0), (0.9, -1.0)]


def values(name: LossName, r: float, advantage: float) -> tuple[float, float]:
    """Loss of one token, and its derivative by the logprob."""
    logprob = torch.tensor([math.log(r) - 3.0], dtype=torch.float64, requires_grad=True)
    sampled = torch.tensor([-3.0], dtype=torch.float64)
    turns = torch.tensor([0])
    loss = LOSSES[name](logprob, sampled, torch.tensor([advantage]).double(), turns=turns, **BOUNDS)
    loss.sum().backward()
    assert logprob.grad is not None
    return loss.item(), logprob.grad.item()


def test_every_loss_name_has_its_function() -> None:
    assert dict(LOSSES) == {
        LossName.PPO: ppo,
        LossName.CISPO: cispo,
        LossName.IMPORTANCE_SAMPLING: importance_sampling,
        LossName.GSPO: gspo,
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
    assert slopes == pytest.approx([-0.7] * 4)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_gspo_by_hand_clips_a_turn_as_a_whole(advantage: float) -> None:
    apart = [[0.5, -0.1], [0.02], [-0.9, 0.1, -0.1]]  # logprob - sampled, by turn
    flat = torch.tensor([d for turn in apart for d in turn]).double()
    logprobs = (flat - 3.0).requires_grad_()
    turns = torch.tensor([0, 0, 1, 2, 2, 2])

    losses = gspo(
        logprobs,
        torch.full_like(flat, -3.0),
        torch.full_like(flat, advantage),
        turns=turns,
        **BOUNDS,
    )
    (slopes,) = torch.autograd.grad(losses.sum(), logprobs)

    expected, slope = [], []
    for turn in apart:
        s = math.prod(math.exp(d) for d in turn) ** (1 / len(turn))
        expected += [-min(s * advantage, min(max(s, 0.8), 1.2) * advantage)] * len(turn)
        stopped = (advantage > 0 and s > 1.2) or (advantage < 0 and s < 0.8)
        slope += [0.0 if stopped else -s * advantage] * len(turn)
    assert losses.tolist() == pytest.approx(expected)
    assert slopes.tolist() == pytest.approx(slope)


@pytest.mark.parametrize("name", list(LossName))
def test_losses_do_not_depend_on_the_order_of_turns(name: LossName) -> None:
    generator = torch.Generator().manual_seed(1)
    new, old, advantages = torch.randn(3, 6, generator=generator).double()
    turns = torch.tensor([0, 0, 1, 2, 2, 2])
    order = torch.tensor([3, 5, 2, 0, 4, 1])

    there = token_losses(LossSpec(name=name), new, old, advantages, turns)
    back = token_losses(
        LossSpec(name=name), new[order], old[order], advantages[order], turns[order]
    )

    torch.testing.assert_close(back, there[order])


@pytest.mark.parametrize("name", list(LossName))
def test_truncated_weights_replace_the_samplers_part_of_the_ratio(name: LossName) -> None:
    sampled = torch.tensor([-3.0, -3.0, -3.0]).double()
    start = sampled + torch.tensor([0.0, math.log(5.0), math.log(0.25)])
    logprobs = (start + torch.tensor([0.1, -0.1, 0.05])).requires_grad_()
    advantages, turns = torch.tensor([1.0, -2.0, 3.0]).double(), torch.tensor([0, 1, 2])
    spec = LossSpec(name=name, tis_cap=2.0)

    found = token_losses(spec, logprobs, sampled, advantages, turns, start=start)

    plain = LOSSES[name](logprobs, start, advantages, turns=turns, **BOUNDS)
    by_hand = torch.tensor([1.0, 2.0, 0.25]) * plain
    torch.testing.assert_close(found, by_hand)
    (ours,) = torch.autograd.grad(found.sum(), logprobs, retain_graph=True)
    (theirs,) = torch.autograd.grad(by_hand.sum(), logprobs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", list(LossName))
def test_in_one_update_truncated_weights_are_reinforce_with_a_cap(name: LossName) -> None:
    logprobs = torch.tensor([-1.0, -2.0]).double().requires_grad_()
    sampled = logprobs.detach() - torch.tensor([math.log(7.0), math.log(0.5)])
    spec = LossSpec(name=name, tis_cap=2.0)

    losses = token_losses(
        spec, logprobs, sampled, torch.tensor([1.0, -1.0]).double(), torch.tensor([0, 1])
    )

    (slopes,) = torch.autograd.grad(losses.sum(), logprobs)
    assert slopes.tolist() == pytest.approx([-2.0, 0.5])


def test_k3_is_the_divergence_from_the_base_on_average() -> None:
    """Enumerated: the mean of k3 over the policy's own tokens is KL(policy || base)."""
    generator = torch.Generator().manual_seed(2)
    policy, base = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)

    estimate = (policy.exp() * k3(policy, base)).sum()

    exact = torch.nn.functional.kl_div(base, policy, log_target=True, reduction="sum")
    assert estimate.item() == pytest.approx(exact.item())
    assert (k3(policy, base) > 0).all()
    assert k3(policy, policy).tolist() == [0.0] * 9
    assert k3(torch.zeros(1), torch.tensor([-1e4])).isfinite().all()
    assert k3(torch.tensor([-1e4]), torch.zeros(1)).isfinite().all()


def test_the_divergence_is_added_by_its_coefficient_with_a_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0]).double().requires_grad_()
    base = torch.tensor([-1.5, -1.5]).double()
    zeros, turns = torch.zeros(2).double(), torch.tensor([0, 1])

    losses = token_losses(LossSpec(kl_coef=0.1), logprobs, zeros, zeros, turns, base=base)

    (slopes,) = torch.autograd.grad(losses.sum(), logprobs)
    d = [-0.5, 0.5]
    assert losses.tolist() == pytest.approx([0.1 * (math.exp(x) - x - 1) for x in d])
    assert slopes.tolist() == pytest.approx([0.1 * (1 - math.exp(x)) for x in d])


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
