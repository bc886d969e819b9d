"""`ports.AgentRunner` over an uploaded evaluator: it drives the rollouts and scores them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.rollout import Blame, Fault
from turnwise.evaluators.files import SharedFolder
from turnwise.evaluators.hosting import Build, Host, pytest_arguments
from turnwise.evaluators.joining import Scored
from turnwise.evaluators.rows import completion_params, read_row, row_for
from turnwise.evaluators.runs import Run, Runs
from turnwise.ports import AgentDoor, AgentLog, AgentOutcome, AgentRequest

#: How long a run waits for more rollouts of its group after the last that came.
COMPANY_S = 0.25

#: How often a run's files are looked at.
LOOK_EVERY_S = 0.1

#: What a run may leave: files of rows, bytes of a row, bytes of all of them, and rows of nobody.
MAX_FILES, MAX_ROW, MAX_ROWS, MAX_LEFT = 1000, 16 << 20, 256 << 20, 1000

#: Most of one run's output that is kept in the evaluator's log.
MAX_PRINTED = 256 * 1024

#: How much of its output a fault quotes, characters.
MAX_QUOTED = 1500

#: RemoteRolloutProcessor names its rollout in a URL only where it finds this in it (contract §0.5).
TRACED = "litellm-gateway"

#: Exit codes of pytest that say that tests ran: all passed, or some did not.
_RAN = (0, 1)


@dataclass(slots=True)
class _Batch:
    """Rollouts of one group that one run will make."""

    outcomes: dict[str, asyncio.Future[AgentOutcome]] = field(default_factory=dict)
    requests: list[AgentRequest] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    is_closed: bool = False

    def settle(self, rollout_id: str, fault: Fault | None) -> None:
        """Say what became of one rollout, if somebody waits for it."""
        future = self.outcomes[rollout_id]
        if not future.done():
            future.set_result(AgentOutcome(rollout_id=rollout_id, fault=fault))


class EvaluatorAgent:
    """Runs an evaluator once per group; `slots` bounds how many runs there are at once."""

    def __init__(
        self,
        account_id: str,
        build: Build,
        start: Callable[[Build], Awaitable[Host]],
        *,
        runs: Runs,
        door: AgentDoor,
        log: AgentLog,
        slots: asyncio.Semaphore,
        group_size: int,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """`group_size`: most rollouts of a group; `extra_body` goes with each turn."""
        self._account_id = account_id
        self._build = build
        self._start = start
        self._runs = runs
        self._door = door
        self._log = log
        self._slots = slots
        self._group_size = group_size
        self._extra_body = extra_body or {}
        self._batches: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.host: Host | None = None  # once something has run
        self._starting = asyncio.Lock()

    async def check(self) -> None:
        """Start its process. Raises `Unavailable` with what it printed."""
        await self._warm()

    async def run(self, requests: Sequence[AgentRequest]) -> AsyncIterator[AgentOutcome]:
        """Make the rollouts, those of a group in one run, and yield each outcome as it comes."""
        waits = [asyncio.ensure_future(self._outcome(request)) for request in requests]
        try:
            for finished in asyncio.as_completed(waits):
                yield await finished
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def close(self) -> None:
        """Kill what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.host is not None:
            await self.host.close()

    # ── batches ───────────────────────────────────────────────────────────────────────────────

    async def _outcome(self, request: AgentRequest) -> AgentOutcome:
        batch = self._joined_batch(request)
        future = batch.outcomes[request.rollout_id]
        try:
            return await future
        except asyncio.CancelledError:
            future.cancel()
            if batch.task is not None and all(f.done() for f in batch.outcomes.values()):
                batch.task.cancel()  # nobody waits for any of its rollouts
            raise

    def _joined_batch(self, request: AgentRequest) -> _Batch:
        key = request.group_id or request.rollout_id
        batch = self._batches.get(key)
        if batch is None or batch.is_closed:
            batch = self._batches[key] = _Batch()
            batch.task = asyncio.create_task(self._work(key, batch), name=f"evaluator {key}")
            self._tasks.add(batch.task)
            batch.task.add_done_callback(self._tasks.discard)
        batch.requests.append(request)
        batch.outcomes[request.rollout_id] = asyncio.get_running_loop().create_future()
        batch.changed.set()
        return batch

    async def _work(self, key: str, batch: _Batch) -> None:
        try:
            await self._wait_for_company(batch)
            async with self._slots:
                batch.is_closed = True
                self._batches.pop(key, None)
                await self._make(batch)
        except errors.TurnwiseError as error:
            self._fail_rest(batch, _fault("evaluator_unavailable", str(error)))
        except asyncio.CancelledError:
            self._fail_rest(batch, _fault("cancelled", "the evaluator's run was ended"))
            raise
        except Exception as error:  # whatever breaks here costs these rollouts, never the job
            self._fail_rest(batch, _fault("evaluator_error", f"{type(error).__name__}: {error}"))
        finally:
            batch.is_closed = True

    async def _wait_for_company(self, batch: _Batch) -> None:
        while len(batch.requests) < self._group_size:
            batch.changed.clear()
            try:
                await asyncio.wait_for(batch.changed.wait(), COMPANY_S)
            except TimeoutError:
                return

    def _fail_rest(self, batch: _Batch, fault: Fault) -> None:
        for rollout_id in batch.outcomes:
            batch.settle(rollout_id, fault)

    # ── one run ───────────────────────────────────────────────────────────────────────────────

    async def _make(self, batch: _Batch) -> None:
        wanted = [r for r in batch.requests if not batch.outcomes[r.rollout_id].done()]
        if not wanted:
            return
        host = await self._warm()
        run = self._runs.open(self._account_id, [request.rollout_id for request in wanted])
        work = _RunFiles(host, run.run_id)
        try:
            args, env = self._orders(host, run, work, wanted)
            reading = asyncio.create_task(self._read_rows(run, work, batch, wanted[0].job_id))
            try:
                async with asyncio.timeout(max(request.timeout_s for request in wanted)):
                    code = await host.run(run.run_id, args, env, work.output)
            finally:
                work.is_over = True
                left = await reading
            await self._account_for_rest(run, batch, left, code, work)
        except TimeoutError:
            self._fail_rest(batch, _fault("deadline", "the evaluator's run took too long"))
        finally:
            self._runs.close(run)
            await asyncio.to_thread(work.remove)

    async def _warm(self) -> Host:
        """The process, started again where it has ended."""
        async with self._starting:
            if self.host is not None and not self.host.is_alive:
                await self.host.close()
                self.host = None
            if self.host is None:
                self.host = await self._start(self._build)
            return self.host

    def _orders(
        self, host: Host, run: Run, work: _RunFiles, wanted: Sequence[AgentRequest]
    ) -> tuple[list[str], dict[str, str]]:
        """pytest's arguments and environment; contract §4.5.

        Eval-protocol hands on the runs of a row together, the slowest last. Where each is scored
        by itself, a row is given as often as there are rollouts, so that each comes as it ends.
        """
        first, base_url = wanted[0], f"{host.base_url}{run.path}"
        traced_url = f"{host.shared_url}{run.path}/{TRACED}"
        row = row_for(first.fields, first.prompt)
        copies = len(wanted) if self._build.mode == "pointwise" else 1
        runs = len(wanted) if copies == 1 else 1
        work.make([row] * copies)
        params = completion_params(f"{base_url}/v1", first.sampling, self._extra_body)

        def inside(path: Path) -> str:
            return host.boxes.seen(host.folder, path)

        args = [
            *pytest_arguments(self._build.entry_point),
            *("--ep-no-upload", "--ep-jsonl-path", inside(work.rows)),
            *("--ep-completion-params", json.dumps(params)),
            *("--ep-num-runs", str(runs), "--ep-output-dir", inside(work.results)),
        ]
        env = {
            "EP_INVOCATION_ID": run.run_id,
            "EP_OUTPUT_DIR": inside(work.results),
            "EP_MODEL_BASE_URL": traced_url,
            "FW_TRACING_GATEWAY_BASE_URL": traced_url,
            "EP_REMOTE_API_KEY": "not-needed",
            "FIREWORKS_API_BASE": f"{base_url}/v1",
        }
        return args, env

    async def _read_rows(
        self, run: Run, work: _RunFiles, batch: _Batch, job_id: str
    ) -> list[Scored]:
        """Take each row as it comes; those that are of no known rollout."""
        left: list[Scored] = []
        while True:
            is_last = work.is_over
            lines, printed = await asyncio.to_thread(work.read)
            if printed:
                self._log.note(AgentLogKind.PRINTED, printed, job_id=job_id)
            for row in await asyncio.to_thread(_read_all, lines):
                if isinstance(row, errors.InvalidInput):
                    self._log.note(AgentLogKind.FAILED, str(row), job_id=job_id)
                elif rollout_id := run.joining.joined(row):
                    await self._settle(batch, rollout_id, row, job_id)
                elif len(left) < MAX_LEFT:
                    left.append(row)
            if is_last:
                return left
            await asyncio.sleep(LOOK_EVERY_S)

    async def _settle(self, batch: _Batch, rollout_id: str, row: Scored, job_id: str) -> None:
        """Report a row's score, or the fault that it stands for."""
        fault = fault_of(row)
        if fault is None and row.score is not None:
            try:
                reason = "\n".join(filter(None, (row.reason, *row.steps)))
                await self._door.report(rollout_id, [row.score], row.metrics, reason)
            except errors.TurnwiseError as error:
                fault = _fault("refused", f"the score was refused: {error}", Blame.REWARD)
        kind = AgentLogKind.ANSWERED if fault is None else AgentLogKind.FAILED
        self._log.note(kind, _told(row, fault), rollout_id=rollout_id, job_id=job_id)
        batch.settle(rollout_id, fault)

    async def _account_for_rest(
        self, run: Run, batch: _Batch, left: list[Scored], code: int, work: _RunFiles
    ) -> None:
        """Every rollout that has no row yet ends with a fault that says why."""
        if rollout_id := run.joining.joined_last(left):
            await self._settle(batch, rollout_id, left.pop(), batch.requests[0].job_id)
        said = await asyncio.to_thread(work.last_words)
        for rollout_id in run.joining.unjoined:
            batch.settle(rollout_id, _missing(left, code, said))


class _RunFiles:
    """A run's folder: the row it gets, the rows it leaves, and what it prints."""

    def __init__(self, host: Host, run_id: str) -> None:
        self._shared = SharedFolder(host.folder)
        self._folder = f"runs/{run_id}"
        self.is_over = False
        self._read: dict[str, int] = {}
        self._room = MAX_ROWS  # bytes of rows that are still taken
        self._printed = 0

    @property
    def rows(self) -> Path:
        """What eval-protocol reads."""
        return self._shared.path(f"{self._folder}/rows.jsonl")

    @property
    def results(self) -> Path:
        """The folder where eval-protocol leaves scored rows."""
        return self._shared.path(f"{self._folder}/results")

    @property
    def output(self) -> Path:
        """The file that the run prints to."""
        return self._shared.path(f"{self._folder}/output.log")

    def make(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what the run reads."""
        self._shared.make_folder(self._folder)
        self._shared.make_folder(f"{self._folder}/results")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._shared.write(f"{self._folder}/rows.jsonl", text.encode())

    def read(self) -> tuple[list[str], str]:
        """Rows that are whole by now and new, and what was printed since."""
        lines: list[str] = []
        folder = f"{self._folder}/results"
        for name in self._shared.names(folder):
            is_known = name in self._read or len(self._read) < MAX_FILES
            if is_known and name.startswith("buffer_") and name.endswith(".jsonl"):
                lines += self._new_lines(name, f"{folder}/{name}")
        output = f"{self._folder}/output.log"
        printed = self._shared.read(output, self._printed, MAX_PRINTED - self._printed)
        self._printed += len(printed)
        return lines, printed.decode(errors="replace").strip()

    def _new_lines(self, name: str, file: str) -> list[str]:
        """Lines that were ended since. A file with too long a line is not read on."""
        offset = self._read.get(name, 0)
        if offset < 0:
            return []
        most = min(MAX_ROW, self._room)
        text = self._shared.read(file, offset, most)
        whole = text[: text.rfind(b"\n") + 1]
        if len(text) == most and not whole:
            self._read[name] = -1
            return [f"({name} goes on for more than {most} bytes, which is not read)"]
        self._read[name] = offset + len(whole)
        self._room -= len(whole)
        return whole.decode(errors="replace").split("\n")[:-1]

    def last_words(self) -> str:
        """The end of what it printed."""
        end = self._shared.end(f"{self._folder}/output.log", 4 * MAX_QUOTED)
        return end.decode(errors="replace").strip()[-MAX_QUOTED:] or "it printed nothing"

    def remove(self) -> None:
        """The run is over."""
        self._shared.remove(self._folder)


def _read_all(lines: Sequence[str]) -> list[Scored | errors.InvalidInput]:
    """Each line's row, or what is wrong with it."""
    found: list[Scored | errors.InvalidInput] = []
    for line in lines:
        try:
            found.append(read_row(line))
        except errors.InvalidInput as error:
            found.append(error)
    return found


def fault_of(row: Scored) -> Fault | None:
    """What a row says went wrong; None for a score that counts."""
    if row.problem:
        return _fault("rollout_error", row.problem)
    if not row.is_valid:
        reason = row.reason or "the evaluator says that the score does not count"
        return _fault("score_invalid", reason, Blame.REWARD)
    if row.score is None:
        return _fault("no_score", "the row has no finite evaluation_result.score", Blame.REWARD)
    return None


def _missing(left: Sequence[Scored], code: int, said: str) -> Fault:
    """Why a rollout has no row."""
    if code not in _RAN:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return _fault("evaluator_crashed", f"the evaluator {how}: {said}", retryable=True)
    if left:
        message = f"{len(left)} rows of its run hold no id that says whose they are"
        problem = next((row.problem or row.reason for row in left if row.problem), "")
        if problem:
            message += f"; one of them says: {problem}"
        return _fault("unjoined", message, Blame.REWARD)
    return _fault("no_row", f"the evaluator left no row for it: {said}", Blame.REWARD)


def _fault(
    code: str, message: str, blame: Blame = Blame.AGENT, *, retryable: bool = False
) -> Fault:
    return Fault(blame=blame, code=code, message=message, retryable=retryable)


def _told(row: Scored, fault: Fault | None) -> str:
    """A row in the evaluator's log."""
    told: dict[str, Any] = {"score": row.score, "reason": row.reason, "metrics": dict(row.metrics)}
    if fault is not None:
        told["fault"] = f"{fault.code}: {fault.message}"
    return json.dumps(told)
