"""What people who look cost: a server with a running job, watched by 20 viewers and by none.

Each viewer keeps one stream open, as a browser tab does: the list of jobs, the job's page, or its
log. The job's agent asks for a turn in a rhythm of its own, so the server's CPU seconds with and
without viewers are of the same work; they are measured in turns, none - some - none, so that what
drifts falls out. Afterwards the latency of calls through the gateway, with viewers who open pages
of rollouts all the time and without.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from benchmarks import scripted
from benchmarks.processes import Server, cpu_s, serving
from turnwise.client import Client

VIEWERS = 20
SECONDS = 60.0
GOAL_SHARE = 0.02  # of one core, all viewers together
OPENERS = 4  # viewers who open page after page
OPEN_S = 1.0  # and look at each so long
CALL_S = 0.05  # between two calls of the gateway
JOB = "watched"

Visit = Callable[[httpx.AsyncClient], Coroutine[None, None, None]]


def run(seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Records of CPU and of latency."""
    with tempfile.TemporaryDirectory() as folder:
        made = scripted.prepare(Path(folder))
        with serving(Path(folder) / "data") as server, server.client() as client:
            client.create_job(_job(made))
            _wait_for_steps(client, 3)
            return asyncio.run(_measure(server, client, seconds))


def _job(made: tuple[Path, Path]) -> dict[str, Any]:
    return scripted.job(
        JOB,
        made,
        batch={"global_batch_size": 2, "group_size": 4},
        schedule={"max_steps": 10_000, "max_epochs": 10_000, "val_every": 0},
        rollout={"rollout_max_concurrency": 8, "rollout_timeout": 120},
    )


def _wait_for_steps(client: Client, steps: int) -> None:
    while (job := client.job(JOB))["step"] < steps:
        if job["status"] not in ("PENDING", "RUNNING"):
            raise RuntimeError(f"{JOB} ended {job['status']}: {job['message']}")
        time.sleep(0.2)


async def _measure(server: Server, client: Client, seconds: float) -> list[dict[str, Any]]:
    key = (server.data_dir / "admin.key").read_text().strip()
    async with _visitor(server.url, key) as visitor:
        before = await _share(server, seconds / 2)
        async with _visiting(visitor, [_stream(path) for path in _streams()]):
            await asyncio.sleep(2)  # each gets its first rendering
            watched = await _share(server, seconds)
        after = await _share(server, seconds / 2)
        model = client.models()[-1]["name"]
        opened = [_opening(client) for _ in range(OPENERS)]
        async with _visiting(visitor, opened[:1]):  # templates are compiled by their first use
            await asyncio.sleep(5)
        alone = await _latencies(server.url, key, model, seconds / 2)
        async with _visiting(visitor, opened):
            beside = await _latencies(server.url, key, model, seconds / 2)
    alone_share = (before + after) / 2
    return [
        _cpu_record(watched, alone_share, abs(before - after)),
        _latency_record("p50", 0.5, beside, alone),
        _latency_record("p99", 0.99, beside, alone),
    ]


async def _share(server: Server, seconds: float) -> float:
    """Of one core, what the server process itself used for so long."""
    used, began = cpu_s(server.pid), time.perf_counter()
    await asyncio.sleep(seconds)
    return (cpu_s(server.pid) - used) / (time.perf_counter() - began)


# ── viewers ───────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _visitor(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as visitor:
        reply = await visitor.post("/dashboard/sign-in", data={"key": key})
        if reply.status_code != 303:
            raise RuntimeError(reply.text)
        yield visitor


@contextlib.asynccontextmanager
async def _visiting(visitor: httpx.AsyncClient, visits: list[Visit]) -> AsyncIterator[None]:
    """They visit until the block ends; one that cannot go on ends the measurement."""
    tasks = [asyncio.create_task(visit(visitor)) for visit in visits]
    yield
    ended = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if ended:
        raise RuntimeError(f"{len(ended)} of {len(tasks)} viewers were sent away")


def _streams() -> list[str]:
    kinds = ("/dashboard/live", f"/dashboard/jobs/{JOB}/live", f"/dashboard/jobs/{JOB}/logs/live")
    return list(itertools.islice(itertools.cycle(kinds), VIEWERS))


def _stream(path: str) -> Visit:
    async def visit(visitor: httpx.AsyncClient) -> None:
        async with visitor.stream("GET", path, timeout=None) as reply:
            reply.raise_for_status()
            async for _ in reply.aiter_raw():
                pass

    return visit


def _opening(client: Client) -> Visit:
    found = client.rollouts(JOB, status="REWARD_RECEIVED", limit=50)["rollouts"]
    pages = [f"/dashboard/rollouts/{each['rollout_id']}" for each in found]
    pages += [f"/dashboard/jobs/{JOB}/rollouts?sort=reward"]

    async def visit(visitor: httpx.AsyncClient) -> None:
        for path in itertools.cycle(pages):
            (await visitor.get(path)).raise_for_status()
            await asyncio.sleep(OPEN_S)

    return visit


# ── the gateway ───────────────────────────────────────────────────────────────────────────────


async def _latencies(url: str, key: str, model: str, seconds: float) -> list[float]:
    """Seconds of one-token calls at a steady rate, each counted from when it was due; sorted."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "row"}],
        "max_tokens": 1,
    }
    found: list[float] = []
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as http:

        async def call(due: float) -> None:
            (await http.post(f"{url}/v1/chat/completions", json=body)).raise_for_status()
            found.append(time.perf_counter() - due)

        await call(time.perf_counter())  # the model is loaded by its first
        found.clear()
        began = time.perf_counter()
        async with asyncio.TaskGroup() as calls:
            for due in itertools.count(began, CALL_S):
                if due - began > seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                calls.create_task(call(due))
    return sorted(found)


def _cpu_record(watched: float, alone: float, drift: float) -> dict[str, Any]:
    added = max(watched - alone, 1e-4)
    return {
        "name": f"CPU of the server that {VIEWERS} viewers of a running job cost",
        "ours": added * 100,
        "peer": None,
        "ratio": GOAL_SHARE / added,
        "goal": 1.0,
        "unit": "% of a core",
        "spread": f"{watched:.1%} watched, {alone:.1%} alone; alone before and after differ by "
        f"{drift:.1%}",
    }


def _latency_record(
    name: str, quantile: float, beside: list[float], alone: list[float]
) -> dict[str, Any]:
    ours, peer = (times[int(len(times) * quantile)] * 1e3 for times in (beside, alone))
    return {
        "name": f"gateway beside {OPENERS} viewers opening rollouts / alone, {name}",
        "ours": ours,
        "peer": peer,
        "ratio": peer / ours,
        "goal": None,
        "unit": "ms",
        "spread": f"{len(beside)} and {len(alone)} calls; means "
        f"{statistics.fmean(beside) * 1e3:.1f} and {statistics.fmean(alone) * 1e3:.1f} ms",
    }
