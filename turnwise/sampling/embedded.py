"""The embedded engine as a `Sampler`: one thread computes, asyncio waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future

import numpy as np

from turnwise import errors
from turnwise.domain.rollout import Floats, Tokens
from turnwise.ports import Chunk, EngineSpec, SampleRequest, SamplerInfo, SamplerStats
from turnwise.sampling.engine import Engine, Output
from turnwise.sampling.scheduler import Entry

_log = logging.getLogger(__name__)

#: The last chunk of a request that ended before it began.
_NOTHING = Chunk(
    tokens=np.empty(0, np.int32), logprobs=np.empty(0, np.float32), finish_reason="abort"
)

_Mailbox = asyncio.Queue[Chunk | errors.TurnwiseError]


class EmbeddedSampler:
    """A `Sampler` in this process. The constructor loads the model, which takes seconds.

    The thread steps the engine while there is work and sleeps otherwise. Results of a step reach
    each event loop in one call. If a step fails, every request under way fails with it and the
    sampler stays dead: the KV cache can no longer be trusted.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = Engine(spec)
        self._mailboxes: dict[Entry, tuple[asyncio.AbstractEventLoop, _Mailbox]] = {}
        self._jobs: deque[tuple[Callable[[], Floats], Future[Floats]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failure: errors.Unavailable | None = None
        self._failed: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def info(self) -> SamplerInfo:
        """What it is."""
        return self._engine.info

    async def load(self, adapter_id: str, path: str) -> None:
        """Read an adapter beside the requests under way."""
        await asyncio.to_thread(self._engine.load, adapter_id, path)

    async def retire(self, adapter_id: str) -> None:
        """Free an adapter once the last request on it has ended."""
        self._engine.retire(adapter_id)

    async def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        """Sample one completion."""
        self._check_alive()
        mailbox: _Mailbox = asyncio.Queue()
        entry = self._engine.new_entry(request)
        self._mailboxes[entry] = (asyncio.get_running_loop(), mailbox)
        try:
            self._engine.submit(entry)
            self._wake.set()
            while True:
                item = await mailbox.get()
                if isinstance(item, errors.TurnwiseError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            del self._mailboxes[entry]
            self._engine.abort(entry)

    async def abort(self, request_id: str) -> None:
        """End a request early; its last chunk has what was sampled since the one before."""
        for entry, (loop, mailbox) in list(self._mailboxes.items()):
            if entry.request.request_id == request_id and self._engine.abort(entry):
                loop.call_soon_threadsafe(mailbox.put_nowait, _NOTHING)

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        """Logprobs of given tokens, computed between two steps."""
        self._check_alive()
        done: Future[Floats] = Future()
        self._jobs.append((lambda: self._engine.score(tokens, adapter_id, temperature), done))
        self._wake.set()
        return await asyncio.wrap_future(done)

    async def stats(self) -> SamplerStats:
        """A snapshot."""
        return self._engine.stats()

    async def lost(self) -> None:
        """Return once a step has failed; else never, for it lives in this process."""
        await asyncio.shield(asyncio.wrap_future(self._failed))

    async def close(self) -> None:
        """End the thread; requests under way end with "abort"."""
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise errors.Unavailable("the engine is closed")

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                self._do_jobs()
                if self._engine.is_idle:
                    self._wake.wait()
                else:
                    self._deliver(self._engine.step())
            self._deliver(self._engine.abort_all())
            self._drop_jobs(errors.Unavailable("the engine is closed"))
        except Exception as error:  # the edge of the thread: nobody above it would hear of it
            _log.exception("the engine's step failed")
            self._fail(errors.Unavailable(f"the engine failed: {type(error).__name__}: {error}"))

    def _do_jobs(self) -> None:
        while self._jobs:
            work, done = self._jobs.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except errors.TurnwiseError as error:
                done.set_exception(error)

    def _drop_jobs(self, error: errors.TurnwiseError) -> None:
        while self._jobs:
            _, done = self._jobs.popleft()
            if done.set_running_or_notify_cancel():
                done.set_exception(error)

    def _deliver(self, outputs: Iterable[Output]) -> None:
        by_loop = defaultdict(list)
        for output in outputs:
            address = self._mailboxes.get(output.entry)
            if address is not None:
                loop, mailbox = address
                by_loop[loop].append((mailbox, output.chunk))
        for loop, letters in by_loop.items():
            loop.call_soon_threadsafe(_post, letters)

    def _fail(self, failure: errors.Unavailable) -> None:
        self._failure = failure
        self._drop_jobs(failure)
        for loop, mailbox in list(self._mailboxes.values()):
            loop.call_soon_threadsafe(mailbox.put_nowait, failure)
        self._failed.set_result(None)


def _post(letters: list[tuple[_Mailbox, Chunk]]) -> None:
    for mailbox, chunk in letters:
        mailbox.put_nowait(chunk)
