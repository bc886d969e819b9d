"""What the learner is given, and what it leaves: Sample, MiniBatch, StepRequest, Checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from turnwise.domain.rollout import Floats, Tokens


class LossName(StrEnum):
    """The losses; formulas in `turnwise.rl.losses`."""

    PPO = "ppo"
    CISPO = "cispo"
    IMPORTANCE_SAMPLING = "importance_sampling"
    GSPO = "gspo"


class AdvantageMethod(StrEnum):
    """The advantage estimators; formulas in `turnwise.rl.advantages`."""

    GROUP_BASED = "group_based"
    GROUP_BASED_PER_TURN = "group_based_per_turn"
    RLOO = "rloo"
    GRPO_PASSK = "grpo_passk"
    PKPO = "pkpo"
    DR_GRPO = "dr_grpo"
    OPO = "opo"
    GPG = "gpg"
    REINFORCE_PP = "reinforce_pp"
    REINFORCE_PP_BASELINE = "reinforce_pp_baseline"
    MONTE_CARLO = "monte_carlo"

    @property
    def is_per_turn(self) -> bool:
        """Whether it tells the turns of a rollout apart, and so reads one reward per turn."""
        return self in (
            AdvantageMethod.GROUP_BASED_PER_TURN,
            AdvantageMethod.REINFORCE_PP,
            AdvantageMethod.MONTE_CARLO,
        )

    @property
    def compares_with_step(self) -> bool:
        """Whether it whitens over a step, so that a group by itself does not tell what is 0."""
        return self in (AdvantageMethod.REINFORCE_PP, AdvantageMethod.REINFORCE_PP_BASELINE)

    @property
    def is_zero_for_constant_groups(self) -> bool:
        """Whether siblings of equal rewards teach nothing."""
        return self is not AdvantageMethod.MONTE_CARLO and not self.compares_with_step


class Aggregation(StrEnum):
    """How token losses become one number. None depends on how rollouts were split into rows."""

    ROLLOUT_MEAN = "rollout-mean"  # mean over rollouts of the mean over their trained tokens
    TOKEN_MEAN = "token-mean"  # mean over all trained tokens
    TOKEN_SUM_NORM = "token-sum-norm"  # sum over trained tokens / a constant, as in Dr. GRPO


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training row. All arrays have length T and line up with `tokens`.

    `trained[t]` says that token t was sampled and is to be learned; the other per-token values
    are 0 (temperature 1) elsewhere. Position 0 is never trained: nothing predicts it.
    """

    rollout_id: str
    tokens: Tokens  # [T] int32
    trained: npt.NDArray[np.bool_]  # [T]
    logprobs: Floats  # [T] the sampler's, temperature applied
    advantages: Floats  # [T]
    temperatures: Floats  # [T] each token's own
    policy_steps: Tokens  # [T] int32, of the policy that sampled the token

    @property
    def num_trained(self) -> int:
        """How many tokens it trains."""
        return int(self.trained.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSample:
    """A sample with each token's weight: a mini-batch's loss is sum(weight * token loss)."""

    sample: Sample
    weights: Floats  # [T]; 0 where not trained


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """What one optimizer update learns from."""

    samples: tuple[WeightedSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """Which loss, with absolute bounds on the ratio exp(new logprob - sampler's logprob).

    With `tis_cap` C > 0 the ratio is taken to the learner as it was when the step began, and each
    token weighs min(exp(that logprob - sampler's logprob), C); 0: off. `kl_coef` times the k3
    divergence from the base model is added; 0: off, and nothing is computed for it.
    """

    name: LossName = LossName.PPO
    clip_low: float = 0.8
    clip_high: float = 1.2
    tis_cap: float = 0.0
    kl_coef: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """Shape of the adapter."""

    rank: int = 32
    alpha: float = 64.0
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """AdamW, with gradient clipping by global norm (0 switches clipping off)."""

    learning_rate: float = 4e-5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What a learner process is started with. `input_adapter` is a PEFT folder to start from."""

    base_model: str
    lora: LoraSpec
    optimizer: OptimizerSpec
    seed: int
    tokens_per_micro_batch: int = 8192
    share_prefixes: bool = True  # compute what rows begin alike with once per forward pass
    device: str = "cpu"
    threads: int = 1
    input_adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRequest:
    """One training step: 1..m optimizer updates on disjoint mini-batches."""

    step: int
    mini_batches: tuple[MiniBatch, ...]
    loss: LossSpec
    learning_rate: float
    parity_limit: float | None = 1e-5  # mean |difference| on tokens of the current policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """Sampler against learner on the same tokens, before the step's first update, for one age."""

    age: int  # step - policy_step of the tokens
    tokens: int
    mean: float  # mean |learner - sampler|, nats
    max: float
    k3: float  # mean of r - log r - 1, r = exp(learner - sampler)
    ess: float  # effective sample size, (sum r)^2 / (n sum r^2), in (0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did. `metrics` holds training/* values; `mismatch` one entry per age seen."""

    step: int
    updates: int
    trained_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    mismatch: tuple[Mismatch, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What a sampler serves. `adapter_id` is a sha256 over configuration and tensors."""

    adapter_id: str
    path: str  # a PEFT folder


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPosition:
    """Which places of a job's plan have been trained: those below `next`, and those in `ahead`.

    >>> position = DataPosition.of({0, 1, 2, 4})
    >>> position
    DataPosition(next=3, ahead=(4,))
    >>> sorted(position.trained), position.count
    ([0, 1, 2, 4], 4)
    """

    next: int = 0
    ahead: tuple[int, ...] = ()

    @classmethod
    def of(cls, trained: Collection[int]) -> DataPosition:
        """The position when these places are trained."""
        next_place = 0
        while next_place in trained:
            next_place += 1
        return cls(next=next_place, ahead=tuple(sorted(p for p in trained if p > next_place)))

    @property
    def trained(self) -> frozenset[int]:
        """Every place that is trained."""
        return frozenset(range(self.next)).union(self.ahead)

    @property
    def count(self) -> int:
        """How many are."""
        return self.next + len(self.ahead)


NOTHING_TRAINED = DataPosition()

#: Parts of a checkpoint's folder: the PEFT folder, the rest of the learner's state, what it is.
ADAPTER_FOLDER = "adapter"
STATE_FILE = "state.safetensors"
META_FILE = "meta.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Resumable state after `step`, in one folder: adapter/, optimizer, RNG, data position, meta.

    `step` -1 is the state before any training. `sha256` covers every file of the folder.
    """

    step: int
    path: str
    sha256: str
    adapter: Adapter
