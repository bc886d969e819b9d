"""Records, archives and builds of uploaded evaluators, with a builder that does as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.builders import ACCOUNT, SetClock
from tests.unit.control.kit import World as ControlWorld
from turnwise import errors
from turnwise.control.evaluators import Evaluators
from turnwise.control.jobs import Jobs
from turnwise.control.queue import Limits
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.domain.job import AgentKind, AgentSpec
from turnwise.ports import Built
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import new_id

ADMIN = Principal(account_id=ACCOUNT, name="admin")
OTHER = Principal(account_id="acc_other")


@dataclass
class Building:
    """A builder that waits for its gate, and says what it was told to say."""

    built: Built = field(default_factory=lambda: Built(is_active=True, message="fine"))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    archives: list[bytes] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    error: Exception | None = None

    async def build(self, evaluator: Evaluator, archive: Path, log: Path) -> Built:
        self.archives.append(archive.read_bytes())
        log.write_text("collected 1 item\n")
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.built

    async def forget(self, account_id: str, evaluator_id: str) -> None:
        self.forgotten.append(evaluator_id)


@dataclass
class World:
    store: SqlStore
    building: Building
    evaluators: Evaluators
    folder: Path

    async def create(self, evaluator_id: str = "math", **fields: Any) -> Evaluator:
        asked = Evaluator(account_id="", evaluator_id=evaluator_id, **fields)
        return await self.evaluators.create(ADMIN, asked)

    async def put(self, *pieces: bytes, size: int | None = None) -> Evaluator:
        async def stream() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        size = sum(map(len, pieces)) if size is None else size
        return await self.evaluators.put_archive(ADMIN, "math", stream(), size)

    def files(self) -> list[bytes]:
        """What archives are kept."""
        return [path.read_bytes() for path in self.folder.rglob("*.tar.gz")]

    def restarted(self) -> Evaluators:
        """Those of a new server process on the same store."""
        return an_evaluators(self.store, self.building, self.folder)


def an_evaluators(store: SqlStore, building: Building, folder: Path) -> Evaluators:
    blobs = FolderBlobs(folder)
    return Evaluators(store, blobs, building, SetClock(), new_id, max_archive=100)


@contextlib.asynccontextmanager
async def a_world(folder: Path) -> AsyncIterator[World]:
    store, building = SqlStore.in_memory(), Building()
    evaluators = an_evaluators(store, building, folder)
    try:
        yield World(store, building, evaluators, folder)
    finally:
        await evaluators.close()
        await store.close()


async def test_an_evaluator_is_uploaded_built_and_active(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        made = await world.create(entry_point="test_math.py::test_math")
        assert (made.state, made.account_id, made.created_by) == (
            EvaluatorState.BUILDING,
            ACCOUNT,
            "admin",
        )
        put = await world.put(b"tar", b"ball")
        assert put.archive_sha256 == hashlib.sha256(b"tarball").hexdigest()
        building = await world.evaluators.build(ADMIN, "math")
        assert (building.state, building.message) == (EvaluatorState.BUILDING, "building")
        world.building.gate.set()
        done = await world.evaluators.settled(ADMIN, "math")
        assert (done.state, done.message) == (EvaluatorState.ACTIVE, "fine")
        assert world.building.archives == [b"tarball"]
        assert await world.evaluators.build_log(ADMIN, "math") == "collected 1 item\n"
        assert await world.evaluators.list(ADMIN) == [done]


async def test_asking_for_what_is_not_there_leaves_nothing_in_memory(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for n in range(3):
            with pytest.raises(errors.NotFound):
                await world.evaluators.change(ADMIN, f"none-{n}", description="x")
            with pytest.raises(errors.NotFound):
                await world.evaluators.build(ADMIN, f"none-{n}")
        assert not world.evaluators._changes


async def test_one_that_was_never_uploaded_fails_to_build_and_says_so(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        await world.evaluators.build(ADMIN, "math")
        done = await world.evaluators.settled(ADMIN, "math")
        assert done.state is EvaluatorState.BUILD_FAILED
        assert done.message.startswith("no archive was uploaded")


@pytest.mark.parametrize(
    ("error", "message"),
    [(None, "no such test"), (RuntimeError("odd"), "the build broke: RuntimeError: odd")],
)
async def test_a_build_that_fails_says_why(
    tmp_path: Path, error: Exception | None, message: str
) -> None:
    async with a_world(tmp_path) as world:
        world.building.built, world.building.error = Built(message="no such test"), error
        world.building.gate.set()
        await world.create()
        await world.put(b"tarball")
        await world.evaluators.build(ADMIN, "math")
        done = await world.evaluators.settled(ADMIN, "math")
        assert (done.state, done.message) == (EvaluatorState.BUILD_FAILED, message)


async def test_a_build_that_a_former_process_left_is_started_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        await world.create("waiting")  # for its archive: there is nothing to take up
        await world.put(b"tarball")
        await world.evaluators.build(ADMIN, "math")
        await asyncio.sleep(0)
        await world.evaluators.close()
        world.building.gate.set()
        again = world.restarted()
        await again.recover([Account(account_id=ACCOUNT, slug="a", number="000000000001")])
        assert (await again.settled(ADMIN, "math")).state is EvaluatorState.ACTIVE
        waiting = await again.settled(ADMIN, "waiting")
        assert (waiting.state, waiting.message) == (
            EvaluatorState.BUILDING,
            "waiting for its archive",
        )
        count = len(world.building.archives)
        third = world.restarted()
        await third.recover([Account(account_id=ACCOUNT, slug="a", number="000000000001")])
        await third.settled(ADMIN, "math")
        assert len(world.building.archives) == count  # what has ended is not built again


async def test_a_deleted_one_can_be_made_again_at_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        await world.put(b"tarball")
        await world.evaluators.build(ADMIN, "math")
        await world.evaluators.delete(ADMIN, "math")
        assert world.files() == []
        assert world.building.forgotten == ["math"]
        with pytest.raises(errors.NotFound, match="evaluator 'math' does not exist"):
            await world.evaluators.get(ADMIN, "math")
        assert (await world.create()).archive == ""
        with pytest.raises(errors.Conflict, match="evaluator 'math' exists already"):
            await world.create()


@pytest.mark.parametrize(
    ("pieces", "size", "message"),
    [
        ((b"short",), 7, "was announced, but only 5 bytes came"),
        ((b"too", b"long"), 3, "was announced, but more came"),
        ((b"",), 0, "must be 1 to 100 bytes"),
        ((b"x",), 101, "must be 1 to 100 bytes"),
    ],
)
async def test_an_archive_of_another_size_is_refused_and_the_former_stays(
    tmp_path: Path, pieces: tuple[bytes, ...], size: int, message: str
) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        former = await world.put(b"tarball")
        with pytest.raises(errors.InvalidInput, match=message):
            await world.put(*pieces, size=size)
        assert world.files() == [b"tarball"]
        assert await world.evaluators.get(ADMIN, "math") == former


async def test_a_new_archive_takes_the_place_of_the_former(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        await world.put(b"first")
        await world.put(b"second")
        assert world.files() == [b"second"]


@pytest.mark.parametrize("evaluator_id", ["", "Math", "9lives", "a-", "a_b", "a" * 64, "../a"])
async def test_an_id_that_is_none_is_refused(tmp_path: Path, evaluator_id: str) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(errors.InvalidInput, match="is not an evaluator's id"):
            await world.create(evaluator_id)


async def test_only_what_is_its_owners_can_be_changed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        await world.create()
        changed = await world.evaluators.change(ADMIN, "math", display_name="Math")
        assert changed.display_name == "Math"
        for field_, value in (("state", "ACTIVE"), ("archive", "x"), ("display_name", 3)):
            with pytest.raises(errors.InvalidInput, match="cannot be changed to that"):
                await world.evaluators.change(ADMIN, "math", **{field_: value})
        assert await world.evaluators.get(ADMIN, "math") == changed


async def test_another_account_and_a_lesser_key_get_nothing(tmp_path: Path) -> None:
    reader = Principal(account_id=builders.ACCOUNT, actions=frozenset({Action.READ}))
    async with a_world(tmp_path) as world:
        await world.create()
        assert await world.evaluators.list(OTHER) == []
        with pytest.raises(errors.NotFound):
            await world.evaluators.get(OTHER, "math")
        with pytest.raises(errors.NotFound):
            await world.evaluators.build(OTHER, "math")
        with pytest.raises(errors.Denied):
            await world.evaluators.build(reader, "math")
        assert (await world.evaluators.get(reader, "math")).evaluator_id == "math"


async def test_no_job_is_made_of_an_evaluator_that_is_not_there_or_not_built(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world, a_control_world(tmp_path) as control:
        jobs = Jobs(
            store=control.store,
            agents=control.agents,
            clock=control.clock,
            new_id=new_id,
            start=control._start,
            limits=Limits(running=1),
            check_evaluator=world.evaluators.check_for_job,
        )
        spec = control.spec("walk", agent=AgentSpec(kind=AgentKind.EVALUATOR, target="math"))
        gone = r"agent.target: 'math' is no evaluator of this account; upload it"
        with pytest.raises(errors.InvalidInput, match=gone):
            await jobs.create(ADMIN, spec)
        await world.create()
        await world.evaluators.build(ADMIN, "math")
        await world.evaluators.settled(ADMIN, "math")
        failed = r"agent.target: 'math' could not be built: no archive was uploaded"
        with pytest.raises(errors.InvalidInput, match=failed):
            await jobs.create(ADMIN, spec)
        assert await control.store.jobs(ACCOUNT) == []
        await world.put(b"tarball")
        await world.evaluators.build(ADMIN, "math")  # a job may wait for its build
        assert (await jobs.create(ADMIN, spec)).name == "walk"
        await jobs.close()


@contextlib.asynccontextmanager
async def a_control_world(folder: Path) -> AsyncIterator[ControlWorld]:
    store = SqlStore.in_memory()
    await store.default_account()
    (folder / "control").mkdir()
    try:
        yield ControlWorld(folder / "control", store)
    finally:
        await store.close()
