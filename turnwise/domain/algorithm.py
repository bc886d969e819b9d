"""Which advantage and which loss: the algorithms by name, each with its vetted settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from turnwise.domain.training import AdvantageMethod, Aggregation, LossName


class AlgorithmName(StrEnum):
    """The tag of the `algorithm` block. What each stands for is in `ALGORITHMS`."""

    CUSTOM = "custom"
    GRPO = "grpo"
    GRPO_PER_TURN = "grpo_per_turn"
    DAPO = "dapo"
    DR_GRPO = "dr_grpo"
    GSPO = "gspo"
    CISPO = "cispo"
    RLOO = "rloo"
    OPO = "opo"
    GPG = "gpg"
    REINFORCE = "reinforce"
    REINFORCE_PP = "reinforce_pp"
    REINFORCE_PP_BASELINE = "reinforce_pp_baseline"
    GRPO_PASSK = "grpo_passk"
    PKPO = "pkpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmSpec:
    """Advantage and loss; the clip thresholds are absolute bounds on the ratio.

    `custom` combines any method with any loss, by default as SageMaker does; every other name
    stands for the method and the loss of its paper, and only the rest may be set beside it.
    """

    name: AlgorithmName = AlgorithmName.CUSTOM
    advantage_method: AdvantageMethod = AdvantageMethod.GROUP_BASED
    loss_fn: LossName = LossName.PPO
    clip_low_threshold: float = 0.8
    clip_high_threshold: float = 1.2
    tis_cap: float = 0.0  # largest weight of a token for sampler and learner being apart; 0: off
    kl_coef: float = 0.0  # of the k3 divergence from the base model; 0: off
    aggregation: Aggregation = Aggregation.ROLLOUT_MEAN
    turn_discount: float = 1.0  # gamma of the methods whose unit is the turn
    pass_k: int = 4  # of pkpo


def _spec(
    name: AlgorithmName,
    method: AdvantageMethod,
    loss: LossName = LossName.PPO,
    bounds: tuple[float, float] = (0.8, 1.2),
    aggregation: Aggregation = Aggregation.ROLLOUT_MEAN,
) -> AlgorithmSpec:
    return AlgorithmSpec(
        name=name,
        advantage_method=method,
        loss_fn=loss,
        clip_low_threshold=bounds[0],
        clip_high_threshold=bounds[1],
        aggregation=aggregation,
    )


_A, _N, _L = AdvantageMethod, AlgorithmName, LossName

#: Each algorithm as its paper has it, with the paper, but for a KL term (see `kl_coef`). Those that
#: are plain policy gradients there take `importance_sampling`, which is that on policy and stays
#: unbiased off it, and weigh all tokens alike: a rollout's log-probability is a sum over tokens,
#: and OPO's baseline by length is the best only for that sum. RLOO is one, too, but clipped here,
#: as TRL's, for steps off policy.
ALGORITHMS: dict[AlgorithmName, tuple[AlgorithmSpec, str]] = {
    each.name: (each, paper)
    for each, paper in (
        (AlgorithmSpec(), "SageMaker AgentRFT"),
        (_spec(_N.GRPO, _A.GROUP_BASED), "arXiv 2402.03300"),
        (_spec(_N.GRPO_PER_TURN, _A.GROUP_BASED_PER_TURN), "GTPO, arXiv 2511.14846"),
        (
            _spec(_N.DAPO, _A.GROUP_BASED, bounds=(0.8, 1.28), aggregation=Aggregation.TOKEN_MEAN),
            "arXiv 2503.14476",
        ),
        (
            _spec(_N.DR_GRPO, _A.DR_GRPO, aggregation=Aggregation.TOKEN_SUM_NORM),
            "arXiv 2503.20783",
        ),
        (_spec(_N.GSPO, _A.GROUP_BASED, _L.GSPO, (0.9997, 1.0004)), "arXiv 2507.18071"),
        # Upper bound alone, as in the paper; the number is the one that SageMaker suggests.
        (
            _spec(_N.CISPO, _A.GROUP_BASED, _L.CISPO, (0.0, 6.0), Aggregation.TOKEN_MEAN),
            "arXiv 2506.13585",
        ),
        (_spec(_N.RLOO, _A.RLOO), "arXiv 2402.14740"),
        (
            _spec(_N.OPO, _A.OPO, _L.IMPORTANCE_SAMPLING, aggregation=Aggregation.TOKEN_MEAN),
            "arXiv 2505.23585",
        ),
        (
            _spec(_N.GPG, _A.GPG, _L.IMPORTANCE_SAMPLING, aggregation=Aggregation.TOKEN_MEAN),
            "arXiv 2504.02546",
        ),
        (
            _spec(
                _N.REINFORCE,
                _A.MONTE_CARLO,
                _L.IMPORTANCE_SAMPLING,
                aggregation=Aggregation.TOKEN_MEAN,
            ),
            "Williams 1992",
        ),
        (
            _spec(_N.REINFORCE_PP, _A.REINFORCE_PP, aggregation=Aggregation.TOKEN_MEAN),
            "arXiv 2501.03262",
        ),
        (
            _spec(
                _N.REINFORCE_PP_BASELINE,
                _A.REINFORCE_PP_BASELINE,
                aggregation=Aggregation.TOKEN_MEAN,
            ),
            "arXiv 2501.03262",
        ),
        (_spec(_N.GRPO_PASSK, _A.GRPO_PASSK), "arXiv 2503.19595"),
        (_spec(_N.PKPO, _A.PKPO), "arXiv 2505.15201"),
    )
}
