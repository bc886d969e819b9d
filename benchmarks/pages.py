"""What a page of the dashboard waits for: 100,000 rollouts of one job, 10,000 jobs of an account.

Each query is asked again and again over a file that nothing else uses, as a page asks it: through
the store, on its readers' connections. The pages are the first ones and some from the middle of
the list. The log is that of another job, of 1,000,000 events.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table

from turnwise.domain.event import EventKind, Level
from turnwise.domain.job import AgentSpec, JobKind, JobSpec, JobStatus, Secondary
from turnwise.domain.rollout import (
    Blame,
    Fault,
    NodeKind,
    Purpose,
    RolloutStatus,
    SamplingParams,
)
from turnwise.ports import JobQuery, LogQuery, RolloutCursor, RolloutQuery, RolloutSort
from turnwise.storage import transcripts
from turnwise.storage.database import WRITES, open_engine
from turnwise.storage.sql import SqlStore
from turnwise.storage.tables import events, jobs, nodes, rollouts

ROLLOUTS = 100_000
JOBS = 10_000
EVENTS = 1_000_000
GOAL_MS = 50.0
GOAL_JOBS_MS = 20.0
REPEATS = 30

_ACCOUNT = "acc_default"
_JOB, _LOGGED = "job_pages", "job_logged"
_CHUNK = 5_000
_GROUP = 8
_STEPS = 50

Ask = Callable[[SqlStore], Awaitable[object]]


def run(repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Records of each query's milliseconds: the median, and the slowest in a hundred."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "turnwise.db"
        _fill(path)
        return asyncio.run(_measure(path, repeats))


# ── what is asked ─────────────────────────────────────────────────────────────────────────────


async def _measure(path: Path, repeats: int) -> list[dict[str, Any]]:
    store = SqlStore.open(path)
    asked = {**_rollout_pages(), **_counts(), **_job_pages(), **_log_pages()}
    records = [
        _record(name, goal, await _times(store, ask, repeats))
        for name, (goal, ask) in asked.items()
    ]
    await store.close()
    return records


def _rollout_pages() -> dict[str, tuple[float, Ask]]:
    whole = RolloutQuery(job_id=_JOB)
    asked = {f"by {sort.value}": replace(whole, sort=sort) for sort in RolloutSort}
    asked |= {f"{name}, descending": replace(q, descending=True) for name, q in asked.items()}
    asked |= {
        "of a step": replace(whole, step=7),
        "of a row": replace(whole, row_index=7),
        "of a group": replace(whole, group_id="group_77"),
        "failed by deadline": replace(whole, fault_code="deadline"),
        "not valid": replace(whole, is_valid=False),
        "still open": replace(whole, status=RolloutStatus.PENDING),
        "of a range of rewards": replace(whole, reward_ge=0.9, reward_lt=0.905),
        "of a row, by tokens": replace(whole, row_index=7, sort=RolloutSort.TOKENS),
        "failed, by duration": replace(
            whole, status=RolloutStatus.FAILED, sort=RolloutSort.DURATION, descending=True
        ),
        "with a rare phrase": replace(whole, text='"seldom seen"'),
        "with a word of all": replace(whole, text="inspect"),
        "with a word of all, by reward": replace(
            whole, text="inspect", sort=RolloutSort.REWARD, descending=True
        ),
        "with a word of half, by reward": replace(
            whole, text="even", sort=RolloutSort.REWARD, descending=True
        ),
        "with a word of none": replace(whole, text="nowhere"),
    }
    asked |= {
        f"{name}, from the middle": replace(q, after=_middle(q))
        for name, q in asked.items()
        if name in ("by seq", "by reward, descending", "by tokens")
    }
    return {f"a page of rollouts, {name}": (GOAL_MS, _page(q)) for name, q in asked.items()}


def _middle(query: RolloutQuery) -> RolloutCursor:
    values = {RolloutSort.REWARD: 0.5, RolloutSort.TOKENS: 500.0}
    return RolloutCursor(values.get(query.sort), ROLLOUTS // 2)


def _page(query: RolloutQuery) -> Ask:
    async def ask(store: SqlStore) -> object:
        found = await store.rollouts(_ACCOUNT, query)
        ids = [each.rollout.rollout_id for each in found]
        return await store.rollout_excerpts(_ACCOUNT, ids)

    return ask


def _counts() -> dict[str, tuple[float, Ask]]:
    whole = RolloutQuery(job_id=_JOB)
    return {
        "a histogram of rewards": (GOAL_MS, lambda s: s.reward_histogram(_ACCOUNT, whole)),
        "a histogram of a step's rewards": (
            GOAL_MS,
            lambda s: s.reward_histogram(_ACCOUNT, replace(whole, step=7)),
        ),
        "a tally": (GOAL_MS, lambda s: s.rollout_tally(_ACCOUNT, _JOB)),
        "ten rollouts at random": (
            GOAL_MS,
            lambda s: s.random_rollouts(_ACCOUNT, _JOB, 7, Purpose.TRAIN),
        ),
    }


def _job_pages() -> dict[str, tuple[float, Ask]]:
    whole = JobQuery(account_id=_ACCOUNT)
    asked = {
        "the newest": whole,
        "from the middle": replace(whole, after=JOBS // 2),
        "of a name": replace(whole, name="-77"),
        "that failed": replace(whole, statuses=(JobStatus.FAILED,)),
        "of no name": replace(whole, name="nowhere"),
    }
    return {
        f"a page of jobs, {name}": (GOAL_JOBS_MS, lambda s, q=query: s.job_page(q))
        for name, query in asked.items()
    }


def _log_pages() -> dict[str, tuple[float, Ask]]:
    whole = LogQuery(job_id=_LOGGED, newest_first=True)
    asked = {
        "the newest": whole,
        "warnings and errors": replace(whole, levels=(Level.WARNING, Level.ERROR)),
        "of a rollout": replace(whole, rollout_id="rollout_777"),
        "of a step": replace(whole, step=7),
        "metrics": replace(whole, kinds=(EventKind.METRICS,)),
        "of common words": replace(whole, text="Reached"),
        "warnings with words": replace(whole, text="slow", levels=(Level.WARNING,)),
        "of words that are nowhere": replace(whole, text="nowhere"),
    }
    return {
        f"a page of the log, {name}": (GOAL_MS, lambda s, q=query: s.log_events(_ACCOUNT, q))
        for name, query in asked.items()
    }


async def _times(store: SqlStore, ask: Ask, repeats: int) -> list[tuple[float, float]]:
    """Milliseconds of each call but the first, and of the CPU in it."""
    found = []
    for _ in range(repeats + 1):
        began, cpu = time.perf_counter(), time.process_time()
        await ask(store)
        found.append(((time.perf_counter() - began) * 1000, (time.process_time() - cpu) * 1000))
    return found[1:]


def _record(name: str, goal: float, measured: list[tuple[float, float]]) -> dict[str, Any]:
    times, cpu = (sorted(each) for each in zip(*measured, strict=True))
    middle, late = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
    return {
        "name": name,
        "ours": middle,
        "peer": goal,
        "ratio": goal / late,
        "goal": 1.0,
        "unit": "ms",
        "spread": f"p50 {middle:.1f} ms, p99 {late:.1f} ms of {len(times)}; "
        f"CPU {cpu[len(cpu) // 2]:.1f} ms",
    }


# ── what is there ─────────────────────────────────────────────────────────────────────────────


def _fill(path: Path) -> None:
    engine = open_engine(path)
    chance = random.Random(0)
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        for table, rows in (
            (jobs, _jobs()),
            (rollouts, _rollouts(chance)),
            (nodes, _nodes(chance)),
            (events, _events()),
        ):
            _insert(connection, table, rows)
        is_left = True
        while is_left:
            with connection.begin():
                is_left = transcripts.work(connection, _CHUNK)
    engine.dispose()


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            with connection.begin():
                connection.execute(table.insert(), chunk)
            chunk = []
    if chunk:
        with connection.begin():
            connection.execute(table.insert(), chunk)


def _jobs() -> Iterator[dict[str, Any]]:
    ids = [_JOB, _LOGGED, *(f"job_{n}" for n in range(JOBS - 2))]
    states = [(JobStatus.COMPLETED, Secondary.COMPLETED), (JobStatus.FAILED, Secondary.FAILED)]
    for n, job_id in enumerate(ids):
        name = job_id.replace("_", "-")
        status, secondary = states[n % 50 == 0]
        yield {
            "job_id": job_id,
            "account_id": _ACCOUNT,
            "name": name,
            "spec": JobSpec(name=name, model="/models/m", dataset="/data", agent=AgentSpec()),
            "status": status,
            "secondary": secondary,
            "message": "",
            "incarnation": 1,
            "step": _STEPS,
            "created_at": float(n),
            "parent": "",
            "output": "",
            "last_event": EVENTS if job_id == _LOGGED else 0,
            "kind": JobKind.TRAIN,
            "model": "/models/m",
            "output_group": name,
            "description": "",
            "priority": 0,
            "max_steps": _STEPS,
        }


def _rollouts(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Of a hundred, one is open, two have failed, and the rest has one of 1,001 rewards."""
    for n in range(ROLLOUTS):
        is_open, has_failed = n % 100 == 0, n % 50 == 1
        reward = None if is_open or has_failed else chance.randrange(1001) / 1000
        code = chance.choice(["deadline", "no_reward"]) if has_failed else None
        fault = None if code is None else Fault(blame=Blame.AGENT, code=code, message="late")
        status = RolloutStatus.PENDING if is_open else RolloutStatus.REWARDED
        seconds = None if is_open else chance.lognormvariate(2, 1)
        yield {
            "rollout_id": f"rollout_{n}",
            "account_id": _ACCOUNT,
            "job_id": _JOB,
            "incarnation": 1,
            "group_id": f"group_{n // _GROUP}",
            "slot": n % _GROUP,
            "attempt": 0,
            "purpose": Purpose.VALIDATION if n % 20 == 0 else Purpose.TRAIN,
            "row_index": n // _GROUP % 500,
            "step": n * _STEPS // ROLLOUTS,
            "seed": 0,
            "sampling": SamplingParams(),
            "secret_sha256": "0" * 64,
            "created_at": float(n),
            "deadline_at": n + 600.0,
            "policy": None,
            "status": RolloutStatus.FAILED if has_failed else status,
            "rewards": None if reward is None else (reward,),
            "metrics": {"seconds": 1.5, "tools": 3.0},
            "fault": fault,
            "ended_at": None if seconds is None else n + seconds,
            "turns": chance.randrange(1, 12),
            "tokens": chance.randrange(1000),
            "reward": reward,
            "fault_code": code,
            "duration": None if seconds is None else n + seconds - float(n),
        }


def _nodes(chance: random.Random) -> Iterator[dict[str, Any]]:
    words = [f"word{n}" for n in range(5000)]
    for n in range(ROLLOUTS):
        said = " ".join(chance.choices(words, k=80))
        rare = " seldom seen" if n % 5000 == 3 else ""
        asked = {"role": "user", "content": f"inspect {('odd', 'even')[n % 2]} part {n}{rare}"}
        reply = {"role": "assistant", "content": said}
        for node_id, (kind, message) in enumerate(
            [(NodeKind.PROMPT, asked), (NodeKind.COMPLETION, reply)]
        ):
            yield {
                "rollout_id": f"rollout_{n}",
                "account_id": _ACCOUNT,
                "node_id": node_id,
                "parent": None if node_id == 0 else 0,
                "kind": kind,
                "messages": (message,),
                "tokens": [0] * 120,
                "logprobs": None if node_id == 0 else [0.0] * 120,
                "tools_sha256": "",
                "fork_cause": None,
            }


def _events() -> Iterator[dict[str, Any]]:
    """Mostly of rollouts; of a thousand, one is a warning and one has metrics."""
    for n in range(1, EVENTS + 1):
        body: dict[str, Any] = {"rollout_id": f"rollout_{n % 50_000}", "status": "REWARD_RECEIVED"}
        body |= {"group_id": f"group_{n}", "reward": 1.0, "turns": 3, "tokens": 300}
        kind, level, step = EventKind.ROLLOUT, Level.INFO, None
        if n % 1000 == 1:
            kind, level = EventKind.LOG, Level.WARNING
            body = {"message": "the agent is slow", "rollout_id": f"rollout_{n % 50_000}"}
        elif n % 1000 == 2:
            kind, step = EventKind.METRICS, n // 1000
            body = {"step": step, "values": {"training/loss": 0.1}}
        elif n % 10 == 3:
            kind, body = EventKind.LOG, {"message": "reached the end of the row"}
        yield {
            "job_id": _LOGGED,
            "seq": n,
            "account_id": _ACCOUNT,
            "at": float(n),
            "kind": kind,
            "level": level,
            "body": body,
            "rollout_id": body.get("rollout_id"),
            "step": step,
        }
