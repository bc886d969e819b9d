"""Policy losses per token, and the token logprobs they start from.

A loss is a function of a token's logprob under the policy being trained (with gradient), its
logprob as the sampler gave it, and its advantage. It returns one number per token; the reduction
is `sum(weight * token_loss)` with the weights of `domain.training.WeightedSample`. In all of them
r = exp(logprob - sampled_logprob), and clip bounds are absolute, as in SageMaker and Tinker:
0.8 and 1.2 stand for PPO's 1 - 0.2 and 1 + 0.2. `token_losses` adds the options of a `LossSpec`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from turnwise.domain.training import LossName, LossSpec

# exp(20) is 5e8: far beyond any ratio that means something, and squares stay finite in fp32.
MAX_LOG_RATIO = 20.0

# Elements of one chunk of logits. On a CPU 2^20 fp32 numbers (4 MB) stay in the cache; a GPU's
# matrix units want hundreds of rows even at a vocabulary of 150,000.
_CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}


class Loss(Protocol):
    """The signature all losses share. Every tensor is [N], one entry per trained token.

    `turns` says which turn a token belongs to, as an index in 0..N-1; gspo alone needs it.
    """

    def __call__(
        self,
        logprobs: Tensor,
        sampled_logprobs: Tensor,
        advantages: Tensor,
        *,
        clip_low: float,
        clip_high: float,
        turns: Tensor,
    ) -> Tensor:
        """Loss per token, [N]."""
        ...


def ratio(logprobs: Tensor, sampled_logprobs: Tensor) -> Tensor:
    """r = exp(logprob - sampled_logprob), [N], the exponent kept within +-20.

    A token beyond that has gradient 0 through r.
    """
    return (logprobs - sampled_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ppo(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    **_unused: Tensor,
) -> Tensor:
    """-min(r A, clip(r, clip_low, clip_high) A), [N].

    A token has no gradient once r has moved past the bound in the direction its advantage asks
    for; moved the other way it keeps its gradient. A = 0 gives 0.
    PPO: https://arxiv.org/abs/1707.06347; unequal bounds: DAPO, https://arxiv.org/abs/2503.14476.
    """
    r = ratio(logprobs, sampled_logprobs)
    return -torch.minimum(r * advantages, r.clamp(clip_low, clip_high) * advantages)


def cispo(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    **_unused: Tensor,
) -> Tensor:
    """-stop_gradient(clip(r, clip_low, clip_high)) A logprob, [N].

    Every token keeps a gradient, a clipped one with the bound as its weight. The loss itself is
    not 0 on policy: only its gradient means something.
    CISPO: https://arxiv.org/abs/2506.13585.
    """
    r = ratio(logprobs, sampled_logprobs).detach()
    return -r.clamp(clip_low, clip_high) * advantages * logprobs


def importance_sampling(
    logprobs: Tensor, sampled_logprobs: Tensor, advantages: Tensor, **_unused: object
) -> Tensor:
    """-r A, [N], with the gradient flowing through r. The clip bounds are not used.

    Unbiased off policy, with a variance that grows with the distance. On policy its gradient is
    that of REINFORCE. As Tinker's `importance_sampling`.
    """
    return -ratio(logprobs, sampled_logprobs) * advantages


def gspo(
    logprobs: Tensor,
    sampled_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    turns: Tensor,
) -> Tensor:
    """-min(s A, clip(s, clip_low, clip_high) A), [N], with s the ratio of the token's whole turn.

    s = exp(mean over the turn's tokens of logprob - sampled_logprob), so that a turn is clipped as
    a whole, and the bounds are much nearer to 1. The paper's sequence is what the model answers
    to one prompt: here a turn, not a rollout. A turn lies in one row, whichever way a rollout was
    split. Under `rollout-mean` a rollout of one turn has the paper's objective; turns of one
    rollout weigh by their tokens. GSPO: https://arxiv.org/abs/2507.18071.
    """
    log_s = turn_means(logprobs - sampled_logprobs, turns)
    return ppo(log_s, torch.zeros_like(log_s), advantages, clip_low=clip_low, clip_high=clip_high)


def turn_means(values: Tensor, turns: Tensor) -> Tensor:
    """Each token's value replaced by the mean over its turn, [N]."""
    empty = torch.zeros_like(values)
    sums = empty.index_add(0, turns, values)
    counts = empty.index_add(0, turns, torch.ones_like(values))
    return sums[turns] / counts[turns]


LOSSES: dict[LossName, Loss] = {
    LossName.PPO: ppo,
    LossName.CISPO: cispo,
    LossName.IMPORTANCE_SAMPLING: importance_sampling,
    LossName.GSPO: gspo,
}


def token_losses(
    loss: LossSpec,
    logprobs: Tensor,  # [N] with gradient
    sampled_logprobs: Tensor,  # [N] the sampler's
    advantages: Tensor,  # [N]
    turns: Tensor,  # [N] int64
    *,
    start: Tensor | None = None,  # [N] the learner's when the step began; None: as now
    base: Tensor | None = None,  # [N] the base model's; needed for kl_coef
) -> Tensor:
    """The loss of each token with all that its spec says, [N].

    With `tis_cap` C the loss is taken against `start` in the sampler's place and multiplied by
    `truncated_weights`. Without, ratios to the sampler already hold that correction. With one
    update per step every ratio is then 1: REINFORCE with truncated weights. With `kl_coef`,
    kl_coef times `k3` is added.
    """
    reference = sampled_logprobs
    if loss.tis_cap:
        reference = logprobs.detach() if start is None else start
    found = LOSSES[loss.name](
        logprobs,
        reference,
        advantages,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        turns=turns,
    )
    if loss.tis_cap:
        found = truncated_weights(reference, sampled_logprobs, loss.tis_cap) * found
    if base is not None:
        found = found + loss.kl_coef * k3(logprobs, base)
    return found


def truncated_weights(start: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(exp(start - sampled_logprob), cap) without gradient, [N].

    Truncated importance sampling, Ionides 2008; between sampler and learner as verl's `token`
    level of rollout correction.
    """
    return ratio(start, sampled_logprobs).detach().clamp(max=cap)


def k3(logprobs: Tensor, base: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = base - logprob, [N]: per token, an estimate of KL(policy || base).

    Never negative, 0 only where both agree; d is kept within +-20, beyond which the gradient is 0.
    http://joschu.net/blog/kl-approx.html; in the loss as in GRPO, arXiv 2402.03300.
    """
    d = (base - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d.exp() - d - 1


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] without keeping logits for the backward.

    Each token's result is one number, so its gradient by h is one vector:
    (W[target] - sum_v p_v W[v]) / temperature. The forward computes it while the chunk's
    probabilities are at hand; the backward multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperatures: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        jacobian = torch.empty_like(hidden)
        for at in range(0, len(hidden), chunk):
            part = slice(at, at + chunk)
            heat = temperatures[part].to(wide).unsqueeze(1)
            logp = torch.log_softmax((hidden[part] @ weight.T).to(wide).div_(heat), dim=1)
            target = targets[part].unsqueeze(1)
            logprobs[part] = logp.gather(1, target).squeeze(1)
            p = logp.exp()
            entropies[part] = -torch.einsum("nv,nv->n", p, logp)
            slope = p.neg_()
            slope.scatter_add_(1, target, torch.ones_like(heat))
            jacobian[part] = slope.div_(heat).to(weight.dtype) @ weight
        ctx.save_for_backward(jacobian)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        return (grads[0].to(jacobian.dtype).unsqueeze(1) * jacobian, None, None, None, None)


def token_logprobs(
    hidden: Tensor,  # [N, H] the decoder's output at the position before each token
    weight: Tensor,  # [V, H] the output head, frozen
    targets: Tensor,  # [N] int64, the tokens
    temperatures: Tensor,  # [N] each token's own, > 0
    *,
    chunk: int | None = None,  # tokens projected at once
) -> tuple[Tensor, Tensor]:
    """Logprob of each target, temperature applied, and the entropy there (no gradient): [N] each.

    Only the positions handed in are projected, a chunk at a time, so that memory is that of one
    chunk's logits however long the batch. fp32 at least, whatever `hidden` is in.
    """
    if chunk is None:
        chunk = max(16, _CHUNK_ELEMENTS.get(hidden.device.type, 1 << 20) // weight.shape[0])
    logprobs, entropies = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, temperatures, chunk
    )
    return logprobs, entropies
