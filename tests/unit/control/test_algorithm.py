"""The algorithm block: names with vetted settings, and pairs that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from turnwise import errors
from turnwise.control.job_file import as_mapping, parse_job
from turnwise.control.job_settings import markdown
from turnwise.domain.algorithm import ALGORITHMS, AlgorithmName, AlgorithmSpec
from turnwise.domain.training import AdvantageMethod, Aggregation, LossName

SMALLEST = {
    "name": "walk",
    "model": "/models/tiny",
    "dataset": "/data/train.jsonl",
    "agent": {"url": "http://127.0.0.1:8430"},
}


def algorithm(**settings: Any) -> AlgorithmSpec:
    return parse_job(SMALLEST | {"algorithm": settings}).algorithm


def refusal(**blocks: Any) -> str:
    with pytest.raises(errors.InvalidInput) as refused:
        parse_job(SMALLEST | blocks)
    return str(refused.value)


def test_an_algorithm_by_name_has_the_settings_of_its_paper():
    assert algorithm(name="dapo") == AlgorithmSpec(
        name=AlgorithmName.DAPO,
        advantage_method=AdvantageMethod.GROUP_BASED,
        loss_fn=LossName.PPO,
        clip_high_threshold=1.28,
        aggregation=Aggregation.TOKEN_MEAN,
    )


def test_plain_policy_gradients_weigh_every_token_alike():
    plain = [s for s, _ in ALGORITHMS.values() if s.loss_fn is LossName.IMPORTANCE_SAMPLING]
    assert [spec.name.value for spec in plain] == ["opo", "gpg", "reinforce"]
    assert {spec.aggregation for spec in plain} == {Aggregation.TOKEN_MEAN}


def test_what_is_set_beside_the_name_wins():
    found = algorithm(name="dapo", clip_high_threshold=1.5, kl_coef=0.01)
    assert (found.clip_high_threshold, found.clip_low_threshold, found.kl_coef) == (1.5, 0.8, 0.01)


def test_without_a_name_any_method_goes_with_any_loss():
    found = algorithm(advantage_method="rloo", loss_fn="cispo", clip_high_threshold=6)
    assert found.name is AlgorithmName.CUSTOM
    assert (found.advantage_method, found.loss_fn) == (AdvantageMethod.RLOO, LossName.CISPO)


@pytest.mark.parametrize("name", AlgorithmName)
def test_every_algorithm_is_accepted_as_it_is_and_written_back(name: AlgorithmName):
    spec = parse_job(SMALLEST | {"algorithm": {"name": name.value}})
    assert spec.algorithm == ALGORITHMS[name][0]
    assert parse_job(as_mapping(spec)) == spec
    assert f"| `{name}` |" in markdown()


@pytest.mark.parametrize("method", AdvantageMethod)
def test_every_advantage_method_has_an_algorithm(method: AdvantageMethod):
    assert method in {spec.advantage_method for spec, _ in ALGORITHMS.values()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "dap"},
            "algorithm.name: 'dap' is not a choice; did you mean dapo? allowed: custom, grpo, ",
        ),
        (
            {"name": "dapo", "advantage_method": "rloo"},
            "algorithm.advantage_method: 'rloo' is not what dapo has (group_based); "
            "leave it out, or use algorithm.name: custom to combine freely",
        ),
        (
            {"name": "gspo", "loss_fn": "ppo"},
            "algorithm.loss_fn: 'ppo' is not what gspo has (gspo); ",
        ),
        (
            {"name": "grpo", "pass_k": 8},
            "algorithm.pass_k: 8 is set, but group_based does not read it; "
            "leave it out; read by pkpo",
        ),
        (
            {"turn_discount": 0.9},
            "algorithm.turn_discount: 0.9 is set, but group_based does not read it; "
            "leave it out; read by group_based_per_turn, reinforce_pp, monte_carlo",
        ),
        (
            {"loss_fn": "importance_sampling", "clip_high_threshold": 2},
            "algorithm.clip_high_threshold: 2.0 is set, but importance_sampling does not read it; "
            "leave it out; read by ppo, cispo, gspo",
        ),
        (
            {"clip_low_threshold": 1.5},
            "algorithm.clip_low_threshold: 1.5 would clip tokens whose probability has not "
            "changed (ratio 1); it bounds the ratio itself, not its distance from 1: 0.8 is "
            "usual, at most 1",
        ),
        (
            {"clip_high_threshold": 0.2},
            "algorithm.clip_high_threshold: 0.2 would clip tokens whose probability has not "
            "changed (ratio 1); it bounds the ratio itself, not its distance from 1: 1.2 is "
            "usual, at least 1",
        ),
        (
            {"name": "pkpo", "pass_k": 9},
            "algorithm.pass_k: 9 is more than a group has rollouts (8), so the best of so many is "
            "unknown; use at most batch.group_size",
        ),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused_with_the_reason(
    settings: dict[str, Any], message: str
):
    assert message in refusal(algorithm=settings)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"batch": {"refill": True}, "algorithm": {"name": "reinforce_pp"}},
            "batch.refill: True has no meaning with reinforce_pp, whose advantages are known only "
            "over the whole step; set it to false, or use another algorithm",
        ),
        (
            {"batch": {"pilot_size": 4}, "algorithm": {"name": "reinforce"}},
            "batch.pilot_size: 4 would drop siblings of equal rewards, from which monte_carlo "
            "learns too; set it to 0, or use another algorithm",
        ),
        (
            {"batch": {"pilot_size": 8, "group_size": 8}},
            "batch.pilot_size: 8 is no first part of a group of 8 that could be compared; "
            "use at least 2 and less than batch.group_size, or 0",
        ),
        ({"batch": {"pilot_size": 1}}, "batch.pilot_size: 1 is no first part of a group of 8 "),
    ],
)
def test_refill_and_pilots_are_refused_where_a_group_alone_does_not_decide(
    blocks: dict[str, Any], message: str
):
    assert message in refusal(**blocks)
