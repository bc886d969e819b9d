"""The channel between the server and its processes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest

from turnwise import channel, errors
from turnwise.domain.rollout import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    tokens: Tokens
    times: int = 1


class Far:
    """The process at the other end, in this process."""

    def __init__(self) -> None:
        self.closed_after: int | None = None

    async def double(self, ask: Ask) -> Tokens:
        return ask.tokens * 2

    async def refuse(self, ask: Ask) -> None:
        raise errors.InvalidInput("tokens", [1], "must be odd", remedy="add one")

    async def crash(self, ask: Ask) -> None:
        raise ZeroDivisionError("by zero")

    async def hang(self, ask: Ask) -> None:
        await asyncio.Event().wait()

    async def count(self, ask: Ask) -> AsyncIterator[int]:
        n = 0
        try:
            for n in range(ask.times):
                yield n
                await asyncio.sleep(0)
        finally:
            self.closed_after = n


@pytest.fixture
async def link(tmp_path):
    far = Far()
    methods = {
        "double": channel.Method(Ask, far.double),
        "refuse": channel.Method(Ask, far.refuse),
        "crash": channel.Method(Ask, far.crash),
        "hang": channel.Method(Ask, far.hang),
        "count": channel.Method(Ask, far.count, streaming=True),
    }
    path = str(tmp_path / "s")
    serving = asyncio.create_task(channel.serve(path, methods))
    near = await channel.Connection.open(path)
    yield far, near, serving
    await near.close()
    await asyncio.wait_for(serving, 5)


ASK = Ask(tokens=np.arange(3, dtype=np.int32), times=3)


async def test_arrays_cross_and_come_back_writable(link):
    _, near, _ = link
    doubled = await near.call("double", ASK, Tokens)
    assert doubled.dtype == np.int32
    assert doubled.flags.writeable
    assert doubled.tolist() == [0, 2, 4]


async def test_a_stream_yields_its_items_in_order(link):
    _, near, _ = link
    assert [n async for n in near.stream("count", ASK, int)] == [0, 1, 2]


async def test_an_error_keeps_its_class_and_its_fields(link):
    _, near, _ = link
    with pytest.raises(errors.InvalidInput, match="must be odd; add one") as caught:
        await near.call("refuse", ASK, int)
    assert caught.value.field == "tokens"
    assert str(caught.value) == "tokens: [1] must be odd; add one"


async def test_a_crash_in_a_handler_is_named_and_harms_no_other_call(link):
    _, near, _ = link
    with pytest.raises(errors.TurnwiseError, match="ZeroDivisionError: by zero"):
        await near.call("crash", ASK, int)
    assert (await near.call("double", ASK, Tokens)).tolist() == [0, 2, 4]


async def test_leaving_a_stream_ends_it_at_the_far_end(link):
    far, near, _ = link
    stream = near.stream("count", Ask(tokens=ASK.tokens, times=1_000_000), int)
    assert await anext(stream) == 0
    await stream.aclose()
    while far.closed_after is None:
        await asyncio.sleep(0.01)
    assert far.closed_after < 999_999


async def test_the_far_end_stops_serving_when_the_parent_closes(link):
    _, near, serving = link
    await near.close()
    await asyncio.wait_for(serving, 5)


async def test_a_waiting_call_learns_that_the_process_died(link):
    _, near, _ = link
    waiting = asyncio.create_task(near.call("hang", ASK, int))
    await asyncio.sleep(0.05)
    await near.close()
    with pytest.raises(errors.ProcessDied, match="before it answered 'hang'"):
        await waiting
    with pytest.raises(errors.ProcessDied, match="has ended"):
        await near.call("double", ASK, Tokens)


async def test_opening_a_process_that_has_died_says_so(tmp_path):
    with pytest.raises(errors.ProcessDied, match="no process answers at gone"):
        await channel.Connection.open(str(tmp_path / "gone"), alive=lambda: False)
