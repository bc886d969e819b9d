"""A small evaluator without eval-protocol, uploaded and run over the real gateway."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import itertools
import shutil
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests import builders
from tests.unit.gateway.kit import World, a_world
from tests.wire.listening import listening
from tests.wire.served import a_serving, data_plane
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.domain.rollout import SamplingParams
from turnwise.evaluators import room as rooms
from turnwise.evaluators.agent import EvaluatorAgent
from turnwise.evaluators.room import EvaluatorRoom, Terms
from turnwise.evaluators.sandbox import Interpreter, find_interpreter, try_isolation
from turnwise.ports import AgentRequest, Built
from turnwise.system import new_id
from turnwise.wire.dataplane import DataPlane
from turnwise.wire.inside import InsideDoor

#: What eval-protocol's plugin and `@evaluation_test` do, as far as a run can tell, without either.
#: A record's "do" is Python that the evaluation does with `said`, `row` and `answer`.
STUB: Mapping[str, str] = {
    "requirements.txt": "pytest\n",
    "conftest.py": """
OPTIONS = "jsonl-path completion-params num-runs output-dir".split()
def pytest_addoption(parser):
    parser.addoption("--ep-no-upload", action="store_true")
    for name in OPTIONS:
        parser.addoption("--ep-" + name)
""",
    "test_stub.py": """
import json, os, pathlib, sys, threading, time, urllib.request

def chat(params, messages, path=""):
    body = {"model": params["model"], "messages": messages, "raw_output": True}
    request = urllib.request.Request(
        params["api_base"] + path + "/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answered:
        return json.loads(answered.read())

def test_rollouts(request):
    option = request.config.getoption
    params = json.loads(option("--ep-completion-params"))
    lines = pathlib.Path(option("--ep-jsonl-path")).read_text().splitlines()
    rows = [json.loads(line) for line in lines for _ in range(int(option("--ep-num-runs")))]
    out = pathlib.Path(option("--ep-output-dir"))
    def make(number, row):
        scope = {"row": row, "params": params, "number": number, "chat": chat, "out": out}
        exec(row.get("before", ""), scope)
        answer = scope.get("answer") or chat(params, row["messages"])
        choice = answer["choices"][0]
        said = choice["message"]["content"] or ""
        row["messages"].append(choice["message"])
        row["execution_metadata"] = {"raw_output": choice["raw_output"], "rollout_id": "ep"}
        row["evaluation_result"] = {"score": float(len(said)), "reason": "said " + said,
                                    "metrics": {"letters": {"score": len(said), "reason": ""}}}
        exec(row.get("after", ""), scope)
        if row.get("is_kept", True):
            (out / f"buffer_{number}.jsonl").write_text(json.dumps(row) + "\\n")
    threads = [threading.Thread(target=make, args=pair) for pair in enumerate(rows)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
""",
}
ENTRY_POINT = "test_stub.py::test_rollouts"


#: A build of the stub, for all tests of this process: it takes as long as they do.
_BUILDS = Path(tempfile.mkdtemp(prefix="turnwise-evaluator-")) / "builds"
atexit.register(shutil.rmtree, _BUILDS.parent, ignore_errors=True)

#: What the interpreter is and what stands against a sandbox, looked up once for all tests.
_found: dict[str, Any] = {}


async def interpreter() -> Interpreter:
    """The Python of these tests, as evaluators' interpreter."""
    if "interpreter" not in _found:
        _found["interpreter"] = await find_interpreter(sys.executable)
    found: Interpreter = _found["interpreter"]
    return found


async def obstacle() -> str:
    """What stands against a sandbox on this machine; "" where there can be one."""
    if "obstacle" not in _found:
        probe = _BUILDS.parent / "probe"
        _found["obstacle"] = await try_isolation(await interpreter(), probe)
    return str(_found["obstacle"])


async def skip_without_sandbox() -> None:
    """Where there can be none, a test says why it is not made."""
    if why := await obstacle():
        pytest.skip(why)


def packed(files: Mapping[str, str | bytes], top: str = "proj") -> bytes:
    """A tar.gz of these files below one folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass
class Noted:
    """`ports.AgentLog` that keeps what it is told."""

    entries: list[tuple[AgentLogKind, str, str]] = field(default_factory=list)

    def note(
        self, kind: AgentLogKind, text: str, *, rollout_id: str = "", job_id: str = ""
    ) -> None:
        self.entries.append((kind, text, rollout_id))

    async def until(self, text: str) -> str:
        """All that was noted, once it holds a text."""
        async with asyncio.timeout(30):
            while text not in self.text():
                await asyncio.sleep(0.02)
        return self.text()

    def text(self) -> str:
        return "\n".join(text for _, text, _ in self.entries)


def _evaluator(entry_point: str) -> Evaluator:
    return Evaluator(
        account_id=builders.ACCOUNT,
        evaluator_id="stub",
        entry_point=entry_point,
        archive_sha256="a" * 64,
        state=EvaluatorState.ACTIVE,
    )


#: pytest without the plugins of this environment, which load for two seconds in each process.
QUICK: Mapping[str, str] = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@dataclass
class Playground:
    """A gateway behind a real HTTP server, and a room of evaluators that reach it."""

    world: World
    room: EvaluatorRoom
    folder: Path
    log: Noted = field(default_factory=Noted)
    agents: list[EvaluatorAgent] = field(default_factory=list)
    slots: Iterator[int] = field(default_factory=itertools.count)

    async def built(
        self, files: Mapping[str, str | bytes] = STUB, entry_point: str = ENTRY_POINT
    ) -> tuple[Evaluator, Built]:
        """Build an archive of these files."""
        return await self.built_of(packed(files), entry_point)

    async def built_of(self, archive: bytes, entry_point: str) -> tuple[Evaluator, Built]:
        """Build an archive."""
        file = self.folder / "archive.tar.gz"
        file.write_bytes(archive)
        evaluator = _evaluator(entry_point)
        return evaluator, await self.room.builder.build(evaluator, file, self.build_log)

    async def _built_once(self) -> Evaluator:
        """The stub as an earlier test has built it."""
        evaluator = _evaluator(ENTRY_POINT)
        if not _BUILDS.is_dir():
            _, built = await self.built()
            assert built.is_active, built.message
            shutil.copytree(self.builds, _BUILDS)
        elif not self.builds.is_dir():
            shutil.copytree(_BUILDS, self.builds)
        return evaluator

    @property
    def builds(self) -> Path:
        return self.folder / "evaluators/builds"

    @property
    def build_log(self) -> Path:
        return self.folder / "build.log"

    async def agent(self, evaluator: Evaluator | None = None, *, size: int = 2) -> EvaluatorAgent:
        """The stub, or that evaluator, as a job's agent."""
        if evaluator is None:
            evaluator = await self._built_once()
        door = InsideDoor(self.world.gateway, builders.ACCOUNT)
        agent = await self.room.agent(evaluator, door, self.log, group_size=size)
        self.agents.append(agent)
        return agent

    async def requests(
        self, count: int, *, timeout_s: float = 60.0, **fields: Any
    ) -> list[AgentRequest]:
        """Open rollouts of one group."""
        slots = [next(self.slots) for _ in range(count)]
        made = [await self.world.open(f"rollout_{n}", slot=n) for n in slots]
        return [
            AgentRequest(
                rollout_id=rollout.rollout_id,
                job_id=rollout.job_id,
                job_arn="",
                endpoint="",
                prompt="hi",
                fields={"prompt": "hi"} | fields,
                sampling=SamplingParams(max_tokens=32),
                timeout_s=timeout_s,
                group_id=rollout.group_id,
            )
            for rollout in made
        ]

    def says(self, *replies: str) -> None:
        """What the model says from now on, over and over."""
        self.world.script.replies = list(replies)
        self.world.script.asked.clear()

    async def outcomes(self, agent: EvaluatorAgent, requests: list[AgentRequest]) -> dict[str, Any]:
        """Dispatch as a job does, one by one at once; the faults by rollout, in that order."""

        async def one(request: AgentRequest) -> tuple[str, Any]:
            async for outcome in agent.run([request]):
                return outcome.rollout_id, outcome.fault
            raise AssertionError("no outcome")

        return dict(await asyncio.gather(*map(one, requests)))


@contextlib.asynccontextmanager
async def a_playground(
    folder: Path,
    *replies: str,
    is_isolated: bool = True,
    secrets: Mapping[str, str] = {},
    build_timeout_s: float = 120.0,
) -> AsyncIterator[Playground]:
    """Everything but the job. `is_isolated` False: as where there can be no namespaces."""
    if is_isolated:
        await skip_without_sandbox()
    async with a_world(*replies, opened=False) as world:
        serving = a_serving(world)
        plane: DataPlane | None = None

        async def environment(account_id: str) -> Mapping[str, str]:
            return {**QUICK, **secrets} if account_id == builders.ACCOUNT else {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert plane is not None
            await plane(scope, receive, send)

        async with listening(app, http="httptools") as url:
            room = EvaluatorRoom(
                folder / "evaluators",
                Terms(
                    python=sys.executable,
                    is_isolation_required=is_isolated,
                    build_timeout_s=build_timeout_s,
                ),
                url=url,
                public_url=url,
                hidden=(),
                secrets=environment,
                new_id=new_id,
            )
            plane = data_plane(world, serving, runs=room.runs)
            playground = Playground(world, room, folder)
            with _nothing_looked_up_twice("" if is_isolated else "unshare: Not permitted"):
                try:
                    yield playground
                finally:
                    for agent in playground.agents:
                        await agent.close()
                    await room.close()
                    await serving.close()


@contextlib.contextmanager
def _nothing_looked_up_twice(why_not: str) -> Iterator[None]:
    """Rooms find what an earlier one has found; `why_not` stands against a sandbox."""

    async def known_interpreter(executable: str) -> Interpreter:
        assert executable == sys.executable
        return await interpreter()

    async def known_obstacle(*_: object) -> str:
        return why_not

    with (
        mock.patch.object(rooms, "find_interpreter", known_interpreter),
        mock.patch.object(rooms, "try_isolation", known_obstacle),
    ):
        yield
