"""The door for agents in the server's own process, over the real gateway."""

from __future__ import annotations

import pytest

from tests import builders
from tests.unit.gateway.kit import World, a_world, user
from turnwise import errors
from turnwise.domain.rollout import RolloutStatus
from turnwise.wire.inside import InsideDoor


def door(world: World) -> InsideDoor:
    return InsideDoor(world.gateway, builders.ACCOUNT)


async def test_a_turn_and_a_reward_are_on_record_as_over_http() -> None:
    async with a_world("hello") as world:
        body = {"model": "default", "messages": [user("hi")], "temperature": 0.5}
        reply = await door(world).chat("rol_a", body)
        await door(world).report("rol_a", [0.5], {"letters": 5.0})

        assert reply["choices"][0]["message"]["content"] == "hello"
        assert reply["object"] == "chat.completion"
        kept = await world.trajectory()
        assert [turn.sampling.temperature for turn in kept.turns] == [0.5]
        rollout = kept.rollout
        assert (rollout.status, rollout.rewards, rollout.metrics) == (
            RolloutStatus.REWARDED,
            (0.5,),
            {"letters": 5.0},
        )
        # What waits for the rollout gets the same record without asking the store.
        closed = await world.gateway.closed("rol_a")
        assert (closed.rollout, closed.turns) == (rollout, kept.turns)


async def test_the_record_does_not_follow_an_agent_that_changes_its_messages() -> None:
    async with a_world("hello", "again") as world:
        message = user("hi")
        await door(world).chat("rol_a", {"model": "default", "messages": [message]})
        message["content"] = "changed"
        await door(world).chat("rol_a", {"model": "default", "messages": [message]})
        nodes = (await world.trajectory()).nodes
        assert [n.messages[0]["content"] for n in nodes] == ["hi", "hello", "changed", "again"]


@pytest.mark.parametrize(
    ("rewards", "said"),
    [([float("nan")], "must be a finite number"), ([1.0, 1.0], "the rollout has 1 delivered")],
)
async def test_a_wrong_reward_is_refused_and_the_rollout_stays_open(
    rewards: list[float], said: str
) -> None:
    async with a_world("hello") as world:
        body = {"model": "default", "messages": [user("hi")]}
        await door(world).chat("rol_a", body)
        with pytest.raises(errors.InvalidInput, match=said):
            await door(world).report("rol_a", rewards, {})
        with pytest.raises(errors.InvalidInput, match="Metrics"):
            await door(world).report("rol_a", [1.0], {"x": float("inf")})
        await door(world).report("rol_a", [1.0], {})
        await door(world).report("rol_a", [1.0], {})  # the same again is fine
        assert (await world.trajectory()).rollout.rewards == (1.0,)


async def test_a_call_with_a_wrong_parameter_names_it() -> None:
    async with a_world() as world:
        body = {"model": "default", "messages": [user("hi")], "temprature": 1}
        with pytest.raises(errors.InvalidInput, match="temprature"):
            await door(world).chat("rol_a", body)
