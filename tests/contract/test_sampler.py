"""What every `Sampler` does, run over the fake, the engine, and the engine behind a channel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from tests.numerics.test_engine import save_adapter
from tests.tiny import save_tiny_model
from turnwise import errors
from turnwise.channel import Connection
from turnwise.domain.rollout import SamplingParams
from turnwise.ports import Chunk, EngineSpec, Sampler, SampleRequest
from turnwise.sampling.embedded import EmbeddedSampler
from turnwise.sampling.engine import Engine
from turnwise.sampling.handle import RemoteSampler
from turnwise.sampling.process import serve_engine
from turnwise.sampling.scripted import Completion, ScriptedSampler

VOCAB = 512
MAX_LENGTH = 256


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An adapter's id and folder."""
    folder = tmp_path_factory.mktemp("adapter")
    return save_adapter(folder, base, rank=4, seed=1), str(folder)


def scripted(max_slots: int, max_queue: int) -> ScriptedSampler:
    return ScriptedSampler(
        lambda request: Completion([i % VOCAB for i in range(request.seed, request.seed + 300)]),
        vocab_size=VOCAB,
        max_length=MAX_LENGTH,
        max_slots=max_slots,
        max_queue=max_queue,
        seconds_per_token=0.001,
    )


@pytest.fixture(params=["scripted", "embedded", "remote"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def opened(
    kind: str, base: Path, *, max_slots: int, max_queue: int
) -> AsyncIterator[Sampler]:
    if kind == "scripted":
        yield scripted(max_slots, max_queue)
        return
    spec = EngineSpec(
        base_model=str(base), max_slots=max_slots, max_queue=max_queue, max_length=MAX_LENGTH
    )
    if kind == "embedded":
        sampler = EmbeddedSampler(spec)
        yield sampler
        await sampler.close()
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    serving = asyncio.create_task(serve_engine(theirs, spec))
    remote = RemoteSampler(await Connection.over(ours))
    yield remote
    await remote.close()
    await serving


@pytest.fixture
async def sampler(kind: str, base: Path) -> AsyncIterator[Sampler]:
    async for made in opened(kind, base, max_slots=4, max_queue=2):
        yield made


@pytest.fixture
async def narrow(kind: str, base: Path) -> AsyncIterator[Sampler]:
    """Runs one request at a time; one more may wait."""
    async for made in opened(kind, base, max_slots=1, max_queue=1):
        yield made


def request(name: str = "a", prompt: list[int] | None = None, **changes: object) -> SampleRequest:
    sampling = {
        key: changes.pop(key)
        for key in ("temperature", "top_p", "top_k", "max_tokens")
        if key in changes
    }
    fields = {
        "request_id": name,
        "claimant": "job/train",
        "prompt": np.array(prompt or [1, 2, 3], np.int32),
        "adapter_id": None,
        "sampling": SamplingParams(**({"max_tokens": 8} | sampling)),
        "seed": 11,
    }
    return SampleRequest(**(fields | changes))


async def chunks(sampler: Sampler, sent: SampleRequest) -> list[Chunk]:
    return [chunk async for chunk in sampler.generate(sent)]


async def complete(sampler: Sampler, sent: SampleRequest) -> Chunk:
    [chunk] = await chunks(sampler, sent)
    return chunk


async def test_it_says_what_it_is(sampler: Sampler) -> None:
    info = await sampler.info()
    assert (info.vocab_size, info.max_length, info.max_slots) == (VOCAB, MAX_LENGTH, 4)
    assert info.sampled_logprobs


async def test_a_completion_comes_as_one_chunk_and_ends_at_max_tokens(sampler: Sampler) -> None:
    chunk = await complete(sampler, request(max_tokens=8))
    assert (len(chunk.tokens), len(chunk.logprobs), chunk.finish_reason) == (8, 8, "length")
    assert chunk.tokens.dtype == np.int32
    assert chunk.logprobs.dtype == np.float32
    assert (chunk.logprobs <= 0).all()


async def test_the_same_request_gives_the_same_tokens_and_another_seed_others(
    sampler: Sampler,
) -> None:
    first, again = await asyncio.gather(*(complete(sampler, request(n)) for n in "ab"))
    other = await complete(sampler, request("c", seed=12))
    assert first.tokens.tolist() == again.tokens.tolist()
    assert first.tokens.tolist() != other.tokens.tolist()


async def test_a_stop_token_ends_it_and_is_included(sampler: Sampler) -> None:
    free = (await complete(sampler, request())).tokens.tolist()
    stop = free[3]
    chunk = await complete(sampler, request("b", stop_ids=(stop,)))
    assert chunk.finish_reason == "stop"
    assert chunk.tokens.tolist() == free[: free.index(stop) + 1]


async def test_a_stop_on_the_last_allowed_token_is_a_stop(sampler: Sampler) -> None:
    free = (await complete(sampler, request(max_tokens=4))).tokens.tolist()
    chunk = await complete(sampler, request("b", max_tokens=4, stop_ids=(free[3],)))
    assert chunk.finish_reason == "stop"


async def test_a_completion_ends_where_the_context_does(sampler: Sampler) -> None:
    chunk = await complete(sampler, request(prompt=[5] * (MAX_LENGTH - 3), max_tokens=50))
    assert (len(chunk.tokens), chunk.finish_reason) == (3, "length")


async def test_a_joined_stream_equals_the_unstreamed_completion(sampler: Sampler) -> None:
    whole = await complete(sampler, request(max_tokens=40))
    parts = await chunks(sampler, request("b", max_tokens=40, stream=True))
    assert np.concatenate([p.tokens for p in parts]).tolist() == whole.tokens.tolist()
    assert [p.finish_reason for p in parts] == [None] * (len(parts) - 1) + ["length"]
    np.testing.assert_allclose(
        np.concatenate([p.logprobs for p in parts]), whole.logprobs, atol=1e-5
    )
    assert len(parts) > 1


async def test_leaving_a_stream_frees_its_slot(narrow: Sampler) -> None:
    stream = narrow.generate(request(max_tokens=250, stream=True))
    async with aclosing(stream):  # type: ignore[type-var]
        await anext(stream)
    assert (await complete(narrow, request("b", max_tokens=2))).finish_reason == "length"
    assert (await narrow.stats()).running == 0


async def test_cancelling_a_request_frees_its_slot(narrow: Sampler) -> None:
    task = asyncio.create_task(complete(narrow, request(max_tokens=250)))
    while (await narrow.stats()).running == 0:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await complete(narrow, request("b", max_tokens=2))).finish_reason == "length"


async def test_an_aborted_stream_ends_with_what_was_sampled_since(narrow: Sampler) -> None:
    whole = await complete(narrow, request(max_tokens=120))
    before = (await narrow.stats()).sampled_tokens
    parts = []
    async for chunk in narrow.generate(request("b", max_tokens=120, stream=True)):
        parts.append(chunk)
        await narrow.abort("b")
    assert [p.finish_reason for p in parts] == [None] * (len(parts) - 1) + ["abort"]
    tokens = np.concatenate([p.tokens for p in parts]).tolist()
    assert tokens == whole.tokens.tolist()[: len(tokens)]
    assert len(tokens) == sum(len(p.logprobs) for p in parts)
    stats = await narrow.stats()
    assert (stats.running, stats.sampled_tokens - before) == (0, len(tokens))


async def test_an_aborted_request_that_does_not_stream_tells_what_it_has(sampler: Sampler) -> None:
    whole = await complete(sampler, request(max_tokens=120))
    for attempt in range(20):  # the engine is a thread of its own: it may be done before the abort
        task = asyncio.create_task(complete(sampler, request(f"b{attempt}", max_tokens=120)))
        beside = sampler.generate(request(f"c{attempt}", max_tokens=120, stream=True))
        async with aclosing(beside):  # type: ignore[type-var]
            for _ in range(3):
                await anext(beside)
            await sampler.abort(f"b{attempt}")
            partial = await task
        assert partial.tokens.tolist() == whole.tokens.tolist()[: len(partial.tokens)]
        if 0 < len(partial.tokens) < 120:
            break
    assert 0 < len(partial.tokens) < 120
    assert partial.finish_reason == "abort"


async def test_an_aborted_request_that_still_waits_has_nothing_to_tell(narrow: Sampler) -> None:
    first = asyncio.create_task(complete(narrow, request(max_tokens=100)))
    second = asyncio.create_task(complete(narrow, request("b")))
    while (await narrow.stats()).waiting == 0:
        await asyncio.sleep(0)
    await narrow.abort("b")
    ended = await second
    assert (len(ended.tokens), ended.finish_reason) == (0, "abort")
    await narrow.abort("b")  # again, or one that never was: nothing happens
    await narrow.abort("nobody")
    assert (len((await first).tokens), (await narrow.stats()).waiting) == (100, 0)


async def test_a_full_queue_refuses_all_but_admitted_requests(narrow: Sampler) -> None:
    under_way = [
        asyncio.create_task(complete(narrow, request(n, max_tokens=60))) for n in ("a", "b")
    ]
    while (await narrow.stats()).waiting == 0:
        await asyncio.sleep(0)
    with pytest.raises(errors.LimitExceeded, match="requests are waiting already") as caught:
        await complete(narrow, request("c", admitted=False))
    assert caught.value.retry_after_s is not None
    admitted = await complete(narrow, request("d", max_tokens=2))
    assert admitted.finish_reason == "length"
    await asyncio.gather(*under_way)


async def test_an_adapter_is_known_from_load_to_retire(
    sampler: Sampler, adapter: tuple[str, str]
) -> None:
    adapter_id, folder = adapter
    sent = request(adapter_id=adapter_id)
    with pytest.raises(errors.NotFound, match=f"adapter '{adapter_id}' does not exist"):
        await complete(sampler, sent)
    await sampler.load(adapter_id, folder)
    await sampler.load(adapter_id, folder)
    assert (await sampler.stats()).adapters == 1
    assert (await complete(sampler, sent)).finish_reason == "length"
    await sampler.retire(adapter_id)
    await sampler.retire("never loaded")
    with pytest.raises(errors.NotFound):
        await complete(sampler, sent)
    assert (await sampler.stats()).adapters == 0


async def test_a_request_under_way_ends_on_an_adapter_retired_meanwhile(
    sampler: Sampler, adapter: tuple[str, str]
) -> None:
    adapter_id, folder = adapter
    await sampler.load(adapter_id, folder)
    sent = request(adapter_id=adapter_id, max_tokens=60)
    expected = await complete(sampler, sent)
    under_way = asyncio.create_task(complete(sampler, sent))
    while (await sampler.stats()).running == 0:
        await asyncio.sleep(0)
    await sampler.retire(adapter_id)
    assert (await under_way).tokens.tolist() == expected.tokens.tolist()
    assert (await sampler.stats()).adapters == 0


async def test_scores_line_up_with_the_tokens(sampler: Sampler) -> None:
    tokens = np.array([4, 5, 6, 7], np.int32)
    scores = await sampler.score(tokens, None)
    assert (scores.shape, scores.dtype, scores[0]) == ((4,), np.float32, 0.0)
    assert (scores[1:] < 0).all()
    with pytest.raises(errors.NotFound):
        await sampler.score(tokens, "unknown")
    with pytest.raises(errors.InvalidInput, match="is no token of a vocabulary"):
        await sampler.score(np.array([1, VOCAB], np.int32), None)
    assert (await complete(sampler, request())).finish_reason == "length"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [1] * MAX_LENGTH}, "prompt: 256 tokens leaves no room for a reply"),
        ({"prompt": [VOCAB]}, f"prompt: {VOCAB} is no token of a vocabulary of {VOCAB}"),
        ({"temperature": -1.0}, "temperature: -1.0 must be at least 0"),
        ({"top_p": 0.0}, "top_p: 0.0 must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k: -1 must be at least 0"),
        ({"max_tokens": 0}, "max_tokens: 0 must be at least 1"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_its_field(
    sampler: Sampler, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        await complete(sampler, request(**changes))
    # A value that crossed a channel is shown by its representation.
    assert message in str(caught.value).translate(str.maketrans("", "", "'\""))


async def test_closing_ends_what_is_under_way(kind: str, base: Path) -> None:
    async for sampler in opened(kind, base, max_slots=2, max_queue=2):
        under_way = asyncio.create_task(chunks(sampler, request(max_tokens=250, stream=True)))
        while (await sampler.stats()).running == 0:
            await asyncio.sleep(0)
        await sampler.close()
        if kind == "remote":  # its process has gone, and an abort cannot be told from a crash
            with pytest.raises(errors.ProcessDied):
                await under_way
        else:
            assert (await under_way)[-1].finish_reason == "abort"


async def test_a_step_that_fails_ends_the_engine(
    kind: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that jobs and served models find it lost, rather than fail call by call for ever."""
    if kind == "scripted":
        pytest.skip("has no steps")

    def out_of_memory(_: Engine) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "step", out_of_memory)
    async for sampler in opened(kind, base, max_slots=1, max_queue=1):
        with pytest.raises(errors.Unavailable, match="the engine failed: RuntimeError: out of"):
            await complete(sampler, request())
        async with asyncio.timeout(30):
            await sampler.lost()


async def test_a_wrong_hash_is_corruption(base: Path, adapter: tuple[str, str]) -> None:
    async for sampler in opened("embedded", base, max_slots=1, max_queue=1):
        with pytest.raises(errors.Corrupted, match=f"is {adapter[0]}, not {'0' * 64}"):
            await sampler.load("0" * 64, adapter[1])


async def test_a_model_that_cannot_be_loaded_is_told_by_every_call(tmp_path: Path) -> None:
    async for sampler in opened("remote", tmp_path / "none", max_slots=1, max_queue=1):
        with pytest.raises(errors.InvalidInput, match="does not exist"):
            await sampler.info()
        with pytest.raises(errors.InvalidInput, match="does not exist"):
            await complete(sampler, request())
