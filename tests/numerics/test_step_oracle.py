"""A whole step, from closed groups to the adapter after it, against arithmetic by another route.

The other route shares no code with `rl`, `loop.assemble` and `training`: transformers and PEFT,
one forward per turn (no merged rows, no packing, no chunked head), advantages by `statistics`,
AdamW's first update written out.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import builders
from tests.tiny import save_tiny_model
from tests.unit.training.samples import learner_spec
from turnwise.domain.algorithm import AlgorithmSpec
from turnwise.domain.job import BatchSpec
from turnwise.domain.rollout import (
    Blame,
    Delivery,
    Fault,
    Policy,
    RolloutStatus,
    SamplingParams,
    Trajectory,
)
from turnwise.domain.training import (
    AdvantageMethod,
    Aggregation,
    Checkpoint,
    LossName,
    OptimizerSpec,
)
from turnwise.loop.assemble import ClosedGroup, assemble
from turnwise.training.learner import TorchLearner

STEP = 1  # trained on tokens of policy 0, so that ratios may be off 1 and pass the parity gate
LOW, HIGH = 0.9, 1.1
DISCOUNT = 0.8
PASS_K = 2
TURN_TOKENS = 30
RATE = 0.01
#: A large eps keeps AdamW's first update, g / (|g| + eps), from magnifying rounding errors of g.
OPTIMIZER = OptimizerSpec(eps=1e-3, weight_decay=0.1, grad_clip_norm=0.05)


@dataclass(frozen=True)
class TurnRow:
    """One trained turn: what the model had read, what it said, and its advantage."""

    rollout_id: str
    tokens: list[int]
    logprobs: list[float]  # of the last len(logprobs) tokens
    temperature: float
    advantage: float = 0.0


# ── the data ──────────────────────────────────────────────────────────────────────────────────


class Talk:
    """Grows one rollout; what the sampler said of its tokens is filled in later."""

    def __init__(self, name: str, random: np.random.Generator) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.turns: list[Any] = []
        self._random = random

    def turn(self, after: int | None = None, *, heat: float = 1.0, lost: bool = False) -> int:
        """A turn that extends completion `after`, or starts anew; its completion's node."""
        nodes, turn = builders.turn_with_nodes(
            len(self.turns),
            prompt=self._random.integers(0, 512, self._random.integers(2, 6)),
            completion=self._random.integers(0, 512, self._random.integers(1, 6)),
            parent=-1 if after is None else after,
            first_node=len(self.nodes),
            policy=Policy(policy_step=STEP - 1),
            sampling=SamplingParams(temperature=heat),
            delivery=Delivery.UNDELIVERED if lost else Delivery.DELIVERED,
        )
        self.nodes += nodes
        self.turns.append(turn)
        return turn.leaf

    def ends(self, *rewards: float) -> Trajectory:
        """The rollout's record; failed without a reward."""
        ending: dict[str, Any] = {"status": RolloutStatus.REWARDED, "rewards": rewards}
        if not rewards:
            fault = Fault(blame=Blame.AGENT, code="agent_failed")
            ending = {"status": RolloutStatus.FAILED, "fault": fault}
        rollout = builders.rollout(self.name, **ending)
        return Trajectory(rollout=rollout, nodes=tuple(self.nodes), turns=tuple(self.turns))


def conversations() -> list[list[Trajectory]]:
    """Four groups: a varied one, a constant one, one without a pair, and a pair."""
    random = np.random.default_rng(5)

    def talk(name: str) -> Talk:
        return Talk(name, random)

    chain, fork, short, failed = talk("chain"), talk("fork"), talk("short"), talk("failed")
    chain.turn(chain.turn(chain.turn(heat=0.7), heat=1.4))
    first = fork.turn()
    fork.turn(first)
    fork.turn(first)  # the same beginning, another question
    fork.turn()  # a history written anew
    short.turn()
    failed.turn(failed.turn())
    same, equal, alone, gone = talk("same"), talk("equal"), talk("alone"), talk("gone")
    for each in (same, equal, alone, gone):
        each.turn(each.turn())
    greedy, broken = talk("greedy"), talk("broken")
    greedy.turn(greedy.turn(heat=0.0))
    broken.turn(lost=True)
    broken.turn()
    return [
        [chain.ends(0.5, 0.0, 1.0), fork.ends(0.25), short.ends(-1.0), failed.ends()],
        [same.ends(2.0), equal.ends(2.0)],
        [alone.ends(1.0), gone.ends()],
        [greedy.ends(0.0), broken.ends(1.0)],
    ]


def with_logprobs(trajectory: Trajectory, model: PeftModel) -> Trajectory:
    """As a sampler a policy behind would have said: off by a few tenths of a nat."""
    random = np.random.default_rng(len(trajectory.rollout.rollout_id))
    nodes = list(trajectory.nodes)
    for turn in trajectory.turns:
        tokens = np.concatenate([node.tokens for node in trajectory.path(turn.leaf)]).tolist()
        with torch.no_grad():
            exact = logprobs_of(model, tokens, turn.completion_tokens, turn.sampling.temperature)
        said = (exact.numpy() + random.normal(0, 0.15, len(exact))).astype(np.float32)
        nodes[turn.leaf] = replace(nodes[turn.leaf], logprobs=said)
    return replace(trajectory, nodes=tuple(nodes))


# ── the other route ───────────────────────────────────────────────────────────────────────────


def logprobs_of(model: PeftModel, tokens: list[int], last: int, heat: float) -> torch.Tensor:
    """Logprobs of the last tokens, [last], by one forward."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0, -last - 1 : -1]
    table = (logits / (heat or 1.0)).log_softmax(-1)
    return table.gather(1, torch.tensor(tokens[-last:])[:, None])[:, 0]


def normalised(values: Sequence[float]) -> list[float]:
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / (spread + 1e-6) if spread else 0.0 for value in values]


def returns(trajectory: Trajectory) -> list[float]:
    """Discounted, per delivered turn; one number is the last turn's reward."""
    rewards = list(trajectory.rollout.rewards or ())
    rewards = [0.0] * (len(trajectory.delivered) - len(rewards)) + rewards
    pairs = [list(enumerate(rewards[turn:])) for turn in range(len(rewards))]
    return [sum(DISCOUNT**later * reward for later, reward in pair) for pair in pairs]


def per_turn_advantages(scored: Sequence[Trajectory]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in scored]
    whole = normalised([t.rollout.reward or 0.0 for t in scored])
    for column in itertools.zip_longest(*map(returns, scored)):
        reached = [i for i, value in enumerate(column) if value is not None]
        values = normalised([column[i] for i in reached]) if len(reached) > 1 else None
        for place, i in enumerate(reached):
            found[i].append(values[place] if values else whole[i])
    return found


def advantages_of(method: AdvantageMethod, scored: Sequence[Trajectory]) -> list[list[float]]:
    """[rollouts][delivered turns]"""
    totals = [t.rollout.reward or 0.0 for t in scored]
    if len(scored) < 2:
        return [[0.0] * len(t.delivered) for t in scored]
    if method in (AdvantageMethod.MONTE_CARLO, AdvantageMethod.REINFORCE_PP):
        return [returns(t) for t in scored]
    if len(set(totals)) == 1:
        return [[0.0] * len(t.delivered) for t in scored]
    if method is AdvantageMethod.GROUP_BASED_PER_TURN:
        return per_turn_advantages(scored)
    values = [total - baseline(method, scored, i) for i, total in enumerate(totals)]
    if method is AdvantageMethod.GROUP_BASED:
        values = normalised(totals)
    if method in (AdvantageMethod.GRPO_PASSK, AdvantageMethod.PKPO):
        size = PASS_K if method is AdvantageMethod.PKPO else len(totals)
        values = [best_of(totals, i, size) for i in range(len(totals))]
    return [[value] * len(t.delivered) for value, t in zip(values, scored, strict=True)]


def baseline(method: AdvantageMethod, scored: Sequence[Trajectory], i: int) -> float:
    totals = [t.rollout.reward or 0.0 for t in scored]
    if method is AdvantageMethod.RLOO:
        return statistics.fmean([*totals[:i], *totals[i + 1 :]])
    if method is AdvantageMethod.OPO:
        return float(np.repeat(totals, [sum(lengths(t)) for t in scored]).mean())
    return statistics.fmean(totals)


def best_of(totals: Sequence[float], i: int, k: int) -> float:
    """What rollout i adds to the best of k, set by set."""
    others = [*totals[:i], *totals[i + 1 :]]
    sets = list(itertools.combinations(others, min(k, len(totals)) - 1))
    return statistics.fmean(max(totals[i], *set_) - max(set_) for set_ in sets)


def lengths(trajectory: Trajectory) -> list[int]:
    """Tokens to train, per delivered turn."""
    return [
        turn.completion_tokens if turn.sampling.temperature else 0 for turn in trajectory.delivered
    ]


def step_advantages(
    method: AdvantageMethod, groups: Sequence[Sequence[Trajectory]]
) -> list[list[list[float]]]:
    """[groups][scored][delivered turns], where a step's groups are compared with each other."""
    found = [advantages_of(method, scored) for scored in groups]
    pairs = [g for g, scored in enumerate(groups) if len(scored) > 1]
    if method is AdvantageMethod.GPG:
        rewards = [t.rollout.reward for g in pairs for t in groups[g]]
        mean, scale = 0.0, np.count_nonzero(rewards) / len(rewards)
    elif method in (AdvantageMethod.REINFORCE_PP, AdvantageMethod.REINFORCE_PP_BASELINE):
        values = list(itertools.chain(*(turns for g in pairs for turns in found[g])))
        counts = list(itertools.chain(*(lengths(t) for g in pairs for t in groups[g])))
        tokens = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
        mean, scale = float(tokens.mean()), math.sqrt(float(tokens.var()) + 1e-8)
    else:
        return found
    for g in pairs:
        found[g] = [[(value - mean) / scale for value in turns] for turns in found[g]]
    return found


def turn_rows(method: AdvantageMethod, groups: Sequence[Sequence[Trajectory]]) -> list[TurnRow]:
    """Every turn to train, of every group whose advantages are not all 0."""
    rows = []
    counted = [[t for t in group if t.rollout.rewards] for group in groups]
    for scored, advantages in zip(counted, step_advantages(method, counted), strict=True):
        if not any(itertools.chain(*advantages)):
            continue
        for trajectory, values in zip(scored, advantages, strict=True):
            for turn, advantage in zip(trajectory.delivered, values, strict=True):
                if not turn.sampling.temperature:
                    continue
                path = trajectory.path(turn.leaf)
                assert path[-1].logprobs is not None
                rows.append(
                    TurnRow(
                        rollout_id=trajectory.rollout.rollout_id,
                        tokens=np.concatenate([node.tokens for node in path]).tolist(),
                        logprobs=path[-1].logprobs.tolist(),
                        temperature=turn.sampling.temperature,
                        advantage=advantage,
                    )
                )
    return rows


def token_loss(name: LossName, new: torch.Tensor, old: torch.Tensor, a: float) -> torch.Tensor:
    ratio = torch.exp(new - old)
    if name is LossName.GSPO:  # a row here is a turn
        ratio = ratio.prod() ** (1 / len(ratio)) * torch.ones_like(ratio)
    bounded = torch.clip(ratio, LOW, HIGH)
    if name in (LossName.PPO, LossName.GSPO):
        return torch.where(ratio * a < bounded * a, -ratio * a, -bounded * a)
    return -bounded.detach() * a * new if name is LossName.CISPO else -ratio * a


def whole_loss(
    model: PeftModel, rows: Sequence[TurnRow], name: LossName, aggregation: Aggregation
) -> torch.Tensor:
    tokens = Counter(itertools.chain(*([row.rollout_id] * len(row.logprobs) for row in rows)))
    loss = torch.zeros(())
    for row in rows:
        new = logprobs_of(model, row.tokens, len(row.logprobs), row.temperature)
        each = token_loss(name, new, torch.tensor(row.logprobs), row.advantage).sum()
        counted = {
            Aggregation.ROLLOUT_MEAN: tokens[row.rollout_id] * len(tokens),
            Aggregation.TOKEN_MEAN: tokens.total(),
            Aggregation.TOKEN_SUM_NORM: 3 * 4 * TURN_TOKENS,  # 3 groups of 4, planned
        }
        loss = loss + each / counted[aggregation]
    return loss


def updated(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """AdamW's first step: both moments, bias corrected, are the gradient's own."""
    decayed = value * (1 - RATE * OPTIMIZER.weight_decay)
    return decayed - RATE * gradient / (gradient.abs() + OPTIMIZER.eps)


# ── both ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class World:
    """A learner to be put back to its start, and the same start under PEFT."""

    learner: TorchLearner
    start: Checkpoint
    model: PeftModel
    groups: list[list[Trajectory]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("oracle")
    base = save_tiny_model(folder / "model")
    learner = TorchLearner(learner_spec(base, optimizer=OPTIMIZER))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # an adapter that does something
        for parameter in learner.model.parameters.values():
            parameter.normal_(0, 0.05, generator=generator)
    start = learner.save(0, str(folder / "start"))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers
        model = PeftModel.from_pretrained(plain, start.adapter.path, is_trainable=True).eval()
    groups = [[with_logprobs(each, model) for each in group] for group in conversations()]
    return World(learner, start, model, groups)


def closed(groups: Sequence[Sequence[Trajectory]]) -> list[ClosedGroup]:
    return [
        ClosedGroup(group=builders.group(f"grp_{n}", order=n, size=len(g)), attempts=tuple(g))
        for n, g in enumerate(groups)
    ]


#: Every combination of the first few, and the rest beside the defaults.
FEW = list(itertools.product(list(AdvantageMethod)[:3], list(LossName)[:3], list(Aggregation)[:2]))
REST = [
    *((method, LossName.PPO, Aggregation.ROLLOUT_MEAN) for method in list(AdvantageMethod)[3:]),
    (AdvantageMethod.DR_GRPO, LossName.PPO, Aggregation.TOKEN_SUM_NORM),
    *((AdvantageMethod.GROUP_BASED_PER_TURN, LossName.GSPO, how) for how in Aggregation),
]


@pytest.mark.parametrize(("method", "loss", "aggregation"), FEW + REST)
def test_a_step_is_what_one_forward_per_turn_gives(
    world: World, method: AdvantageMethod, loss: LossName, aggregation: Aggregation, tmp_path: Path
) -> None:
    algorithm = AlgorithmSpec(
        advantage_method=method,
        loss_fn=loss,
        aggregation=aggregation,
        clip_low_threshold=LOW,
        clip_high_threshold=HIGH,
        turn_discount=DISCOUNT,
        pass_k=PASS_K,
    )
    spec = builders.spec(
        algorithm=algorithm,
        batch=BatchSpec(global_batch_size=3, group_size=4),
        sampling_params=SamplingParams(max_tokens=TURN_TOKENS),
    )
    assembly = assemble(spec, STEP, closed(world.groups), RATE)
    assert assembly.request is not None
    world.learner.restore(world.start)
    result = world.learner.step(assembly.request)
    ours = load_file(
        Path(world.learner.save(STEP, str(tmp_path / "after")).adapter.path)
        / "adapter_model.safetensors"
    )

    rows = turn_rows(method, world.groups)
    named = {name: p for name, p in world.model.named_parameters() if p.requires_grad}
    theirs = whole_loss(world.model, rows, loss, aggregation)
    gradients = torch.autograd.grad(theirs, list(named.values()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))

    assert result.trained_tokens == sum(len(row.logprobs) for row in rows)
    assert assembly.metrics["ledger/trained"] == result.trained_tokens
    assert result.metrics["training/loss"] == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    assert result.metrics["training/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert 0.1 < result.metrics["training/clip_fraction"] < 0.9
    assert norm > OPTIMIZER.grad_clip_norm
    scale = OPTIMIZER.grad_clip_norm / norm
    for (name, value), gradient in zip(named.items(), gradients, strict=True):
        expected = updated(value.detach(), gradient * scale)
        torch.testing.assert_close(
            ours[name.replace(".default", "")], expected, rtol=0, atol=RATE * 1e-4
        )


def test_the_ledger_says_where_each_rollout_of_the_step_went(world: World) -> None:
    assembly = assemble(builders.spec(), STEP, closed(world.groups), RATE)
    sampled = {
        t.rollout.rollout_id: [turn.completion_tokens for turn in t.turns]
        for group in world.groups
        for t in group
    }
    assert assembly.bins == {
        **{name: {"trained": sum(sampled[name])} for name in ("chain", "fork", "short")},
        **{name: {"dropped_failed": sum(sampled[name])} for name in ("failed", "gone")},
        **{name: {"dropped_zero_advantage": sum(sampled[name])} for name in ("same", "equal")},
        "alone": {"dropped_unpaired": sum(sampled["alone"])},
        "greedy": {"masked_greedy": sampled["greedy"][0], "trained": sampled["greedy"][1]},
        "broken": {"dropped_undelivered": sampled["broken"][0], "trained": sampled["broken"][1]},
    }
