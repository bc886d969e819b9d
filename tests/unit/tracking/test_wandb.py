"""A job's events in Weights & Biases, whose own client runs offline here, in its own process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.builders import ACCOUNT
from tests.unit.loop.fakes import until
from tests.unit.tracking.test_feed import HastyClock
from turnwise import errors
from turnwise.domain.event import Event, EventDraft, EventKind, Level
from turnwise.domain.job import Job, JobStatus, TrackingSpec, WandbMode, WandbSpec
from turnwise.storage.sql import SqlStore
from turnwise.tracking import wandb as wandbs
from turnwise.tracking.tracker import Tracker
from turnwise.tracking.wandb import WandbRuns, opening
from turnwise.tracking.wandb_child import Run, answer

HAS_WANDB = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not HAS_WANDB, reason="needs the extra `wandb`")

#: A child that writes each call into a file, and answers as `REPLIES` says; "hang" is no answer.
CHILD = """
import json, sys, time
calls, replies = sys.argv[1:]
for line in sys.stdin:
    call = json.loads(line)
    with open(calls, "a") as file:
        file.write(line)
    reply = json.load(open(replies)).get(call["do"], {"url": "https://wandb.example/run"})
    if reply == "hang":
        time.sleep(600)
    if reply == "die":
        sys.exit(3)
    print(json.dumps(reply), flush=True)
"""


class World:
    """A stored job that asks for W&B, and servers that tell it."""

    def __init__(self, folder: Path, store: SqlStore, job: Job) -> None:
        self.folder = folder
        self.store = store
        self.job = job
        self.clock = HastyClock()
        self.secrets: dict[tuple[str, str], str] = {(ACCOUNT, "wandb-api-key"): "k" * 40}
        self.server_key = ""
        self.trackers: list[Tracker] = []
        self.replies()

    def replies(self, **replies: Any) -> None:
        """What the child answers to calls of this kind."""
        file = self.folder / "new.json"
        file.write_text(json.dumps(replies))
        file.rename(self.folder / "replies.json")  # at once, as a child may be reading it

    @property
    def calls(self) -> list[dict[str, Any]]:
        file = self.folder / "calls"
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def does(self) -> list[str]:
        return [call["do"] for call in self.calls]

    def tracker(self, *, real: bool = False) -> Tracker:
        """As a server process makes one."""

        async def secret(account_id: str, name: str) -> str | None:
            return self.secrets.get((account_id, name))

        files = (str(self.folder / "calls"), str(self.folder / "replies.json"))
        runs = WandbRuns(
            store=self.store,
            resources=self.store,
            clock=self.clock,
            folder=self.folder / "wandb",
            secret=secret,
            server_key=self.server_key,
            command=wandbs.COMMAND if real else (sys.executable, "-c", CHILD, *files),
        )
        self.trackers.append(Tracker(self.store, [runs]))
        return self.trackers[-1]

    async def metrics(self, step: int) -> None:
        values = {"rollout/reward/mean": 0.5 + step, "training/loss": 0.25}
        await self.append(EventKind.METRICS, step=step, values=values)

    async def status(self, status: JobStatus, secondary: str, message: str = "") -> None:
        body = {"status": status.value, "secondary": secondary, "message": message}
        await self.append(EventKind.STATUS, **body)

    async def append(self, kind: EventKind, **body: Any) -> None:
        await self.store.append(ACCOUNT, self.job.job_id, [EventDraft(kind=kind, body=body)])

    async def logs(self, level: Level) -> list[str]:
        events: list[Event] = await self.store.events(ACCOUNT, self.job.job_id, kinds=["log"])
        return [event.body["message"] for event in events if event.level is level]

    async def has_told(self, seq: int) -> bool:
        """Whether a server that starts again would go on after this event."""
        try:
            state = await self.store.resource(ACCOUNT, wandbs.KIND, self.job.job_id)
        except errors.NotFound:
            return False
        return bool(state.body["told"] >= seq)

    async def ended(self, tracker: Tracker) -> None:
        """Until nothing is left to tell."""
        await until(lambda: not tracker._following)


def a_job(**wandb: Any) -> Job:
    tracking = TrackingSpec(wandb=WandbSpec(enabled=True, project="walks", **wandb))
    return builders.job(spec=builders.spec(tracking=tracking))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(wandbs, "_LINGER_S", 0.02)
    monkeypatch.setattr(wandbs, "LEAVE_S", 0.5)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # it is installed
    store = SqlStore.in_memory()
    made = World(tmp_path, store, await store.create_job(a_job()))
    await made.status(JobStatus.RUNNING, "Training")
    yield made
    for tracker in made.trackers:
        await tracker.close()
    await store.close()


async def test_a_job_becomes_a_run_with_its_job_file_metrics_and_end(world: World):
    await world.metrics(0)
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED, "EarlyStopped", "nothing to learn from")
    tracker = world.tracker()
    tracker.follow(world.job)
    await world.ended(tracker)
    opened, *logged, closed = world.calls
    assert (opened["project"], opened["run_name"], opened["run_id"]) == (
        "walks",
        "walk",
        "job_walk",
    )
    assert opened["config"]["batch"]["group_size"] == 8
    assert opened["config"]["agent"]["kind"] == "scripted"
    assert [(call["seq"], call["values"]["step"]) for call in logged] == [(2, 0), (3, 1)]
    assert logged[1]["values"]["rollout/reward/mean"] == 1.5
    assert closed["exit_code"] == 0
    assert closed["summary"] == {
        "turnwise/status": "COMPLETED",
        "turnwise/secondary": "EarlyStopped",
        "turnwise/message": "nothing to learn from",
    }
    assert await world.logs(Level.INFO) == ["the W&B run is at https://wandb.example/run"]
    assert await world.logs(Level.WARNING) == []


@pytest.mark.parametrize(("status", "code"), [(JobStatus.FAILED, 1), (JobStatus.STOPPED, 255)])
async def test_a_run_ends_as_its_job_does_and_goes_on_when_it_is_resumed(
    world: World, status: JobStatus, code: int
):
    await world.metrics(0)
    await world.status(status, status.value.capitalize())
    tracker = world.tracker()
    tracker.follow(world.job)
    await world.ended(tracker)
    assert world.calls[-1]["exit_code"] == code
    await world.status(JobStatus.PENDING, "Pending")
    await world.status(JobStatus.RUNNING, "Training")
    tracker.follow(world.job)
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED, "Completed")
    await world.ended(tracker)
    assert world.does() == ["open", "log", "close", "open", "log", "close"]


async def test_a_server_that_starts_again_goes_on_in_the_same_run_without_repeating_a_step(
    world: World,
):
    await world.metrics(0)
    before = world.tracker()
    before.follow(world.job)
    await until(lambda: world.has_told(2))
    await before.close()
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED, "Completed")
    after = world.tracker()
    await after.recover()
    await until(lambda: "close" in world.does())
    await world.ended(after)
    opened = [call["run_id"] for call in world.calls if call["do"] == "open"]
    assert opened == ["job_walk", "job_walk"]
    assert [call["values"]["step"] for call in world.calls if call["do"] == "log"] == [0, 1]
    again = world.tracker()
    await again.recover()
    await asyncio.gather(*again._late)
    assert world.does().count("open") == 2


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ({"open": {"error": "permission denied"}}, "permission denied; check the key"),
        ({"open": "die"}, "its process has ended"),
        ({"log": "hang"}, "it has not answered for 0.3 s; check that the server reaches W&B"),
    ],
)
async def test_a_broken_wandb_is_told_once_and_catches_up(
    world: World, monkeypatch: pytest.MonkeyPatch, replies: dict[str, Any], problem: str
):
    monkeypatch.setattr(wandbs, "LOG_S", 0.3)
    world.replies(**replies)
    tracker = world.tracker()
    tracker.follow(world.job)
    await world.metrics(0)
    await until(lambda: world.does().count("open") >= 3)
    [warning] = await world.logs(Level.WARNING)
    assert warning.startswith(f"W&B does not get this job's metrics for now: {problem}")
    assert (await world.store.job(ACCOUNT, "walk")).status is JobStatus.RUNNING
    monkeypatch.setattr(wandbs, "LOG_S", 30.0)
    world.replies()
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED, "Completed")
    await world.ended(tracker)
    told = {call["values"]["step"] for call in world.calls if call["do"] == "log"}
    assert (told, world.does()[-1]) == ({0, 1}, "close")
    assert len(await world.logs(Level.WARNING)) == 1


async def test_a_missing_package_is_told_with_the_remedy(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    world.tracker().follow(world.job)
    await until(lambda: len(world.clock.slept) > 3)
    [warning] = await world.logs(Level.WARNING)
    assert "`pip install turnwise[wandb]` adds it" in warning
    assert world.calls == []


async def test_the_key_is_the_accounts_else_the_servers_and_else_there_is_a_remedy(world: World):
    world.server_key = "s" * 40
    tracker = world.tracker()
    tracker.follow(world.job)
    await until(lambda: world.does() == ["open"])
    assert world.calls[0]["api_key"] == "k" * 40
    assert "k" * 40 not in json.dumps(world.calls[0]["config"])
    await tracker.close()
    world.secrets.clear()
    tracker = world.tracker()
    tracker.follow(world.job)
    await world.metrics(0)
    await until(lambda: len(world.calls) > 1)
    assert world.calls[1]["api_key"] == "s" * 40
    await tracker.close()
    world.server_key = ""
    world.tracker().follow(world.job)
    await world.metrics(1)

    async def warned() -> list[str]:
        return await world.logs(Level.WARNING)

    [warning] = await until(warned)
    assert "keep one as the account's secret 'wandb-api-key', or start the server with" in warning


async def test_another_accounts_job_does_not_get_the_servers_key(world: World):
    world.server_key = "s" * 40
    world.secrets.clear()
    theirs = replace(world.job, account_id="acc_other")
    [runs] = world.tracker()._destinations
    assert isinstance(runs, WandbRuns)
    key = await runs._key(theirs)
    assert key == ""
    with pytest.raises(
        errors.Unavailable, match=r"keep one as the account's secret 'wandb-api-key'$"
    ):
        opening(theirs, key, world.folder)
    assert await runs._key(world.job) == "s" * 40


async def test_a_job_that_does_not_ask_for_it_is_not_told(world: World):
    other = await world.store.create_job(builders.job("run"))
    tracker = world.tracker()
    tracker.follow(other)
    assert tracker._following == {}


def test_names_that_are_left_out_are_the_jobs(tmp_path: Path):
    tracking = TrackingSpec(wandb=WandbSpec(enabled=True, run_id="r", mode=WandbMode.OFFLINE))
    call = opening(builders.job(spec=builders.spec(tracking=tracking)), "", tmp_path)
    named = [call[name] for name in ("project", "entity", "run_name", "run_id", "mode")]
    assert named == ["tiny-mtrl", "", "walk", "r", "offline"]
    with pytest.raises(errors.Unavailable, match="there is no W&B key"):
        opening(a_job(), "", tmp_path)


def test_a_childs_error_never_holds_the_key():
    class Leaky(Run):
        def open(self, call: dict[str, Any]) -> dict[str, Any]:
            raise ValueError(f"bad key {call['api_key']}")

    assert answer(Leaky(), {"do": "open", "api_key": "abc"}) == {"error": "bad key ***"}


# ── W&B's own client ──────────────────────────────────────────────────────────────────────────


def records(file: Path) -> Iterator[Any]:
    """The records of a run's file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its last part
            yield Record.FromString(whole)
            whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                found.append(row)
    return found


@needs_wandb
async def test_the_real_client_keeps_a_run_offline(tmp_path: Path):
    store = SqlStore.in_memory()
    job = await store.create_job(a_job(mode=WandbMode.OFFLINE))
    world = World(tmp_path, store, job)
    world.secrets.clear()  # none is needed
    await world.status(JobStatus.RUNNING, "Training")
    await world.metrics(0)
    await world.metrics(1)
    await world.status(JobStatus.COMPLETED, "Completed")
    tracker = world.tracker(real=True)
    async with asyncio.timeout(60):
        await tracker.recover()
        await asyncio.gather(*tracker._late)
    await tracker.close()
    rows = history(tmp_path / "wandb" / job.job_id)
    assert [(row["_step"], row["step"], row["rollout/reward/mean"]) for row in rows] == [
        (2, 0, 0.5),
        (3, 1, 1.5),
    ]
    files = sorted((tmp_path / "wandb" / job.job_id).glob("wandb/offline-run-*/*.wandb"))
    runs = [r.run for file in files for r in records(file) if r.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        ("job_walk", "walks", "walk")
    }
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["batch"]["group_size"] == 8
    assert await world.logs(Level.WARNING) == []
    await store.close()
