"""A small evaluator without eval-protocol, uploaded and run over the real gateway."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import itertools
import shutil
import string
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.unit.gateway.kit import World, a_world
from tests.wire.listening import listening
from tests.wire.served import a_serving, data_plane
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.domain.rollout import SamplingParams
from turnwise.evaluators.agent import EvaluatorAgent
from turnwise.evaluators.room import EvaluatorRoom, Terms
from turnwise.evaluators.sandbox import Limits
from turnwise.ports import AgentRequest, Built
from turnwise.system import new_id
from turnwise.wire.dataplane import DataPlane
from turnwise.wire.inside import InsideDoor
from turnwise.wire.runs import RunDoor

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


async def no_secrets(account_id: str) -> Mapping[str, str]:
    return {}


@dataclass
class Playground:
    """A gateway behind a real HTTP server, and a room of evaluators that reach it."""

    world: World
    room: EvaluatorRoom
    folder: Path
    python: str
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
        made = [
            await self.world.open(f"rollout_{string.ascii_lowercase[n]}", slot=n) for n in slots
        ]
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

    async def outcomes(self, agent: EvaluatorAgent, requests: list[AgentRequest]) -> dict[str, Any]:
        """Dispatch as a job does, one by one at once; the faults by rollout."""

        async def one(request: AgentRequest) -> tuple[str, Any]:
            async for outcome in agent.run([request]):
                return outcome.rollout_id, outcome.fault
            raise AssertionError("no outcome")

        return dict(await asyncio.gather(*map(one, requests)))


@contextlib.asynccontextmanager
async def a_playground(
    folder: Path,
    *replies: str,
    python: str = sys.executable,
    is_isolated: bool = True,
    has_network: bool = False,
    processes: int = 4,
    limits: Limits | None = None,
    hidden: tuple[Path, ...] = (),
    build_timeout_s: float = 120.0,
) -> AsyncIterator[Playground]:
    """Everything but the job."""
    async with a_world(*replies, opened=False) as world:
        serving = a_serving(world)

        plane: DataPlane | None = None

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert plane is not None
            await plane(scope, receive, send)

        async with listening(app, http="httptools") as url:
            room = EvaluatorRoom(
                folder / "evaluators",
                Terms(
                    python=python,
                    is_isolation_required=is_isolated,
                    has_network=has_network,
                    processes=processes,
                    limits=limits or Limits(),
                    build_timeout_s=build_timeout_s,
                ),
                url=url,
                hidden=hidden,
                secrets=no_secrets,
                new_id=new_id,
            )
            plane = data_plane(world, serving, runs=RunDoor(world.gateway, room.runs))
            playground = Playground(world, room, folder, python)
            try:
                await _skip_where_impossible(room, is_isolated)
                yield playground
            finally:
                for agent in playground.agents:
                    await agent.close()
                await room.close()
                await serving.close()


async def _skip_where_impossible(room: EvaluatorRoom, is_isolated: bool) -> None:
    from turnwise import errors

    if is_isolated:
        try:
            await room.sandboxes()
        except errors.Unavailable as error:
            if "cannot be isolated here" in str(error):
                pytest.skip(str(error))
            raise
