"""One request at the sampler, so that ending it early leaves no sampled token uncounted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from turnwise import errors
from turnwise.domain.rollout import FinishReason
from turnwise.gateway.chat import Delta
from turnwise.gateway.turns import Completion
from turnwise.ports import Chunk, Sampler, SampleRequest

#: A sampler that was told to end a request answers within a step or two; one that does not is
#: stuck, and what it has sampled is lost with it.
ABORT_WAIT_S = 5.0

Take = Callable[[Chunk], bool]


async def listen(
    sampler: Sampler,
    ask: SampleRequest,
    said: Completion,
    publish: Callable[[Sequence[Delta]], None],
    in_time: contextlib.AbstractAsyncContextManager[object],
) -> None:
    """Take a completion in until the model or a stop string ends it, within `in_time`.

    `publish` is given what may be sent, as it becomes certain. Raises `Unavailable` if the sampler
    ended it before, and what `in_time` raises.
    """

    def take(chunk: Chunk) -> bool:
        publish(said.feed(chunk))
        return not said.is_stopped

    async with generating(sampler, ask, take) as reading, in_time:
        await asyncio.shield(reading)
    if said.finish_reason in (None, FinishReason.ABORT) and not said.is_stopped:
        raise errors.Unavailable("the sampler ended the call early", retry_after_s=1.0)


@contextlib.asynccontextmanager
async def generating(
    sampler: Sampler, ask: SampleRequest, take: Take
) -> AsyncIterator[asyncio.Task[None]]:
    """Sample in a task of its own, which hands every chunk to `take` and ends with the request.

    The request is aborted as soon as `take` answers False (a stop string was found), or when the
    block is left before its end (a time limit, a client that has gone). What was sampled by then
    still comes to `take`, before the block is left.
    """
    task = asyncio.create_task(_read(sampler, ask, take), name=f"sample {ask.request_id}")
    try:
        yield task
    finally:
        if not task.done():
            await _abort(sampler, ask.request_id, task)


async def _read(sampler: Sampler, ask: SampleRequest, take: Take) -> None:
    stream = sampler.generate(ask)
    is_aborted = False
    try:
        async for chunk in stream:
            if not take(chunk) and chunk.finish_reason is None and not is_aborted:
                is_aborted = True
                await sampler.abort(ask.request_id)
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def _abort(sampler: Sampler, request_id: str, task: asyncio.Task[None]) -> None:
    try:
        async with asyncio.timeout(ABORT_WAIT_S):
            await sampler.abort(request_id)
            await asyncio.wait({task})
    except (TimeoutError, errors.TurnwiseError):
        pass  # it is stuck, or gone
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
