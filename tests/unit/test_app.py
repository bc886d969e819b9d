"""How a job's rooms are plugged together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from tests import builders
from tests.families import save_family
from tests.unit.loop.fakes import FakeLearner, FakeSampler, names
from turnwise import errors
from turnwise.app import server
from turnwise.app.jobs import Workshop
from turnwise.control.job_data import JobData
from turnwise.domain.job import AgentKind, AgentSpec, JobSpec
from turnwise.domain.training import LearnerSpec
from turnwise.gateway.gateway import Gateway
from turnwise.sampling.engines import Engines
from turnwise.settings import Settings
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK


class Engine(FakeSampler):
    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def lost(self) -> None:
        await self.ended.wait()

    async def close(self) -> None:
        self.ended.set()


class Launcher:
    """Learners of air; what each was asked for."""

    def __init__(self) -> None:
        self.asked: list[LearnerSpec] = []

    async def learner(self, spec: LearnerSpec) -> FakeLearner:
        self.asked.append(spec)
        return FakeLearner()


def spec(folder: Path, **changes: Any) -> JobSpec:
    """A job whose files are there."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "hi"}\n')
    model = str(save_family(folder / "base", "qwen3"))
    return builders.spec(model=model, dataset=str(rows), **changes)


async def account_number(account_id: str) -> str:
    return {builders.ACCOUNT: "000000000001", "acc_lab": "000000000002"}[account_id]


def service(engines: list[Engine], **rooms: Any) -> Workshop:
    """A service with these rooms and no others; its engines are kept in the list."""

    async def start(model: str, deterministic: bool) -> Engine:
        engines.append(Engine())
        return engines[-1]

    fields: dict[str, Any] = dict.fromkeys(Workshop.__slots__) | {
        "data": JobData(),
        "outputs": SimpleNamespace(deliver=None),
        "tracker": SimpleNamespace(follow=lambda job: None),
    }
    return Workshop(**(fields | {"engines": Engines(start, idle_s=0.01)} | rooms))


async def test_a_job_whose_agent_is_refused_leaves_no_engine_behind(tmp_path: Path):
    started: list[Engine] = []
    agent = AgentSpec(kind=AgentKind.PYTHON, target="no.such:agent")
    with pytest.raises(errors.InvalidInput, match=r"agent\.target: .*cannot be imported"):
        await service(started).start_job(builders.job(spec=spec(tmp_path, agent=agent)))
    async with asyncio.timeout(30):
        await started[0].ended.wait()


def plugged_together(
    folder: Path, store: SqlStore, gateway: Gateway, launcher: Launcher
) -> Workshop:
    """A service that can start jobs."""
    return service(
        [],
        settings=Settings(data_dir=folder),
        url="http://here",
        account_number=account_number,
        blobs=FolderBlobs(folder),
        store=store,
        gateway=gateway,
        launcher=launcher,
    )


async def test_a_jobs_arn_has_the_number_of_its_own_account(tmp_path: Path):
    store = SqlStore.in_memory()
    gateway = Gateway(store, SYSTEM_CLOCK, names())
    plugs = plugged_together(tmp_path, store, gateway, Launcher())
    job = builders.job("run", account_id="acc_lab", spec=spec(tmp_path))
    plugged = await plugs.start_job(await store.create_job(job))
    async with plugged.opened:
        arn = "arn:aws:sagemaker:us-west-2:000000000002:job/AgentRFT/run"
        assert plugged.loop.sockets.job_arn == arn
    await gateway.close()
    await store.close()


async def test_a_job_with_a_checkpoint_needs_the_adapter_that_it_began_with_no_more(
    tmp_path: Path,
):
    store, launcher = SqlStore.in_memory(), Launcher()
    gateway = Gateway(store, SYSTEM_CLOCK, names())
    plugs = plugged_together(tmp_path, store, gateway, launcher)
    job = builders.job(spec=spec(tmp_path, input_adapter="/models/tuned"))
    await store.create_job(job)
    for _ in range(2):
        plugged = await plugs.start_job(job)
        async with plugged.opened:
            await plugged.loop.sockets.learner.score(builders.tokens(1))
        await store.save_checkpoint(job.account_id, job.job_id, builders.checkpoint(-1))
    assert [asked.input_adapter for asked in launcher.asked] == ["/models/tuned", None]
    await gateway.close()
    await store.close()


@dataclass
class Listening:
    """A socket that listens on a port."""

    port: int
    is_open: bool = True

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.is_open = False


def test_a_free_port_has_no_404_in_it(monkeypatch: pytest.MonkeyPatch):
    sockets = [Listening(40404), Listening(14041), Listening(50000)]
    given = iter(sockets)
    monkeypatch.setattr("turnwise.app.server.socket.create_server", lambda *_, **__: next(given))
    assert server._listen("127.0.0.1", 0) is sockets[2]
    assert [each.is_open for each in sockets] == [False, False, True]
