"""The gateway's own cost: everything around the model, which is scripted here.

One server process as in production (uvicorn, uvloop, SQLite in WAL with synchronous=FULL, a real
chat template and tokenizer) records every turn; this process is the agents. Each rollout talks
for four turns, with bodies of 2 KB on average, so that later turns match and extend earlier ones.

- 200 requests/s, Poisson arrivals, open loop: a request's latency counts from when it was due,
  less the same quantile of a bare answer by the same process over the same client, which is what
  the client, its clock and the HTTP server cost.
- 64 connections, closed loop: the most requests per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import uvicorn
import uvloop
from tokenizers import AddedToken, pre_tokenizers, trainers
from tokenizers import Tokenizer as HubTokenizer

from tests import builders
from tests.families import save_family
from turnwise.access.keys import sha256_hex
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.models.served import ServedModels
from turnwise.control.traces import Traces
from turnwise.domain.access import Principal
from turnwise.domain.job import History
from turnwise.domain.rollout import SamplingParams
from turnwise.gateway.gateway import Gateway
from turnwise.gateway.serving import Serving
from turnwise.ports import ModelPackage
from turnwise.rendering.family import load_renderer
from turnwise.rendering.tokenizer import Tokenizer
from turnwise.sampling.scripted import Completion, ScriptedSampler
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.wire.asgi import HttpCall, Receive, Scope, Send
from turnwise.wire.dataplane import DataPlane

RATE = 200.0  # requests/s
CONNECTIONS = 64
TURNS = 4
ROLLOUTS = 8_000
SECRET = "secret"
BARE = "/bare"  # answered at once, past the gateway

SYSTEM = {"role": "system", "content": "Inspect the aircraft by the written procedure. " * 24}
QUESTION = {"role": "user", "content": "Which of the components has to be replaced? " * 5}
THOUGHT = "The record says that this component is operational, so the next one is looked up."
CALL = {"name": "look_up", "arguments": {"component": "hydraulic pump", "aircraft": "AC01"}}
REPLY = f"{THOUGHT}\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
ROW = "component, aircraft, reading, limit: hydraulic pump, AC01, 12, 20. " * 2


def run(repeats: int = 3, seconds: float = 6.0) -> list[dict[str, Any]]:
    """Records of latency, CPU per request and throughput."""
    with _server() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(_measure(server, repeats, seconds))
    return [
        _record("gateway adds, p50 at 200 requests/s", [r.p50 for r in rounds], 2e-3, "ms"),
        _record("gateway adds, p99 at 200 requests/s", [r.p99 for r in rounds], 10e-3, "ms"),
        _record("gateway CPU per request", [r.cpu for r in rounds], 1e-3, "ms"),
        _record("gateway requests/s, 64 connections", [r.most for r in rounds], None, "1/s"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One repeat; times in seconds."""

    p50: float
    p99: float
    cpu: float  # of the server, per request at 200 requests/s
    most: float  # requests per second


def _record(name: str, values: Sequence[float], goal_s: float | None, unit: str) -> dict[str, Any]:
    """The median over the repeats; where less is better the ratio is goal / ours: 1 meets it."""
    ours, scale = statistics.median(values), 1e3 if unit == "ms" else 1.0
    return {
        "name": name,
        "ours": ours * scale,
        "peer": None,
        "ratio": None if goal_s is None else goal_s / ours,
        "goal": None if goal_s is None else 1.0,
        "unit": unit,
        "spread": (max(values) - min(values)) / ours,
    }


# ── the agents ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Server:
    """A server process."""

    pid: int
    url: str

    @property
    def cpu_s(self) -> float:
        """CPU seconds it has used, all threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Ask = Callable[[int, int], Awaitable[None]]  # (rollout, turn)


@dataclass(frozen=True, slots=True)
class Agents:
    """What the agents can ask: a recorded turn, or the bare answer beside it."""

    turn: Ask
    bare: Ask


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[int(len(ordered) * q)]


async def _measure(server: Server, repeats: int, seconds: float) -> list[Round]:
    async with _agents(server.url) as ask:
        fresh = itertools.count()
        await _closed_loop(ask.turn, fresh, 1.0)  # warm
        rounds = []
        for repeat in range(repeats):
            before = server.cpu_s
            latencies = await _open_loop(ask.turn, fresh, seconds, random.Random(repeat))
            cpu = (server.cpu_s - before) / len(latencies)
            bare = await _open_loop(ask.bare, itertools.count(), seconds, random.Random(repeat))
            p50, p99 = (_quantile(latencies, q) - _quantile(bare, q) for q in (0.5, 0.99))
            most = await _closed_loop(ask.turn, fresh, seconds / 2)
            rounds.append(Round(p50=p50, p99=p99, cpu=cpu, most=most))
        return rounds


@contextlib.asynccontextmanager
async def _agents(url: str) -> AsyncIterator[Agents]:
    bodies = [_body(turn) for turn in range(TURNS)]
    headers = {"content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(place: str, body: bytes) -> None:
            async with session.post(url + place, data=body, headers=headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(await answer.text())
                await answer.read()

        async def turn(rollout: int, number: int) -> None:
            await post(f"/r/rol_{rollout}.{SECRET}/v1/chat/completions", bodies[number])

        async def bare(_: int, number: int) -> None:
            await post(BARE, bodies[number])

        yield Agents(turn, bare)


def _body(turn: int) -> bytes:
    """The request of a rollout's n-th turn: a tool loop with its history."""
    function = {"name": CALL["name"], "arguments": json.dumps(CALL["arguments"])}
    called = {"id": "call_1", "type": "function", "function": function}
    answer = {"role": "assistant", "content": THOUGHT, "tool_calls": [called]}
    row = {"role": "tool", "tool_call_id": "call_1", "content": ROW}
    messages = [SYSTEM, QUESTION, *([answer, row] * turn)]
    return json.dumps({"model": "default", "messages": messages, "temperature": 1.0}).encode()


async def _open_loop(
    ask: Ask, fresh: Iterator[int], seconds: float, rng: random.Random
) -> list[float]:
    """Sorted latencies of Poisson arrivals, each counted from when it was due."""
    latencies: list[float] = []

    async def one(rollout: int, turn: int, due: float) -> None:
        await ask(rollout, turn)
        latencies.append(time.perf_counter() - due)

    start = due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        # 50 rollouts at a time, so that a quarter of a second lies between a rollout's turns.
        for block in iter(lambda: list(itertools.islice(fresh, 50)), []):
            for turn, rollout in itertools.product(range(TURNS), block):
                due += rng.expovariate(RATE)
                if due - start > seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(rollout, turn, due))
            if due - start > seconds:
                break
    return sorted(latencies)


async def _closed_loop(ask: Ask, fresh: Iterator[int], seconds: float) -> float:
    """Requests per second with every connection always busy."""
    start, answered = time.perf_counter(), 0

    async def one_connection() -> None:
        nonlocal answered
        while time.perf_counter() - start < seconds:
            rollout = next(fresh)
            for turn in range(TURNS):
                await ask(rollout, turn)
                answered += 1

    await asyncio.gather(*(one_connection() for _ in range(CONNECTIONS)))
    return answered / (time.perf_counter() - start)


# ── the server ────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gateway", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield Server(process.pid, f"http://127.0.0.1:{port}")
        finally:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


async def _no_models(package: ModelPackage) -> NoReturn:
    raise AssertionError("every call here is inside a rollout")


async def _serve(folder: Path) -> None:
    """Serve until stdin closes; the port is the first line of stdout."""
    model = _model_folder(folder / "model")
    store = SqlStore.open(folder / "turnwise.db")
    job = await store.create_job(builders.job(spec=builders.spec(model=str(model))))
    await store.open_group(builders.group())
    reply = [*Tokenizer.load(model).encode(REPLY)]
    gateway = Gateway(store, SYSTEM_CLOCK, new_id)
    renderer = load_renderer(model, History.TEMPLATE)
    reply.append(renderer.stop_ids[0])
    gateway.attach(job, ScriptedSampler([Completion(tokens=reply)]), renderer)
    await gateway.open([_rollout(n) for n in range(ROLLOUTS)])

    async def authenticate(bearer: str) -> Principal:
        return Principal(account_id=builders.ACCOUNT)

    serving = Serving(_no_models, SYSTEM_CLOCK, new_id, idle_s=600, max_models=1)
    data_plane = DataPlane(
        gateway,
        serving,
        ServedModels(store, Catalogue(folder)),
        authenticate,
        lambda account_id: "000000000001",
        store.account,
        Traces(store, SYSTEM_CLOCK, retention_days=1),
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != BARE:
            await data_plane(scope, receive, send)
            return
        http = HttpCall(scope, receive, send)
        await http.body()
        await http.answer(200, b"{}")

    server = uvicorn.Server(
        uvicorn.Config(app, port=0, lifespan="off", log_level="warning", access_log=False)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    gc.collect()
    gc.freeze()  # as the server itself does once it is open
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving
    await gateway.close()
    await store.close()


def _model_folder(folder: Path) -> Path:
    """Qwen3's chat format with a vocabulary that has our words, as a full-sized one has."""
    save_family(folder, "qwen3")
    tokenizer = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [SYSTEM["content"], QUESTION["content"], REPLY, ROW]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _rollout(n: int) -> Any:
    return builders.rollout(
        f"rol_{n}",
        attempt=n,
        secret_sha256=sha256_hex(SECRET),
        sampling=SamplingParams(max_tokens=256),
        deadline_at=time.time() + 3600,
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(Path(sys.argv[1])))
