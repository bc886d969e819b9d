from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.builders import SetClock
from turnwise import errors
from turnwise.control import agent_logs
from turnwise.control.agent_logs import MAX_TEXT, AgentLogs, redacted
from turnwise.domain.agent import AgentLogEntry, AgentLogKind
from turnwise.storage.sql import SqlStore

OURS, THEIRS = "acc_ours", "acc_theirs"


@pytest.fixture
async def logs(store: SqlStore) -> AsyncIterator[AgentLogs]:
    opened = AgentLogs(store, SetClock(), keep=10)
    yield opened
    await opened.close()


def entry(text: str, **changes: object) -> AgentLogEntry:
    fields = {"account_id": OURS, "agent": "walker", "at": 5.0, "kind": AgentLogKind.PRINTED}
    return AgentLogEntry(text=text, **(fields | changes))  # type: ignore[arg-type]


async def texts(logs: AgentLogs, **place: object) -> list[str]:
    return [each.text for each in await logs.entries(OURS, "walker", **place)]  # type: ignore[arg-type]


async def test_what_a_job_notes_is_read_at_once_and_in_order(logs: AgentLogs) -> None:
    log = logs.of(OURS, "walker")
    log.note(AgentLogKind.RECEIVED, "go", rollout_id="rollout_a", job_id="job_a")
    log.note(AgentLogKind.ANSWERED, "200 done", rollout_id="rollout_a", job_id="job_a")
    await logs.print_lines(OURS, "walker", ["hello"])

    first, second, third = await logs.entries(OURS, "walker")
    assert (first.kind, first.text, first.rollout_id, first.job_id) == (
        *("received", "go", "rollout_a", "job_a"),
    )
    assert (second.text, third.text, third.kind) == ("200 done", "hello", "printed")
    assert first.seq < second.seq < third.seq
    assert first.at == SetClock().now()


async def test_noted_entries_are_written_without_anybody_asking(
    logs: AgentLogs, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_logs, "WRITE_EVERY_S", 0.01)
    logs.of(OURS, "walker").note(AgentLogKind.PRINTED, "hello")
    async with asyncio.timeout(30):
        while not await store.agent_log(OURS, "walker"):
            await asyncio.sleep(0.01)


async def test_entries_are_found_by_place_and_time(logs: AgentLogs) -> None:
    await logs.append([entry(f"at {at}", at=float(at)) for at in range(4)])
    seqs = [each.seq for each in await logs.entries(OURS, "walker")]
    assert await texts(logs, after=seqs[1]) == ["at 2", "at 3"]
    assert await texts(logs, limit=1) == ["at 0"]
    assert await texts(logs, since=1.0, until=3.0) == ["at 1", "at 2"]


async def test_an_agents_log_is_its_accounts_alone(logs: AgentLogs) -> None:
    await logs.append([entry("ours"), entry("theirs", account_id=THEIRS), entry("x", agent="b")])
    assert await texts(logs) == ["ours"]
    await logs.forget(OURS, "walker")
    assert await texts(logs) == []
    assert [each.text for each in await logs.entries(THEIRS, "walker")] == ["theirs"]


async def test_the_oldest_entries_go_first(logs: AgentLogs) -> None:
    await logs.append([entry("another agent's", agent="b")])
    for number in range(25):
        await logs.append([entry(str(number))])
    assert await texts(logs) == [str(number) for number in range(15, 25)]
    assert len(await logs.entries(OURS, "b")) == 1


async def test_more_entries_than_the_database_takes_are_dropped_and_told_of(
    logs: AgentLogs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_logs, "MAX_WAITING", 3)
    for number in range(5):
        logs.of(OURS, "walker").note(AgentLogKind.PRINTED, str(number))
    assert await texts(logs) == ["0", "1", "2"]
    assert "2 entries of agents' logs were dropped" in caplog.text


async def test_a_database_that_cannot_write_disturbs_nobody(
    logs: AgentLogs, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    write = store.append_agent_log

    async def fail(entries: list[AgentLogEntry]) -> None:
        if full:
            raise errors.StorageFull("no room")
        await write(entries)

    monkeypatch.setattr(store, "append_agent_log", fail)
    monkeypatch.setattr(agent_logs, "WRITE_EVERY_S", 0.01)
    logs.of(OURS, "walker").note(AgentLogKind.PRINTED, "lost")
    await asyncio.sleep(0.05)
    full = False
    logs.of(OURS, "walker").note(AgentLogKind.PRINTED, "kept")
    assert await texts(logs) == ["kept"]


async def test_no_secret_is_kept_and_no_endless_text(logs: AgentLogs) -> None:
    await logs.append([entry("a\x00" + "b" * (MAX_TEXT + 5)), entry("\ud800 half")])
    long, half = await texts(logs)
    assert long.startswith("a\ufffdbbb")
    assert long.endswith("b... (7 more characters)")
    assert half == "? half"

    url = "POST http://127.0.0.1:1/r/rollout_abcdef.abcdefghijklmnopqrstuvwxyzabcdef/v1 failed"
    assert redacted(url) == "POST http://127.0.0.1:1/r/rollout_abcdef.***/v1 failed"
    assert redacted("Authorization: Bearer sagemaker-api-key-c2FnZW1ha2VyLmFtYXpvbg==") == (
        "Authorization: Bearer sagemaker-api-key-***"
    )
    assert redacted("key tw_" + "a" * 40) == "key tw_***"
