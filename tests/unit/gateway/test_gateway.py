from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import builders
from tests.unit.gateway.kit import (
    END,
    SECRET,
    GatedSampler,
    PlainRenderer,
    World,
    a_world,
    ask,
    assistant,
    body_of,
    call,
    chat,
    text_of,
    tool,
    user,
)
from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.domain.job import RolloutSpec
from turnwise.domain.ledger import Bin
from turnwise.domain.rollout import (
    Blame,
    Delivery,
    Fault,
    FinishReason,
    ForkCause,
    NodeKind,
    Policy,
    Purpose,
    RolloutStatus,
    SamplingParams,
    Tokens,
    Trajectory,
)
from turnwise.gateway import generation
from turnwise.gateway.chat import Reply, joined
from turnwise.ports import Chunk, SampleRequest
from turnwise.rl.ledger import account

LOST = Fault(blame=Blame.AGENT, code="deadline")


async def until(condition: Any) -> None:
    """Let the loop run until something is so."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def streamed(world: World, *messages: Any, **fields: Any) -> tuple[list[Any], Reply]:
    request = ask(*messages, stream=True, **fields)
    exchange = await world.gateway.ask(world.principal, "rol_a", request, body=body_of(request))
    *deltas, reply = [event async for event in exchange.events()]
    return deltas, reply


# ── turns ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_is_recorded_with_everything_that_made_it():
    async with a_world("hello") as world:
        await world.sampler.load("adapter1", "")
        world.gateway.publish("job_walk", Policy(adapter_id="adapter1", policy_step=3))
        reply = await chat(world, user("hi"), temperature=0.5, max_tokens=9)
        (turn,) = (trajectory := await world.trajectory()).turns
        prompt, completion = trajectory.path(turn.leaf)
        (asked,) = world.script.asked
    assert reply.message == assistant("hello")
    assert (reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == (
        FinishReason.STOP,
        len("<user>hi¶<assistant>"),
        6,
    )
    assert text_of(prompt.tokens) == "<user>hi¶<assistant>"
    assert (prompt.kind, prompt.messages, prompt.fork_cause) == (
        NodeKind.PROMPT,
        (user("hi"),),
        None,
    )
    assert text_of(completion.tokens) == "hello¶"
    assert completion.messages == (assistant("hello"),)
    assert completion.logprobs is not None
    assert len(completion.logprobs) == 6
    assert turn.turn_id == reply.turn_id
    assert turn.policy == Policy(adapter_id="adapter1", policy_step=3)
    assert turn.sampling == SamplingParams(temperature=0.5, max_tokens=9)
    assert (turn.seed, turn.delivery) == (asked.seed, Delivery.DELIVERED)
    assert (asked.claimant, asked.adapter_id, asked.stop_ids) == (
        "job_walk/train",
        "adapter1",
        (END,),
    )


async def test_the_next_turn_gets_the_exact_tokens_of_the_last_one():
    async with a_world('look@{"name": "find", "arguments": {"id":  1}}', "done") as world:
        first = await chat(world, user("hi"), tools=({"type": "function"},))
        again = {**first.message, "content": " look ", "tool_calls": [call("find", '{"id":1}')]}
        await chat(world, user("hi"), again, tool("found"), tools=({"type": "function"},))
        trajectory = await world.trajectory()
    assert first.finish_reason is FinishReason.TOOL_CALLS
    assert text_of(np.asarray(world.script.asked[1].prompt)) == (
        '<tools>[{"type": "function"}]¶<user>hi¶<assistant>'
        'look@{"name": "find", "arguments": {"id":  1}}¶<tool>found¶<assistant>'
    )
    assert [node.parent for node in trajectory.nodes] == [None, 0, 1, 2]
    assert [node.tools for node in trajectory.nodes] == [({"type": "function"},), (), (), ()]
    assert trajectory.turns[1].prompt_tokens == len(world.script.asked[1].prompt)


async def test_the_same_prompt_twice_is_stored_once_and_sampled_from_other_seeds():
    async with a_world("one", "two") as world:
        await asyncio.gather(chat(world, user("hi")), chat(world, user("hi")))
        trajectory = await world.trajectory()
    assert [(n.kind, n.parent) for n in trajectory.nodes] == [
        (NodeKind.PROMPT, None),
        (NodeKind.COMPLETION, 0),
        (NodeKind.COMPLETION, 0),
    ]
    assert len({turn.seed for turn in trajectory.turns}) == 2


async def test_seeds_follow_from_place_and_path_and_not_from_the_order_of_arrival():
    seeds = []
    for order in (["a", "b"], ["b", "a"]):
        async with a_world("x") as world:
            for text in order:
                await chat(world, user(text))
            seeds.append({text_of(np.asarray(r.prompt)): r.seed for r in world.script.asked})
    assert seeds[0] == seeds[1]


async def test_validation_does_not_share_the_randomness_of_training():
    async with a_world("x") as world:
        await world.open("rol_b", attempt=0, slot=5)
        await world.open("rol_c", attempt=0, slot=5, group_id="gr_c", purpose=Purpose.VALIDATION)
        for rollout_id in ("rol_b", "rol_c"):
            await chat(world, user("hi"), rollout_id=rollout_id)
    assert len({asked.seed for asked in world.script.asked}) == 2


async def test_seeds_go_on_counting_after_a_restart():
    async with a_world("x") as world:
        await chat(world, user("hi"))
        gateway = world.restarted()
        request = ask(user("hi"))
        await gateway.chat(world.principal, "rol_a", request, body=b"other")
        seeds = [ask.seed for ask in world.script.asked]
        await gateway.close()
    assert seeds[0] != seeds[1]


async def test_a_graph_is_rebuilt_from_the_store():
    async with a_world("one", "two") as world:
        await chat(world, user("hi"))
        gateway = world.restarted()
        requests = [ask(user("hi"), assistant("one"), user(f"more {i}")) for i in range(3)]
        await asyncio.gather(
            *(gateway.chat(world.principal, "rol_a", r, body=body_of(r)) for r in requests)
        )
        trajectory = await world.trajectory()
    assert [turn.index for turn in trajectory.turns] == [0, 1, 2, 3]
    assert [trajectory.path(t.leaf)[0].node_id for t in trajectory.turns] == [0, 0, 0, 0]


async def test_a_pinned_rollout_is_sampled_from_its_own_policy():
    async with a_world(opened=False) as world:
        await world.open(policy=Policy(policy_step=-1), purpose=Purpose.VALIDATION)
        world.gateway.publish("job_walk", Policy(adapter_id="newer", policy_step=5))
        await chat(world, user("hi"))
        (asked,) = world.script.asked
        (turn,) = (await world.trajectory()).turns
    assert (asked.adapter_id, asked.claimant) == (None, "job_walk/validation")
    assert turn.policy == Policy(policy_step=-1)


# ── forks ─────────────────────────────────────────────────────────────────────────────────────


async def causes(world: World) -> list[ForkCause | None]:
    nodes = (await world.trajectory()).nodes
    return [node.fork_cause for node in nodes if node.kind is NodeKind.PROMPT]


async def test_dropped_reasoning_forks_and_every_sampled_token_is_kept_once():
    async with a_world("[why]one", "[how]two", renderer=PlainRenderer(drops_reasoning=True)) as w:
        first = await chat(w, user("u1"))
        await chat(w, user("u1"), assistant("one"), user("u2"))
        trajectory = await w.trajectory()
        assert await causes(w) == [None, ForkCause.TEMPLATE]
    assert first.message == assistant("one", reasoning_content="why")
    assert text_of(np.asarray(w.script.asked[1].prompt)) == (
        "<user>u1¶<assistant>one¶<user>u2¶<assistant>"
    )
    said = [text_of(n.tokens) for n in trajectory.nodes if n.kind is NodeKind.COMPLETION]
    assert said == ["[why]one¶", "[how]two¶"]


async def test_reasoning_that_is_not_echoed_is_extended_where_the_template_keeps_it():
    async with a_world("[why]one") as world:
        await chat(world, user("u1"))
        await chat(world, user("u1"), assistant("one"), user("u2"))
        assert await causes(world) == [None, None]
    assert "[why]one¶" in text_of(np.asarray(world.script.asked[1].prompt))


@pytest.mark.parametrize(
    ("history", "cause"),
    [
        ([user("u1"), assistant("uno"), user("u2")], ForkCause.EDITED_ASSISTANT),
        ([user("U1"), assistant("one"), user("u2")], ForkCause.REWRITTEN_HISTORY),
        ([assistant("one"), user("u2")], ForkCause.TRUNCATED),
    ],
)
async def test_a_changed_history_forks_with_its_cause_and_is_rendered_anew(
    history: list[Any], cause: ForkCause
):
    async with a_world("one", "two") as world:
        await chat(world, user("u1"))
        await chat(world, *history)
        assert await causes(world) == [None, cause]
        trajectory = await world.trajectory()
    assert trajectory.nodes[2].parent is None
    assert trajectory.nodes[2].messages == tuple(history)


# ── streams and stop strings ──────────────────────────────────────────────────────────────────


async def test_a_stream_adds_up_to_the_whole_reply():
    text = '[why]look@{"name": "find", "arguments": {"id": 1}}'
    async with a_world(text, text) as world:
        deltas, reply = await streamed(world, user("hi"))
        whole = await chat(world, user("hi"))
    assert joined(deltas) == reply.message == whole.message
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    assert {"content": "l"} in deltas


async def test_a_streamed_turn_is_committed_before_its_last_event():
    async with a_world("hi") as world:
        request = ask(user("hi"), stream=True)
        exchange = await world.gateway.ask(world.principal, "rol_a", request, body=b"")
        async with contextlib.aclosing(exchange.events()) as events:
            async for event in events:
                if isinstance(event, Reply):
                    assert len((await world.trajectory()).turns) == 1
                    return
    pytest.fail("no reply came")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_stop_string_ends_the_turn_and_is_not_in_the_reply(is_streamed: bool):
    async with a_world("one STOP two") as world:
        if is_streamed:
            deltas, reply = await streamed(world, user("hi"), stop=("XX", "STOP"))
            assert "".join(d["content"] for d in deltas) == "one "
        else:
            reply = await chat(world, user("hi"), stop=("XX", "STOP"))
        trajectory = await world.trajectory()
    assert (reply.message, reply.finish_reason) == (assistant("one "), FinishReason.STOP)
    assert text_of(trajectory.nodes[1].tokens) == "one STOP"
    assert trajectory.turns[0].completion_tokens == 8
    assert world.sampler.aborted == 1


async def test_what_looked_like_a_stop_string_is_sent_in_the_end():
    async with a_world("one STO") as world:
        deltas, reply = await streamed(world, user("hi"), stop=("STOP",))
    assert joined(deltas) == reply.message == assistant("one STO")


# ── limits and wrong requests ─────────────────────────────────────────────────────────────────


async def test_max_tokens_is_the_smallest_of_request_rollout_and_context():
    async with a_world("x" * 99, max_length=40) as world:
        for most in (5, 500, None):
            await chat(world, user("hi"), max_tokens=most)
        limits = [asked.sampling.max_tokens for asked in world.script.asked]
    assert limits == [5, 20, 20]


async def test_a_cut_reply_says_so():
    async with a_world("hello") as world:
        reply = await chat(world, user("hi"), max_tokens=2)
    assert (reply.message["content"], reply.finish_reason) == ("he", FinishReason.LENGTH)


async def test_a_prompt_that_does_not_fit_names_tokens_and_limit():
    async with a_world(max_length=20) as world:
        with pytest.raises(errors.PromptTooLong) as caught:
            await chat(world, user("hi"))
        assert (await world.trajectory()).turns == ()
    assert str(caught.value) == (
        "messages: 20 tokens do not fit this model's context of 20 tokens; shorten the conversation"
    )


async def test_an_unknown_model_names_the_known_ones():
    async with a_world() as world:
        request = ask(user("hi"))
        with pytest.raises(errors.NotFound) as caught:
            await world.gateway.chat(
                world.principal,
                "rol_a",
                type(request)(model="gpt", messages=request.messages),
                body=b"",
            )
    assert str(caught.value) == ("model 'gpt' does not exist; known models: default, walk, tiny")


async def test_a_turn_over_its_limit_is_aborted_and_kept_as_undelivered():
    quick = builders.spec(rollout=RolloutSpec(turn_timeout=0.05))
    async with a_world("hello", spec=quick) as world:
        world.sampler.hold_at = 3
        world.sampler.gate.clear()
        with pytest.raises(errors.TooSlow) as caught:
            await streamed(world, user("hi"))
        trajectory = await world.trajectory()
    assert str(caught.value) == (
        "the turn took longer than its limit of 0.05 s; "
        "raise rollout.turn_timeout or lower max_tokens"
    )
    assert world.sampler.aborted == 1
    (turn,) = trajectory.turns
    assert (turn.delivery, turn.finish_reason) == (Delivery.UNDELIVERED, FinishReason.TIMEOUT)
    assert text_of(trajectory.nodes[1].tokens) == "hel"


async def test_nothing_is_sampled_past_the_rollouts_deadline():
    async with a_world() as world:
        world.clock.time = 1600.0
        with pytest.raises(errors.NotInValidStatus) as caught:
            await chat(world, user("hi"))
    assert str(caught.value) == (
        "Trajectory rol_a is not in valid status (PENDING): it is past its deadline"
    )


async def test_a_sampler_that_closes_is_unavailable_and_its_tokens_are_counted():
    async with a_world("hello") as world:
        world.sampler.hold_at = 2
        world.sampler.gate.clear()
        asking = asyncio.create_task(streamed(world, user("hi")))
        await until(lambda: world.script.asked)
        await world.sampler.close()
        world.sampler.gate.set()
        with pytest.raises(errors.Unavailable, match="the sampler ended the call early"):
            await asking
        trajectory = await world.trajectory()
    assert [t.delivery for t in trajectory.turns] == [Delivery.UNDELIVERED]
    assert trajectory.sampled_tokens == 3


async def test_a_job_that_does_not_run_is_unavailable():
    async with a_world() as world:
        world.gateway.detach("job_walk")
        with pytest.raises(errors.Unavailable, match="job 'job_walk' is not running") as caught:
            await chat(world, user("hi"))
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_what_an_ended_call_has_sampled_is_on_record_streamed_or_not(is_streamed: bool):
    quick = builders.spec(rollout=RolloutSpec(turn_timeout=0.02))
    async with a_world("hello", spec=quick) as world:
        world.sampler.hold_at = 3
        world.sampler.gate.clear()
        with pytest.raises(errors.TooSlow):
            await chat(world, user("hi"), stream=is_streamed)
        trajectory = await world.trajectory()
    assert (text_of(trajectory.nodes[1].tokens), trajectory.sampled_tokens) == ("hel", 3)


async def test_a_call_that_timed_out_before_its_first_token_is_on_record():
    async with a_world(spec=builders.spec(rollout=RolloutSpec(turn_timeout=0.02))) as world:
        world.sampler.gate.clear()
        with pytest.raises(errors.TooSlow):
            await chat(world, user("hi"))
        (turn,) = (await world.trajectory()).turns
    assert (turn.finish_reason, turn.delivery) == (FinishReason.TIMEOUT, Delivery.UNDELIVERED)
    assert (turn.prompt_tokens, turn.sampled_tokens) == (20, 0)


class StuckSampler(GatedSampler):
    """One that hears no abort."""

    async def abort(self, request_id: str) -> None:
        self.aborted += 1


async def test_a_sampler_that_hears_no_abort_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "ABORT_WAIT_S", 0.01)
    quick = builders.spec(rollout=RolloutSpec(turn_timeout=0.02))
    async with a_world(spec=quick, sampler=StuckSampler) as world:
        world.sampler.gate.clear()
        with pytest.raises(errors.TooSlow):
            await chat(world, user("hi"))
    assert world.sampler.aborted == 1


class LateSampler(GatedSampler):
    """Gives all its tokens in pieces of five, and two more when it is told to end."""

    async def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        said = np.array(self._script(request).tokens, np.int32)
        for start in range(0, len(said), 5):
            if self.aborted:
                yield self._piece(said[start : start + 2], "abort")
                return
            yield self._piece(said[start : start + 5], None)

    async def abort(self, request_id: str) -> None:
        self.aborted += 1

    def _piece(self, tokens: Tokens, reason: str | None) -> Chunk:
        logprobs = np.full(len(tokens), -0.5, np.float32)
        return Chunk(tokens=tokens, logprobs=logprobs, finish_reason=reason, cached_tokens=4)


async def test_tokens_behind_a_stop_string_are_counted_and_on_no_node():
    async with a_world("one STOP two three", sampler=LateSampler) as world:
        reply = await chat(world, user("hi"), stop=("STOP",))
        trajectory = await world.trajectory()
        again = await world.restarted().chat(
            world.principal,
            "rol_a",
            request := ask(user("hi"), stop=("STOP",)),
            body=body_of(request),
            retry_count=1,
        )
    (turn,) = trajectory.turns
    assert (reply.message, reply.finish_reason) == (assistant("one "), FinishReason.STOP)
    assert text_of(trajectory.nodes[1].tokens) == "one STOP"
    # Two of the piece that completed the stop string, and two until the sampler had ended.
    assert (turn.completion_tokens, turn.past_stop_tokens, turn.cached_tokens) == (8, 4, 4)
    assert trajectory.sampled_tokens == 12
    assert (again.turn_id, again.cached_tokens) == (reply.turn_id, 4)
    assert account(_scored(trajectory), Bin.TRAINED) == {Bin.TRAINED: 8, Bin.DROPPED_PAST_STOP: 4}


def _scored(trajectory: Trajectory) -> Trajectory:
    rollout = replace(trajectory.rollout, status=RolloutStatus.REWARDED, rewards=(1.0,))
    return replace(trajectory, rollout=rollout)


# ── a rollout's tokens ────────────────────────────────────────────────────────────────────────


def budget_of(tokens: int) -> dict[str, Any]:
    return {"spec": builders.spec(rollout=RolloutSpec(rollout_max_tokens=tokens))}


async def test_a_turns_limit_is_what_the_rollout_has_left():
    async with a_world("x" * 99, **budget_of(12)) as world:
        replies = [await chat(world, user("hi"), max_tokens=most) for most in (5, None)]
        limits = [asked.sampling.max_tokens for asked in world.script.asked]
        turns = (await world.trajectory()).turns
    assert limits == [turn.sampling.max_tokens for turn in turns] == [5, 7]
    assert [reply.finish_reason for reply in replies] == [FinishReason.LENGTH] * 2


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_spent_rollout_samples_no_more_but_is_still_scored(is_restarted: bool):
    async with a_world("hello", **budget_of(6)) as world:
        await chat(world, user("hi"))
        if is_restarted:
            world.gateway = world.restarted()
        with pytest.raises(errors.OverBudget) as caught:
            await chat(world, user("more"))
        assert str(caught.value) == (
            "the rollout has sampled 6 tokens and may sample 6 (rollout.rollout_max_tokens); "
            "complete it and report its reward"
        )
        await complete(world)
        await reward(world, 1.0)
        trajectory = await world.trajectory()
    assert trajectory.rollout.status is RolloutStatus.REWARDED
    assert [turn.completion_tokens for turn in trajectory.turns] == [6]


async def test_parallel_turns_stay_within_the_rollouts_tokens_together():
    """The third waits for what the first two do not need."""
    async with a_world("hello", **budget_of(20)) as world:
        world.sampler.gate.clear()
        asking = [
            asyncio.create_task(chat(world, user(name), max_tokens=most))
            for name, most in (("a", 15), ("b", None), ("c", None))
        ]
        await until(lambda: len(world.script.asked) == 2)
        assert [asked.sampling.max_tokens for asked in world.script.asked] == [15, 5]
        world.sampler.gate.set()
        replies = await asyncio.gather(*asking)
        limits = [asked.sampling.max_tokens for asked in world.script.asked]
        sampled = (await world.trajectory()).sampled_tokens
    assert [reply.completion_tokens for reply in replies] == [6, 5, 6]
    assert (sampled, limits[:2]) == (17, [15, 5])
    assert 6 <= limits[2] <= 20 - 6


async def test_a_call_that_waits_for_the_rollouts_tokens_ends_with_its_rollout():
    async with a_world("hello", **budget_of(20)) as world:
        world.sampler.gate.clear()
        asking = [asyncio.create_task(chat(world, user(name))) for name in ("a", "b")]
        await until(lambda: world.script.asked)
        await world.gateway.fail("rol_a", LOST)
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [errors.NotInValidStatus] * 2


async def test_a_call_that_fails_gives_its_tokens_back():
    async with a_world("hello", renderer=BrokenRenderer(), **budget_of(20)) as world:
        for _ in range(3):
            with pytest.raises(KeyError):
                await chat(world, user("hi"))
        limits = [asked.sampling.max_tokens for asked in world.script.asked]
    assert limits == [20, 14, 8]


# ── delivery and retries ──────────────────────────────────────────────────────────────────────


async def leave(asking: asyncio.Task[Any]) -> None:
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


async def test_a_retry_of_the_latest_request_gets_its_reply_again():
    async with a_world("one", "two") as world:
        first = await chat(world, user("hi"))
        again = await chat(world, user("hi"), retry_count=1)
        assert len((await world.trajectory()).turns) == 1
    assert again == first


async def test_a_retry_is_answered_from_the_store_after_a_restart():
    async with a_world("one", "two") as world:
        first = await chat(world, user("hi"))
        gateway, request = world.restarted(), ask(user("hi"))
        again = await gateway.chat(
            world.principal, "rol_a", request, body=body_of(request), retry_count=1
        )
        await gateway.close()
    assert again == first


async def test_an_equal_request_that_is_no_retry_is_a_new_sample():
    async with a_world("one", "two") as world:
        replies = [(await chat(world, user("hi"))).message["content"] for _ in range(2)]
    assert replies == ["one", "two"]


async def test_a_retry_of_an_older_request_is_a_new_sample():
    async with a_world("one", "two", "three") as world:
        await chat(world, user("hi"))
        await chat(world, user("ho"))
        again = await chat(world, user("hi"), retry_count=1)
    assert again.message == assistant("three")


async def test_a_retry_joins_the_turn_that_still_runs():
    async with a_world("one", "two") as world:
        world.sampler.gate.clear()
        asking = [
            asyncio.create_task(chat(world, user("hi"), retry_count=count)) for count in range(3)
        ]
        await until(lambda: world.script.asked)
        world.sampler.gate.set()
        replies = await asyncio.gather(*asking)
        assert len((await world.trajectory()).turns) == 1
    assert {reply.turn_id for reply in replies} == {replies[0].turn_id}


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_retry_after_a_broken_connection_gets_the_same_turn(is_streamed: bool):
    async with a_world("hello", "other") as world:
        world.sampler.hold_at = 3
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("hi"), stream=is_streamed))
        await until(lambda: world.script.asked)
        await leave(asking)
        retry = asyncio.create_task(chat(world, user("hi"), stream=is_streamed, retry_count=1))
        await asyncio.sleep(0)
        world.sampler.gate.set()
        reply = await retry
        trajectory = await world.trajectory()
    assert reply.message == assistant("hello")
    assert [t.delivery for t in trajectory.turns] == [Delivery.DELIVERED]


async def test_a_retry_that_comes_when_the_turn_is_over_still_gets_it():
    async with a_world("hello", "other") as world:
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("hi")))
        await until(lambda: world.script.asked)
        await leave(asking)
        world.sampler.gate.set()
        async with asyncio.timeout(30):
            while not (await world.trajectory()).turns:  # on record although nobody has got it
                await asyncio.sleep(0)
        reply = await chat(world, user("hi"), retry_count=1)
        trajectory = await world.trajectory()
    assert reply.message == assistant("hello")
    assert [t.delivery for t in trajectory.turns] == [Delivery.DELIVERED]


async def test_equal_sub_agents_whose_connections_broke_get_a_turn_each():
    async with a_world("one", "two", "three") as world:
        world.sampler.gate.clear()
        asking = [asyncio.create_task(chat(world, user("hi"))) for _ in range(2)]
        await until(lambda: len(world.script.asked) == 2)
        for task in asking:
            await leave(task)
        retries = [asyncio.create_task(chat(world, user("hi"), retry_count=1)) for _ in range(2)]
        await asyncio.sleep(0)
        world.sampler.gate.set()
        replies = await asyncio.gather(*retries)
    assert sorted(r.message["content"] for r in replies) == ["one", "two"]


async def test_a_client_that_does_not_come_back_leaves_an_undelivered_turn():
    async with a_world("hello", grace_s=0.02) as world:
        world.sampler.hold_at = 3
        world.sampler.gate.clear()
        asking = asyncio.create_task(streamed(world, user("hi")))
        await until(lambda: world.script.asked)
        await asyncio.sleep(0.01)
        await leave(asking)
        await until(lambda: world.sampler.aborted)
        async with asyncio.timeout(30):
            while not (turns := (await world.trajectory()).turns):
                await asyncio.sleep(0)
        trajectory = await world.trajectory()
        # The next request is not taken for its continuation, and counts as the first turn.
        world.sampler.gate.set()
        await chat(world, user("hi"), assistant("hel"), user("go on"))
        assert await causes(world) == [None, None]
    assert [(t.delivery, t.finish_reason) for t in turns] == [
        (Delivery.UNDELIVERED, FinishReason.ABORT)
    ]
    assert (text_of(trajectory.nodes[1].tokens), trajectory.sampled_tokens) == ("hel", 3)
    assert trajectory.delivered == ()


async def test_a_finished_turn_that_nobody_fetches_is_undelivered():
    async with a_world("hello", grace_s=0.02) as world:
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("hi")))
        await until(lambda: world.script.asked)
        await leave(asking)
        world.sampler.gate.set()
        async with asyncio.timeout(30):
            while not (turns := (await world.trajectory()).turns) or turns[0].is_delivered:
                await asyncio.sleep(0.005)
        again = await chat(world, user("hi"), retry_count=1)
    assert [(t.delivery, t.finish_reason) for t in turns] == [
        (Delivery.UNDELIVERED, FinishReason.STOP)
    ]
    assert again.turn_id != turns[0].turn_id


async def test_a_client_that_leaves_during_the_commit_takes_its_turn_back():
    async with a_world("hello", grace_s=0.0) as world:
        asking = asyncio.create_task(chat(world, user("hi")))
        commit, entered = world.store.commit_turn, asyncio.Event()

        async def slow_commit(*args: Any) -> None:
            await commit(*args)
            entered.set()
            await leave(asking)

        world.store.commit_turn = slow_commit  # type: ignore[method-assign]
        await entered.wait()
        async with asyncio.timeout(30):
            while (turns := (await world.trajectory()).turns)[0].is_delivered:
                await asyncio.sleep(0.005)
    assert len(turns) == 1


async def test_a_client_that_stays_but_does_not_read_holds_up_no_deadline():
    async with a_world("hello") as world:
        request = ask(user("hi"), stream=True)
        exchange = await world.gateway.ask(world.principal, "rol_a", request, body=b"")
        async with contextlib.aclosing(exchange.events()) as events:
            await anext(events)  # and then it reads nothing more
            async with asyncio.timeout(30):
                while not (await world.trajectory()).turns:
                    await asyncio.sleep(0)
                await world.gateway.fail("rol_a", LOST)
                trajectory = await world.gateway.closed("rol_a")
            with pytest.raises(errors.NotInValidStatus, match="it was closed during the call"):
                [event async for event in events]
    assert [t.delivery for t in trajectory.turns] == [Delivery.UNDELIVERED]


class BrokenReading:
    def feed(self, tokens: Any) -> Any:
        raise KeyError("feed")

    def finish(self) -> Any:
        raise KeyError("finish")


class BrokenRenderer(PlainRenderer):
    """A family whose package fails on what the model said."""

    def parse(self, prompt: Any, completion: Any, tools: Any) -> Any:
        raise KeyError("parse")

    def stream(self, prompt: Any, tools: Any) -> Any:
        return BrokenReading()


@pytest.mark.parametrize(("is_streamed", "broken"), [(False, "parse"), (True, "feed")])
async def test_a_reply_that_cannot_be_read_is_kept_as_what_was_sampled(
    is_streamed: bool, broken: str
):
    async with a_world("hello", renderer=BrokenRenderer()) as world:
        with pytest.raises(KeyError, match=broken):
            await chat(world, user("hi"), stream=is_streamed)
        trajectory = await world.trajectory()
    (turn,) = trajectory.turns
    assert (turn.delivery, turn.finish_reason) == (Delivery.UNDELIVERED, FinishReason.ABORT)
    said = "h" if is_streamed else "hello¶"
    assert text_of(trajectory.nodes[1].tokens) == said
    assert trajectory.nodes[1].messages == (assistant(said),)


class ThreadNoting(PlainRenderer):
    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def parse(self, prompt: Any, completion: Any, tools: Any) -> Any:
        self.threads.append(threading.current_thread())
        return super().parse(prompt, completion, tools)


async def test_a_long_reply_is_read_off_the_event_loop():
    renderer, sampling = ThreadNoting(), SamplingParams(max_tokens=3000)
    async with a_world("x" * 2999, "x", renderer=renderer, opened=False) as world:
        await world.open(sampling=sampling)
        for text in ("a", "b"):
            await chat(world, user(text))
    assert [t is threading.main_thread() for t in renderer.threads] == [False, True]


async def test_a_long_stream_has_the_logprobs_of_all_its_tokens():
    sampling = SamplingParams(max_tokens=8000)
    async with a_world("x" * 7999, opened=False, max_length=9000) as world:
        await world.open(sampling=sampling)
        _, reply = await streamed(world, user("hi"), logprobs=True)
    assert len(reply.logprobs or ()) == 8000


async def test_a_failed_attempt_is_sampled_anew_on_retry():
    async with a_world(
        "one", "two", spec=builders.spec(rollout=RolloutSpec(turn_timeout=0.02))
    ) as w:
        w.sampler.gate.clear()
        with pytest.raises(errors.TooSlow):
            await chat(w, user("hi"))
        w.sampler.gate.set()
        reply = await chat(w, user("hi"), retry_count=1)
    assert reply.message == assistant("two")


# ── completion and rewards ────────────────────────────────────────────────────────────────────


async def complete(world: World, status: str = "ready") -> None:
    await world.gateway.complete_rollout(world.principal, "rol_a", status)


async def reward(world: World, *rewards: float, **metrics: float) -> None:
    await world.gateway.update_reward(world.principal, "rol_a", rewards, metrics=metrics)


async def test_a_reward_closes_the_rollout_and_wakes_the_loop():
    async with a_world() as world:
        closed = asyncio.create_task(world.gateway.closed("rol_a"))
        await chat(world, user("hi"))
        await complete(world)
        await asyncio.sleep(0)
        assert not closed.done()
        world.clock.time = 1010.0
        await reward(world, 0.5, field_acc=0.25)
        trajectory = await closed
        assert (await world.gateway.closed("rol_a")).rollout == trajectory.rollout
    rollout = trajectory.rollout
    assert (rollout.status, rollout.rewards, rollout.metrics, rollout.ended_at) == (
        RolloutStatus.REWARDED,
        (0.5,),
        {"field_acc": 0.25},
        1010.0,
    )
    assert len(trajectory.turns) == 1


async def test_rewards_per_turn_finish_a_rollout_whose_agent_gave_a_call_up():
    """A reply that nobody waits for any more is no turn, and no reward is due for it."""
    async with a_world() as world:
        for text in ("a", "b"):
            await chat(world, user(text))
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("c")))
        await until(lambda: len(world.script.asked) == 3)
        await leave(asking)
        world.sampler.gate.set()
        async with asyncio.timeout(30):
            while len((await world.trajectory()).turns) < 3:
                await asyncio.sleep(0)
        await world.gateway.finish(world.principal, "rol_a", (0.5, 1.0))
        closed = await world.gateway.closed("rol_a")
    assert (closed.rollout.rewards, len(closed.delivered)) == ((0.5, 1.0), 2)


async def test_metrics_that_come_with_the_same_report_again_are_kept():
    async with a_world() as world:
        await chat(world, user("hi"))
        await world.gateway.finish(world.principal, "rol_a", (1.0,), metrics={"words": 3.0})
        await world.gateway.finish(world.principal, "rol_a", (1.0,), metrics={"calls": 1.0})
        closed = (await world.trajectory()).rollout
    assert (closed.rewards, closed.metrics) == ((1.0,), {"words": 3.0, "calls": 1.0})


async def test_the_reason_of_a_score_is_kept_and_cut_where_it_is_too_long():
    async with a_world() as world:
        await chat(world, user("hi"))
        await world.gateway.finish(world.principal, "rol_a", (1.0,), reason="x" * 3000)
        await world.gateway.finish(world.principal, "rol_a", (1.0,), metrics={"calls": 1.0})
        kept = (await world.trajectory()).rollout
    assert kept.reason == "x" * 1999 + "…"
    assert kept.why == kept.reason


async def test_a_rollout_goes_on_after_a_report_that_makes_no_sense():
    async with a_world() as world:
        with pytest.raises(errors.InvalidInput, match="has 3 values, but the rollout has 0"):
            await world.gateway.finish(world.principal, "rol_a", (1.0, 2.0, 3.0))
        await chat(world, user("hi"))
        await world.gateway.finish(world.principal, "rol_a", (1.0,))
        assert (await world.gateway.closed("rol_a")).rollout.is_scored


async def test_an_agents_failure_is_a_fault_of_the_agent():
    async with a_world() as world:
        await complete(world, "failed")
        await reward(world, 0.0)
        rollout = (await world.gateway.closed("rol_a")).rollout
    assert (rollout.status, rollout.rewards) == (RolloutStatus.FAILED, (0.0,))
    assert rollout.fault is not None
    assert (rollout.fault.blame, rollout.fault.code) == (Blame.AGENT, "agent_failed")


async def test_a_rollout_may_be_completed_without_any_turn():
    async with a_world() as world:
        await complete(world)
        await reward(world, 1.0)
        assert (await world.gateway.closed("rol_a")).turns == ()


async def test_repeated_reports_are_fine():
    async with a_world() as world:
        await complete(world)
        await complete(world)
        await reward(world, 1.0)
        await reward(world, 1.0)
        await complete(world)


async def test_a_different_second_report_is_a_conflict():
    async with a_world() as world:
        await complete(world)
        with pytest.raises(errors.Conflict) as caught:
            await complete(world, "failed")
        assert str(caught.value) == "Cannot transition trajectory rol_a from READY to FAILED"
        await reward(world, 1.0)
        with pytest.raises(errors.Conflict) as caught:
            await reward(world, 0.5)
        assert str(caught.value) == "trajectory rol_a already has the rewards [1.0]"


async def test_two_different_completions_at_once_cannot_both_win():
    async with a_world() as world:
        outcomes = await asyncio.gather(
            complete(world, "failed"), complete(world, "ready"), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [type(None), errors.Conflict]


async def test_a_closed_rollout_takes_no_more_requests():
    async with a_world() as world:
        for finish, status in (("ready", "READY"), ("failed", "FAILED")):
            await world.open(finish)
            await world.gateway.complete_rollout(world.principal, finish, finish)
            with pytest.raises(errors.NotInValidStatus) as caught:
                await chat(world, user("hi"), rollout_id=finish)
            assert str(caught.value) == (
                f"Trajectory {finish} is not in valid status ({status}): "
                "it is closed to model calls"
            )


async def test_a_reward_before_completion_is_refused():
    async with a_world() as world:
        with pytest.raises(errors.NotInValidStatus, match="not in valid status"):
            await reward(world, 1.0)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ((math.nan,), "Rewards: nan must be a finite number"),
        ((1.0, math.inf), "Rewards: inf must be a finite number"),
        (
            (1.0, 2.0, 3.0),
            "Rewards: [1.0, 2.0, 3.0] has 3 values, but the rollout has 2 delivered turns; "
            "send one value for the rollout or one per turn",
        ),
        (
            (),
            "Rewards: [] has 0 values, but the rollout has 2 delivered turns; "
            "send one value for the rollout or one per turn",
        ),
    ],
)
async def test_rewards_that_make_no_sense(rewards: tuple[float, ...], message: str):
    async with a_world() as world:
        for text in ("a", "b"):
            await chat(world, user(text))
        await complete(world)
        with pytest.raises(errors.InvalidInput) as caught:
            await reward(world, *rewards)
        await reward(world, 1.0, 2.0)
    assert str(caught.value) == message


async def test_metrics_must_be_finite():
    async with a_world() as world:
        await complete(world)
        with pytest.raises(errors.InvalidInput, match=r"Metrics\.speed: nan must be"):
            await reward(world, 1.0, speed=math.nan)


@pytest.mark.parametrize("passes", range(6))
async def test_a_call_may_be_given_up_again_at_any_moment(passes: int):
    """A job that is stopped closes its rollouts while a deadline or a report closes one."""
    async with a_world("hello") as world:
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("hi")))
        await until(lambda: world.script.asked)
        failing = asyncio.create_task(world.gateway.fail("rol_a", LOST))
        for _ in range(passes):
            await asyncio.sleep(0)
        world.gateway.detach("job_walk")
        with pytest.raises(errors.NotInValidStatus, match="it was closed during the call"):
            await asking
        await failing
        assert (await world.gateway.closed("rol_a")).rollout.fault == LOST


class SlowToAbort(GatedSampler):
    """Takes a moment, as an engine in the middle of a step does."""

    async def abort(self, request_id: str) -> None:
        self.aborted += 1
        await asyncio.sleep(0.02)
        await super().abort(request_id)


async def test_completing_gives_up_the_calls_under_way_and_counts_their_tokens():
    async with a_world("hello") as world:
        world.sampler.hold_at = 2
        world.sampler.gate.clear()
        asking = asyncio.create_task(streamed(world, user("hi")))
        await until(lambda: world.script.asked)
        await asyncio.sleep(0.01)
        await complete(world)
        with pytest.raises(errors.NotInValidStatus, match="it was closed during the call"):
            await asking
        await reward(world, 1.0)
        trajectory = await world.gateway.closed("rol_a")
    assert [t.delivery for t in trajectory.turns] == [Delivery.UNDELIVERED]
    assert trajectory.sampled_tokens == 2


async def test_tokens_are_counted_though_who_closes_the_rollout_is_cancelled():
    """A stopped job cancels its alarms, an agent's time limit its report."""
    async with a_world("hello", sampler=SlowToAbort) as world:
        world.sampler.hold_at = 2
        world.sampler.gate.clear()
        asking = asyncio.create_task(chat(world, user("hi")))
        await until(lambda: world.script.asked)
        failing = asyncio.create_task(world.gateway.fail("rol_a", LOST))
        await until(lambda: world.sampler.aborted)
        await leave(failing)
        async with asyncio.timeout(30):
            with pytest.raises(errors.NotInValidStatus, match="it was closed during the call"):
                await asking
        await world.gateway.fail("rol_a", LOST)
        trajectory = await world.gateway.closed("rol_a")
    assert (trajectory.rollout.status, trajectory.sampled_tokens) == (RolloutStatus.FAILED, 2)


async def test_the_loop_can_fail_a_rollout_once():
    async with a_world() as world:
        await world.gateway.fail("rol_a", LOST)
        await world.gateway.fail("rol_a", Fault(blame=Blame.SERVICE, code="cancelled"))
        assert (await world.gateway.closed("rol_a")).rollout.fault == LOST
        await complete(world, "failed")
        with pytest.raises(errors.Conflict, match="Cannot transition trajectory"):
            await complete(world)


async def test_a_report_cancelled_while_it_is_written_closes_the_rollout():
    """An agent's time limit may end its report; the deadline's alarm comes right after."""
    async with a_world() as world:
        move, entered, goes_on = world.store.move_rollout, asyncio.Event(), asyncio.Event()

        async def slow_move(*args: Any, **given: Any) -> Any:
            moved = await move(*args, **given)
            entered.set()
            await goes_on.wait()
            return moved

        world.store.move_rollout = slow_move  # type: ignore[method-assign]
        reporting = asyncio.create_task(world.gateway.finish(world.principal, "rol_a", (1.0,)))
        await entered.wait()
        failing = asyncio.create_task(world.gateway.fail("rol_a", LOST))
        await asyncio.sleep(0)
        reporting.cancel()
        await asyncio.sleep(0)
        goes_on.set()
        await failing
        with pytest.raises(asyncio.CancelledError):
            await reporting
        assert (await world.gateway.closed("rol_a")).rollout.rewards == (1.0,)


async def test_metrics_add_up_before_and_after_the_close():
    async with a_world() as world:
        await world.gateway.add_metrics("rol_a", {"a": 1.0})
        await world.gateway.fail("rol_a", LOST)
        await world.gateway.add_metrics("rol_a", {"b": 2.0})
        rollout = (await world.gateway.closed("rol_a")).rollout
    assert (rollout.metrics, rollout.status) == ({"a": 1.0, "b": 2.0}, RolloutStatus.FAILED)


async def test_a_rollout_that_the_store_superseded_takes_no_turn():
    async with a_world() as world:
        await world.store.supersede(builders.ACCOUNT, "job_walk", 2)
        with pytest.raises(errors.NotInValidStatus, match="it was closed during the call"):
            await chat(world, user("hi"))


async def test_late_calls_of_an_earlier_incarnation_are_refused_before_it_is_superseded():
    async with a_world() as world:
        world.gateway.detach("job_walk")
        world.gateway.attach(builders.job(incarnation=1), world.sampler, PlainRenderer())
        with pytest.raises(errors.NotInValidStatus) as caught:
            await chat(world, user("hi"))
        await world.open("rol_b", incarnation=2)
        await chat(world, user("hi"), rollout_id="rol_b")
    assert str(caught.value) == (
        "Trajectory rol_a is not in valid status (PENDING): it is of an earlier start of its job"
    )
    assert len(world.script.asked) == 1


# ── who may ───────────────────────────────────────────────────────────────────────────────────


async def test_other_accounts_rollouts_do_not_exist():
    async with a_world() as world:
        other = Principal(account_id="acc_other")
        with pytest.raises(errors.NotFound, match="trajectory 'rol_a' does not exist"):
            await world.gateway.complete_rollout(other, "rol_a", "ready")


async def test_models_are_those_of_the_callers_jobs():
    async with a_world() as world:
        its = {"account_id": builders.ACCOUNT}
        callers = [
            Principal(**its),
            Principal(**its, job_ids=frozenset({"job_walk"})),
            Principal(**its, job_ids=frozenset({"job_run"})),
            Principal(account_id="acc_other"),
        ]
        names = [world.gateway.models(caller, "job_walk") for caller in callers]
        assert world.gateway.models(callers[0], "job_run") == ()
    assert names == [("default", "walk", "tiny")] * 2 + [()] * 2


async def test_a_key_without_the_right_is_denied():
    async with a_world() as world:
        reader = Principal(account_id=builders.ACCOUNT, actions=frozenset({Action.READ}))
        with pytest.raises(errors.Denied, match="this key may not sample rollout 'rol_a'"):
            await world.gateway.chat(reader, "rol_a", ask(user("hi")), body=b"")
        with pytest.raises(errors.Denied, match="this key may not report rollout 'rol_a'"):
            await world.gateway.update_reward(reader, "rol_a", [1.0])


async def test_a_secret_is_good_for_its_own_rollout_only():
    async with a_world() as world:
        await world.open("rol_b")
        agent = await world.gateway.agent("rol_a", SECRET)
        assert agent is not None
        assert await world.gateway.agent("rol_a", "guessed") is None
        with pytest.raises(errors.Denied):
            await world.gateway.complete_rollout(agent, "rol_b", "ready")


async def test_an_unknown_rollout_is_an_unknown_trajectory():
    async with a_world() as world:
        for asked in (
            world.gateway.complete_rollout(world.principal, "rol_x", "ready"),
            world.gateway.update_reward(world.principal, "rol_x", [1.0]),
            world.gateway.chat(world.principal, "rol_x", ask(user("hi")), body=b""),
            world.gateway.closed("rol_x"),
        ):
            with pytest.raises(errors.NotFound, match="trajectory 'rol_x' does not exist"):
                await asked


async def test_only_two_words_complete_a_rollout():
    async with a_world() as world:
        with pytest.raises(errors.InvalidInput, match="Status: 'done' must be 'ready' or 'failed'"):
            await complete(world, "done")
