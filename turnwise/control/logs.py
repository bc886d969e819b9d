"""Logs by group and stream, as CloudWatch has them: of jobs, and of registered agents.

    group                            streams
    /aws/sagemaker/Job/<category>    <job name>/events, a line for each event of the job
    an agent's own                   turnwise: what the service sent it, got back and heard it
                                     print; and those that it has made, with what it has put there

Lines are read from where they are kept, so a stream is there as soon as its job is.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from turnwise import errors
from turnwise.control.agent_logs import AgentLogs
from turnwise.control.agents import Agent, Agents
from turnwise.control.browse import PAGE, Browse
from turnwise.control.jobs import MAX_JOBS, Jobs
from turnwise.control.log_lines import Filter, line
from turnwise.domain.access import Action, Principal
from turnwise.domain.agent import AgentLogEntry, AgentLogKind
from turnwise.domain.job import Job, JobKind
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, JobQuery, JobSummary, Resources

JOB_GROUPS = {
    JobKind.TRAIN: "/aws/sagemaker/Job/AgentRFT",
    JobKind.EVALUATION: "/aws/sagemaker/Job/AgentRFTEvaluation",
}

#: After a job's name, its stream's.
EVENTS = "/events"
#: An agent's stream of what the service notes.
SERVICE = "turnwise"

STREAM_KIND = "log-stream"
MAX_STREAMS = 1000  # of one agent

#: A page of lines ends at so many characters of text.
MAX_PAGE_CHARS = 1_000_000
#: Lines that one filtering call looks at.
MAX_SCANNED = 20_000


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """A line of a stream; `seq` orders those of one stream. Ordered by time first."""

    at_ms: int
    stream: str
    seq: int
    text: str

    @property
    def event_id(self) -> str:
        """The same for the same line, and no other's."""
        stream = int(sha256(self.stream.encode()).hexdigest()[:12], 16)
        return f"{self.at_ms:020d}{stream:016d}{self.seq:020d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Times that are asked for, milliseconds since the epoch: from `since`, before `until`."""

    since: int = 0
    until: int | None = None

    def holds(self, at_ms: int) -> bool:
        """Whether a time is in it."""
        return self.since <= at_ms and (self.until is None or at_ms < self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A log group. `created_at` is in seconds since the epoch."""

    name: str
    created_at: float


class Stream(Protocol):
    """One stream's lines."""

    @property
    def name(self) -> str:
        """Its name in its group."""
        ...

    @property
    def created_at(self) -> float:
        """When it began, seconds since the epoch."""
        ...

    def lines(self, after: int, span: Span) -> AsyncGenerator[Line, None]:
        """Lines with seq > `after`, in order."""
        ...

    async def last(self, count: int, before: int | None, span: Span) -> list[Line]:
        """The newest `count` lines (with seq < `before`), oldest first."""
        ...


#: Many streams are begun for a few lines each; who reads on gets larger pages.
_FIRST_PAGE = 32


def _ms(at: float) -> int:
    return int(at * 1000)


# ── a job's events ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStream:
    """The events of a job; they are numbered from 1 without gaps, in the order of their times."""

    browse: Browse
    principal: Principal
    job: Job | JobSummary

    @property
    def name(self) -> str:
        """The job's name with `EVENTS`."""
        return self.job.name + EVENTS

    @property
    def created_at(self) -> float:
        """The job's creation."""
        return self.job.created_at

    async def lines(self, after: int, span: Span) -> AsyncGenerator[Line, None]:
        """Lines with seq > `after`, in order."""
        if span.since:
            after = max(after, await self._count_before(span.since))
        size = _FIRST_PAGE
        while page := await self._page(after, size):
            size = min(2 * size, PAGE)
            for each in page:
                if span.until is not None and each.at_ms >= span.until:
                    return
                if span.holds(each.at_ms):
                    yield each
            after = page[-1].seq

    async def last(self, count: int, before: int | None, span: Span) -> list[Line]:
        """The newest `count` lines (with seq < `before`), oldest first."""
        end = await self._count_before(span.until) if before is None else before - 1
        after = max(end - count, 0)
        page: list[Line] = []
        while after < end and (more := await self._page(after, min(PAGE, end - after))):
            page += more
            after = more[-1].seq
        return [each for each in page if span.holds(each.at_ms)]

    async def _page(self, after: int, limit: int) -> list[Line]:
        found = await self.browse.events(self.principal, self.job.job_id, after=after, limit=limit)
        return [Line(_ms(event.at), self.name, event.seq, line(event) or "-") for event in found]

    async def _count_before(self, at_ms: int | None) -> int:
        """How many events are before a time (None: in all), by bisection."""
        low, step = 0, 64
        while await self._is_before(low + step, at_ms):
            low, step = low + step, step * 2
        high = low + step  # the event `low` is before it, `high` is not
        while high - low > 1:
            middle = (low + high) // 2
            if await self._is_before(middle, at_ms):
                low = middle
            else:
                high = middle
        return low

    async def _is_before(self, seq: int, at_ms: int | None) -> bool:
        found = await self._page(seq - 1, 1)
        return bool(found) and (at_ms is None or found[0].at_ms < at_ms)


# ── an agent's entries ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStream:
    """What is kept of a registered agent in one stream; `made` is "" for the service's own."""

    logs: AgentLogs
    agent: Agent
    made: str = ""
    since: float = 0.0

    @property
    def name(self) -> str:
        """As its maker called it."""
        return self.made or SERVICE

    @property
    def created_at(self) -> float:
        """When it was made."""
        return self.since or self.agent.created_at

    async def lines(self, after: int, span: Span) -> AsyncGenerator[Line, None]:
        """Lines with seq > `after`, in order."""
        since = span.since / 1000 if span.since else None
        until = None if span.until is None else (span.until + 1) / 1000
        while page := await self.logs.entries(
            self.agent.account_id, self.agent.name, after, PAGE, since, until
        ):
            for entry in page:
                each = self._line(entry)
                if entry.stream == self.made and span.holds(each.at_ms):
                    yield each
            after = page[-1].seq

    async def last(self, count: int, before: int | None, span: Span) -> list[Line]:
        """The newest `count` lines (with seq < `before`), oldest first."""
        kept: deque[Line] = deque(maxlen=count)
        async with contextlib.aclosing(self.lines(0, span)) as lines:
            async for each in lines:
                if before is not None and each.seq >= before:
                    break
                kept.append(each)
        return list(kept)

    def _line(self, entry: AgentLogEntry) -> Line:
        text = entry.text
        if not self.made:
            about = f" {entry.rollout_id}" if entry.rollout_id else ""
            text = f"[{entry.kind.value}{about}] {text}"
        return Line(_ms(entry.at), self.name, entry.seq, text or "-")


# ── the room ──────────────────────────────────────────────────────────────────────────────────


class Logs:
    """Groups, streams and lines. Every call requires a principal with the right."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        browse: Browse,
        agents: Agents,
        agent_logs: AgentLogs,
        resources: Resources,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._browse = browse
        self._agents = agents
        self._agent_logs = agent_logs
        self._resources = resources
        self._clock = clock

    async def groups(self, principal: Principal) -> list[Group]:
        """By name; those of jobs are always there."""
        principal.require(Action.READ)
        found = [Group(name=name, created_at=0.0) for name in JOB_GROUPS.values()]
        if principal.job_ids is None:
            found += [
                Group(name=agent.log_group, created_at=agent.created_at)
                for agent in await self._agents.list(principal)
            ]
        return sorted(found, key=lambda group: group.name)

    async def streams(self, principal: Principal, group: str, prefix: str = "") -> list[Stream]:
        """Those of a group whose names begin so, by name. Raises `NotFound` for the group."""
        principal.require(Action.READ)
        found: list[Stream]
        if group in JOB_GROUPS.values():
            (kind,) = (kind for kind, name in JOB_GROUPS.items() if name == group)
            query = JobQuery(account_id=principal.account_id, kind=kind, limit=MAX_JOBS)
            found = [
                JobStream(browse=self._browse, principal=principal, job=job)
                for job in await self._browse.job_page(principal, query)
            ]
        else:
            agent = await self._agent(principal, group)
            found = [AgentStream(logs=self._agent_logs, agent=agent), *await self._made(agent)]
        found = [stream for stream in found if stream.name.startswith(prefix)]
        return sorted(found, key=lambda stream: stream.name)

    async def stream(self, principal: Principal, group: str, name: str) -> Stream:
        """One stream. Raises `NotFound`."""
        if group in JOB_GROUPS.values():
            principal.require(Action.READ)
            return await self._job_stream(principal, group, name)
        for found in await self.streams(principal, group, name):
            if found.name == name:
                return found
        raise errors.NotFound("log stream", name)

    async def _job_stream(self, principal: Principal, group: str, name: str) -> Stream:
        # SageMaker's documentation calls the stream "<job name>/".
        job_name = name.removesuffix(EVENTS) if name.endswith(EVENTS) else name.removesuffix("/")
        try:
            job = await self._jobs.describe(principal, job_name)
        except errors.NotFound:
            raise errors.NotFound("log stream", name) from None
        if job_name == name or job.name != job_name or JOB_GROUPS[job.kind] != group:
            raise errors.NotFound("log stream", name)
        return JobStream(browse=self._browse, principal=principal, job=job)

    # ── what agents write ─────────────────────────────────────────────────────────────────────

    async def create_group(self, principal: Principal, group: str) -> None:
        """Groups come with jobs and agents: `Conflict` for one that is there, else a refusal."""
        principal.require(Action.REPORT)
        if group not in JOB_GROUPS.values():
            try:
                await self._agent(_of_account(principal), group)
            except errors.NotFound:
                raise errors.InvalidInput(
                    "logGroupName",
                    group,
                    "is of no registered agent",
                    remedy="a group is there as soon as its agent is: turnwise agents register",
                ) from None
        raise errors.Conflict(f"log group {group!r} exists already")

    async def create_stream(self, principal: Principal, group: str, name: str) -> None:
        """A stream of an agent's group. Raises `NotFound`, `Conflict` if it is there."""
        agent = await self._writable(principal, group)
        made = await self._made(agent)
        if name == SERVICE or name in {each.name for each in made}:
            raise errors.Conflict(f"log stream {name!r} exists already")
        if len(made) >= MAX_STREAMS:
            raise errors.LimitExceeded(f"an agent may have {MAX_STREAMS} log streams")
        await self._resources.create_resource(
            Resource(
                account_id=agent.account_id,
                kind=STREAM_KIND,
                name=_stream_key(agent, name),
                body={"stream": name},
                created_at=self._clock.now(),
            )
        )

    async def put(
        self, principal: Principal, group: str, stream: str, lines: Sequence[tuple[int, str]]
    ) -> None:
        """Keep lines (time in ms, text) that an agent's own handler has written."""
        agent = await self._writable(principal, group)
        if stream not in {each.name for each in await self._made(agent)}:
            raise errors.NotFound("log stream", stream, remedy="create it first")
        await self._agent_logs.append(
            [
                AgentLogEntry(
                    account_id=agent.account_id,
                    agent=agent.name,
                    at=at_ms / 1000,
                    kind=AgentLogKind.PRINTED,
                    text=text,
                    stream=stream,
                )
                for at_ms, text in lines
            ]
        )

    async def _writable(self, principal: Principal, group: str) -> Agent:
        principal.require(Action.REPORT)
        if group in JOB_GROUPS.values():
            raise errors.Denied("the service alone writes to the logs of jobs")
        return await self._agent(_of_account(principal), group)

    async def _agent(self, principal: Principal, group: str) -> Agent:
        if principal.job_ids is None:
            for agent in await self._agents.list(principal):
                if agent.log_group == group:
                    return agent
        raise errors.NotFound("log group", group)

    async def _made(self, agent: Agent) -> list[AgentStream]:
        prefix = _stream_key(agent, "")[:33]
        found = await self._resources.resources(agent.account_id, STREAM_KIND, prefix=prefix)
        return [
            AgentStream(
                logs=self._agent_logs,
                agent=agent,
                made=each.body["stream"],
                since=each.created_at,
            )
            for each in found
        ]


def _of_account(principal: Principal) -> Principal:
    """Whoever may report for an account's agents may also look which agents these are."""
    return Principal(account_id=principal.account_id)


def _stream_key(agent: Agent, stream: str) -> str:
    """The record's name of a stream: of fixed length, whatever the two are called."""
    of_agent = sha256(f"{agent.name} {agent.created_at}".encode()).hexdigest()[:32]
    return f"{of_agent}.{sha256(stream.encode()).hexdigest()[:32]}"


# ── reading over streams ──────────────────────────────────────────────────────────────────────


async def page_of(lines: AsyncGenerator[Line, None], count: int) -> list[Line]:
    """The first lines: at most `count`, and about `MAX_PAGE_CHARS` of text."""
    found: list[Line] = []
    size = 0
    async with contextlib.aclosing(lines):
        async for each in lines:
            found.append(each)
            size += len(each.text)
            if len(found) >= count or size >= MAX_PAGE_CHARS:
                break
    return found


#: A line's time in ms, its stream and its number: where to go on.
Place = tuple[int, str, int]


async def filtered(
    streams: Sequence[Stream],
    wanted: Filter,
    span: Span,
    past: Place | None,
    count: int,
) -> tuple[list[Line], Place | None]:
    """Lines of all streams by time that a filter lets through, past a place.

    The second value is where to go on; None at the end.
    """
    async with contextlib.AsyncExitStack() as opened:
        return await _merged(streams, wanted, span, past, count, opened)


async def _merged(
    streams: Sequence[Stream],
    wanted: Filter,
    span: Span,
    past: Place | None,
    count: int,
    opened: contextlib.AsyncExitStack,
) -> tuple[list[Line], Place | None]:
    since = span.since if past is None else max(span.since, past[0])
    narrowed = Span(since=since, until=span.until)
    sources = [stream.lines(0, narrowed) for stream in streams]
    for source in sources:
        opened.push_async_callback(source.aclose)
    waiting: list[tuple[Line, int]] = []

    async def refill(n: int) -> None:
        found = await anext(sources[n], None)
        if found is not None:
            heapq.heappush(waiting, (found, n))

    for n in range(len(sources)):
        await refill(n)
    found: list[Line] = []
    scanned = size = 0
    while waiting:
        each, n = heapq.heappop(waiting)
        place = (each.at_ms, each.stream, each.seq)
        if past is None or place > past:
            scanned += 1
            if wanted.matches(each.text):
                found.append(each)
                size += len(each.text)
        await refill(n)
        full = len(found) >= count or size >= MAX_PAGE_CHARS or scanned >= MAX_SCANNED
        if full and waiting:
            return found, place
    return found, None
