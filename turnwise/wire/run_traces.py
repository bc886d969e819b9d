"""The tracing gateway of one evaluator's run: its own rollouts, and what was logged of them.

RemoteRolloutProcessor asks here how a rollout has ended and for its model calls, and the server
that makes the rollout may log here. That server may also log at the account's own gateway
({server}/litellm-gateway, with a key): it finds that address in its own environment. Such entries
are looked for too, by the rollout's id, from the moment that the rollout was opened.

Nothing of another run is ever shown: model calls are those of the run's own rollouts, and an entry
that came to another run's address bears its tag.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from turnwise.control.traces import Traces
from turnwise.domain.access import Action, Principal
from turnwise.domain.rollout import Trajectory, Turn
from turnwise.domain.traced import TracedCall, TracedLog, TraceQuery
from turnwise.evaluators.runs import Run
from turnwise.ports import Clock
from turnwise.wire.fireworks import tracing_codec as codec

#: The tag of entries that came to a run's address; its value is the run's id.
RUN_TAG = "turnwise_run"

#: The name that a run's rollouts have for their model.
_MODEL = "default"

#: A rollout with its record, by account and id. Raises `NotFound`.
FindTrajectory = Callable[[str, str], Awaitable[Trajectory]]


class RunTraces:
    """Keeps and finds what runs ask for, in the shapes of the tracing gateway."""

    def __init__(self, traces: Traces, trajectory: FindTrajectory, clock: Clock) -> None:
        self._traces = traces
        self._trajectory = trajectory
        self._clock = clock

    async def keep_log(self, run: Run, body: bytes) -> bytes:
        """POST /logs. Raises `InvalidInput`."""
        entry = codec.decode_log(body)
        for their_id in _named_rollouts(entry.tags):
            run.joining.named(their_id)
        kept = replace(entry, tags=(*entry.tags, _tag_of(run)))
        await self._traces.keep_log(_reporter(run), kept)
        return b"{}"

    async def logs(self, run: Run, query: str) -> bytes:
        """GET /logs. Raises `InvalidInput`."""
        return codec.encode_logs(
            await self._entries(run, codec.decode_logs_query(query, self._clock.now()))
        )

    async def status(self, run: Run, query: str) -> bytes:
        """GET /status. Raises `InvalidInput`."""
        their_id = codec.decode_status_query(query)
        run.joining.named(their_id)
        asked = TraceQuery(tags=(f"rollout_id:{their_id}",), ended=True, limit=1)
        ended = next(iter(await self._entries(run, asked)), None)
        return codec.encode_status(their_id, ended)

    async def calls(self, run: Run, query: str, *, project_id: str) -> bytes:
        """GET /traces/pointwise. Raises `InvalidInput`."""
        asked, with_payloads = codec.decode_traces_query(query, self._clock.now())
        found: list[TracedCall] = []
        for their_id, rollout_id in run.joining.names.items():
            tags = run.tags.get(their_id, (f"rollout_id:{their_id}",))
            if set(asked.tags) <= set(tags):
                found += calls_of(await self._trajectory(run.account_id, rollout_id), tags)
        newest = sorted(filter(_within(asked), found), key=lambda call: call.at, reverse=True)
        page = newest[: asked.limit]
        return codec.encode_traces(page, project_id=project_id, with_payloads=with_payloads)

    async def _entries(self, run: Run, asked: TraceQuery) -> list[TracedLog]:
        """The run's own entries, and those about its rollouts at the account's gateway."""
        reader = _reader(run)
        own = replace(asked, tags=(*asked.tags, _tag_of(run)))
        found = await self._traces.logs(reader, own)
        names = run.joining.names
        for their_id in _named_rollouts(asked.tags):
            if their_id in names:
                opened = await self._trajectory(run.account_id, names[their_id])
                since = max(asked.since or 0.0, opened.rollout.created_at)
                elsewhere = await self._traces.logs(reader, replace(asked, since=since))
                found += [entry for entry in elsewhere if not _is_of_a_run(entry)]
        newest = sorted({entry.seq: entry for entry in found}.items(), reverse=True)
        return [_without_run(entry) for _, entry in newest[: asked.limit]]


def calls_of(trajectory: Trajectory, tags: tuple[str, ...]) -> list[TracedCall]:
    """A rollout's delivered turns as recorded calls, the oldest first."""
    return [_call(trajectory, turn, tags) for turn in trajectory.delivered]


def _call(trajectory: Trajectory, turn: Turn, tags: tuple[str, ...]) -> TracedCall:
    *before, said = trajectory.path(turn.leaf)
    assert said.logprobs is not None  # the model has said it
    return TracedCall(
        account_id=trajectory.rollout.account_id,
        call_id=turn.turn_id,
        tags=tags,
        at=turn.ended_at,
        started_at=turn.started_at,
        model=_MODEL,
        messages=tuple(message for node in before for message in node.messages),
        tools=before[0].tools if before else (),
        reply=said.messages[0],
        finish_reason=turn.finish_reason,
        prompt=np.concatenate([node.tokens for node in before]),
        completion=said.tokens,
        logprobs=said.logprobs,
    )


def _within(asked: TraceQuery) -> Callable[[TracedCall], bool]:
    since = asked.since or 0.0
    return lambda call: since <= call.at and (asked.until is None or call.at < asked.until)


def _named_rollouts(tags: Sequence[str]) -> list[str]:
    named = (tag.partition(":") for tag in tags)
    return [value for name, _, value in named if name == "rollout_id" and value]


def _tag_of(run: Run) -> str:
    return f"{RUN_TAG}:{run.run_id}"


def _is_of_a_run(entry: TracedLog) -> bool:
    return any(tag.startswith(f"{RUN_TAG}:") for tag in entry.tags)


def _without_run(entry: TracedLog) -> TracedLog:
    tags = tuple(tag for tag in entry.tags if not tag.startswith(f"{RUN_TAG}:"))
    return replace(entry, tags=tags)


def _reporter(run: Run) -> Principal:
    return Principal(
        account_id=run.account_id, actions=frozenset({Action.REPORT}), name=_named(run)
    )


def _reader(run: Run) -> Principal:
    return Principal(account_id=run.account_id, actions=frozenset({Action.READ}), name=_named(run))


def _named(run: Run) -> str:
    return f"evaluator's run {run.run_id}"
