"""Uploaded evaluators on one server: who runs them, in what sandbox, and how many at once."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.evaluators.agent import EvaluatorAgent
from turnwise.evaluators.building import Builder, Secrets
from turnwise.evaluators.hosting import Build, Host, start_host
from turnwise.evaluators.runs import Runs
from turnwise.evaluators.sandbox import (
    HOW_TO_ALLOW,
    Interpreter,
    Limits,
    Sandboxes,
    find_interpreter,
    try_isolation,
)
from turnwise.evaluators.unpack import Bounds
from turnwise.ports import AgentDoor, AgentLog, NewId

log = logging.getLogger(__name__)

_NO_EVAL_PROTOCOL = (
    "no evaluator can run: this server's own Python has no eval-protocol; make an environment for "
    "evaluators (python3 -m venv DIR; DIR/bin/pip install eval-protocol pytest) and set "
    "TURNWISE_EVALUATOR_PYTHON=DIR/bin/python"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an operator lets evaluators do; see `settings.Settings.evaluator_*`."""

    python: str = ""  # "": the server's own, if it has eval-protocol
    is_isolation_required: bool = True
    has_network: bool = False
    processes: int = 4
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    build_timeout_s: float = 600.0


class EvaluatorRoom:
    """Builds evaluators and opens them as agents of jobs."""

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        *,
        url: str,
        public_url: str,
        hidden: tuple[Path, ...],
        secrets: Secrets,
        new_id: NewId,
    ) -> None:
        """`url` is where the server listens, and `public_url` where users' servers reach it.

        `hidden` are folders that no evaluator may see.
        """
        self._folder = folder
        self._terms = terms
        self._url = url
        self._public_url = public_url.rstrip("/")
        self._hidden = hidden
        self._secrets = secrets
        self._new_id = new_id
        self._slots = asyncio.Semaphore(terms.processes)
        self._finding: asyncio.Task[Sandboxes] | None = None
        self.runs = Runs(new_id)
        self.builder = Builder(
            self.sandboxes,
            folder / "builds",
            secrets,
            bounds=terms.bounds,
            timeout_s=terms.build_timeout_s,
        )

    async def open(self) -> None:
        """Remove what a former process left, and find out meanwhile what is possible here."""
        await asyncio.to_thread(shutil.rmtree, self._hosts, ignore_errors=True)
        self._finding = asyncio.create_task(self._find(), name="evaluators' sandbox")
        self._finding.add_done_callback(_note_outcome)

    async def sandboxes(self) -> Sandboxes:
        """Raises `Unavailable` with the remedy where evaluators cannot run."""
        if self._finding is None:
            await self.open()
        assert self._finding is not None
        return await asyncio.shield(self._finding)

    async def agent(
        self,
        evaluator: Evaluator,
        door: AgentDoor,
        agent_log: AgentLog,
        *,
        group_size: int,
        extra_body: Mapping[str, Any] | None = None,
    ) -> EvaluatorAgent:
        """The agent that an evaluator is.

        Raises `Unavailable` unless it is ACTIVE and built, and reaches what makes its rollouts.
        """
        if evaluator.state is not EvaluatorState.ACTIVE:
            raise errors.Unavailable(
                f"evaluator {evaluator.evaluator_id!r} is {evaluator.state.value}: "
                f"{evaluator.message}"
            )
        build = self.builder.built(evaluator)
        if build.is_remote:
            await self._check_reach(evaluator)
        return EvaluatorAgent(
            evaluator.account_id,
            build,
            lambda build: self._start(evaluator.account_id, build),
            runs=self.runs,
            door=door,
            log=agent_log,
            slots=self._slots,
            group_size=group_size,
            extra_body=extra_body,
        )

    async def _check_reach(self, evaluator: Evaluator) -> None:
        """Raise `Unavailable` where evaluators reach no server but this one."""
        boxes = await self.sandboxes()
        if boxes.is_isolated and not self._terms.has_network:
            raise errors.Unavailable(
                f"evaluator {evaluator.evaluator_id!r} has its rollouts made by a server of its "
                "own (RemoteRolloutProcessor), but evaluators have no network here; set "
                "TURNWISE_EVALUATOR_NETWORK=host to let them call it"
            )

    async def close(self) -> None:
        """End what `open` began. Agents are closed by their jobs."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)

    async def _start(self, account_id: str, build: Build) -> Host:
        return await start_host(
            build,
            await self.sandboxes(),
            self._hosts / self._new_id("host"),
            url=self._url,
            public_url=self._public_url,
            secrets=await self._secrets(account_id),
            has_network=self._terms.has_network,
        )

    @property
    def _hosts(self) -> Path:
        return self._folder / "hosts"

    async def _find(self) -> Sandboxes:
        """The interpreter and the sandbox that it can have."""
        interpreter = await self._interpreter()
        why_not = await try_isolation(interpreter, self._hosts)
        if why_not and self._terms.is_isolation_required:
            raise errors.Unavailable(
                f"evaluators cannot be isolated here: {why_not}; {HOW_TO_ALLOW}"
            )
        if why_not:
            log.warning("evaluators run without isolation: %s", why_not)
        return Sandboxes(
            interpreter=interpreter,
            hidden=self._hidden,
            is_isolated=not why_not,
            limits=self._terms.limits,
        )

    async def _interpreter(self) -> Interpreter:
        if not self._terms.python and importlib.util.find_spec("eval_protocol") is None:
            raise errors.Unavailable(_NO_EVAL_PROTOCOL)
        interpreter = await find_interpreter(self._terms.python or sys.executable)
        if not interpreter.has_pytest:
            raise errors.Unavailable(
                f"evaluator_python: {interpreter.executable!r} has no pytest; install "
                "eval-protocol and pytest there"
            )
        return interpreter


def _note_outcome(found: asyncio.Task[Sandboxes]) -> None:
    """Say at start-up what an upload would be told."""
    if found.cancelled():
        return
    if (error := found.exception()) is None:
        log.info("evaluators run with %s", found.result().interpreter.executable)
    elif isinstance(error, errors.TurnwiseError):
        log.info("uploaded evaluators are refused: %s", error)
    else:
        log.error("uploaded evaluators are refused", exc_info=error)
