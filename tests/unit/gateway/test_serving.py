"""Which registered models are held loaded, and when they are given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.builders import ACCOUNT, package
from tests.unit.gateway.kit import HeldClock, PlainRenderer, Script, ask, user
from turnwise import errors
from turnwise.gateway.serving import Answered, OpenModel, Serving
from turnwise.ports import ModelPackage, SampleRequest
from turnwise.sampling.scripted import ScriptedSampler
from turnwise.system import new_id


class MortalSampler(ScriptedSampler):
    """A scripted sampler whose process can die, and that says when it was closed."""

    def __init__(self) -> None:
        super().__init__(Script(["hello"]))
        self.is_dead = False
        self.death_noticed = asyncio.Event()
        self.closed = asyncio.Event()

    async def generate(self, request: SampleRequest) -> AsyncIterator[Any]:
        if self.is_dead:
            raise errors.ProcessDied("the process that serves 'generate' has ended")
        async for chunk in super().generate(request):
            yield chunk

    async def lost(self) -> None:
        await self.death_noticed.wait()

    async def close(self) -> None:
        self.closed.set()


class Host:
    """Opens models, and remembers which."""

    def __init__(self, **options: Any) -> None:
        self.opened: list[tuple[int, MortalSampler]] = []
        self.refusal: errors.TurnwiseError | None = None
        self.may_open = asyncio.Event()
        self.may_open.set()
        limits: dict[str, Any] = {"idle_s": 600.0, "max_models": 8} | options
        self.serving = Serving(self._open, HeldClock(), new_id, **limits)

    async def _open(self, package: ModelPackage) -> OpenModel:
        await self.may_open.wait()
        if self.refusal is not None:
            raise self.refusal
        sampler = MortalSampler()
        await sampler.load(package.sha256, package.path)
        self.opened.append((package.version, sampler))
        return OpenModel(
            sampler=sampler,
            renderer=PlainRenderer(),
            adapter_id=package.sha256,
            max_length=100,
        )

    async def call(self, version: int = 1) -> Any:
        reply = await self.serving.ask(ACCOUNT, package(version), ask(user("hi"))).reply()
        return reply.message["content"]


async def test_calls_at_once_open_a_model_once():
    host = Host()
    host.may_open.clear()
    calls = [asyncio.create_task(host.call()) for _ in range(3)]
    await asyncio.sleep(0)
    host.may_open.set()
    assert await asyncio.gather(*calls) == ["hello"] * 3
    assert await host.call() == "hello"
    assert [version for version, _ in host.opened] == [1]
    await host.serving.close()


async def test_a_model_that_nobody_asks_for_is_given_up_and_opened_again_when_asked_for():
    host = Host(idle_s=0.001)
    await host.call()
    async with asyncio.timeout(30):
        await host.opened[0][1].closed.wait()
    assert host.serving.loaded == ()
    assert await host.call() == "hello"
    assert len(host.opened) == 2
    await host.serving.close()


async def test_the_models_that_have_waited_longest_make_room():
    host = Host(max_models=2)
    for version in (1, 2, 1, 3):
        await host.call(version)
    await asyncio.sleep(0)
    assert host.serving.loaded == ("package_1", "package_3")
    async with asyncio.timeout(30):
        await dict(host.opened)[2].closed.wait()
    await host.serving.close()
    assert all(sampler.closed.is_set() for _, sampler in host.opened)


async def test_a_model_whose_engine_died_is_opened_anew():
    host = Host()
    await host.call()
    first = host.opened[0][1]
    first.is_dead = True
    with pytest.raises(errors.Unavailable) as refused:
        await host.call()
    assert str(refused.value) == "the engine of walk/1 has ended; the next call starts another"
    assert refused.value.retry_after_s == 1.0
    first.death_noticed.set()
    assert await host.call() == "hello"
    assert len(host.opened) == 2
    await host.serving.close()


async def test_a_model_that_cannot_be_opened_says_so_and_is_tried_again():
    host = Host()
    host.refusal = errors.Corrupted("model walk/1 is damaged")
    for _ in range(2):
        with pytest.raises(errors.Corrupted, match="model walk/1 is damaged"):
            await host.call()
    host.refusal = None
    assert await host.call() == "hello"
    await host.serving.close()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_closing_ends_calls_that_wait_for_a_model(turns: int):
    host = Host()
    host.may_open.clear()
    call = asyncio.create_task(host.call())
    for _ in range(turns):  # asked, begun, being opened
        await asyncio.sleep(0)
    await host.serving.close()
    with pytest.raises(errors.Unavailable, match="the server is going down"):
        await call
    assert host.opened == []


async def test_a_call_is_recorded_before_its_reply_is_there():
    host, seen = Host(), []

    async def record(answered: Answered) -> None:
        await asyncio.sleep(0)
        seen.append((answered, exchange.is_running))

    exchange = host.serving.ask(ACCOUNT, package(1), ask(user("hi")), record)
    reply = await exchange.reply()
    ((answered, was_running),) = seen
    assert was_running
    assert answered.reply == reply
    assert answered.request == ask(user("hi"))
    assert len(answered.prompt) == reply.prompt_tokens
    assert len(answered.completion) == len(answered.logprobs) == reply.completion_tokens
    await host.serving.close()


async def test_what_recording_raises_is_what_the_caller_gets():
    host = Host()

    async def record(answered: Answered) -> None:
        raise errors.StorageFull("make room")

    with pytest.raises(errors.StorageFull, match="make room"):
        await host.serving.ask(ACCOUNT, package(1), ask(user("hi")), record).reply()
    assert await host.call() == "hello"
    await host.serving.close()
