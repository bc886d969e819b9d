"""The audit trail: any tampering is found, retention keeps it verifiable, secrets stay out."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import ACCOUNT, SetClock
from turnwise import errors
from turnwise.control.audit.audit_trail import DAY_S, AuditTrail
from turnwise.control.audit.record import MAX_BYTES, Identity, Resource, Witnessed, draft, safe
from turnwise.control.audit.trails import Trails
from turnwise.control.audit.verify import Verdict, Verifier
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.audit import (
    AuditHead,
    AuditQuery,
    AuditRecord,
    AuditSegment,
    Category,
    Sealer,
    chained,
)
from turnwise.storage import audit as storage
from turnwise.storage.sql import SqlStore

ADMIN = Principal(account_id=ACCOUNT, name="admin", is_operator=True)
SEALER = Sealer(b"k" * 32)
OTHERS = Sealer(b"x" * 32)
NUMBER = "000000000001"
JOB = Resource(
    kind="AWS::SageMaker::Job", arn=f"arn:aws:sagemaker:us-west-2:{NUMBER}:job/AgentRFT/walk"
)


def seen(name: str = "CreateJob", at: float = 1000.0, **changes: Any) -> Witnessed:
    fields: dict[str, Any] = {
        "account_id": ACCOUNT,
        "identity": Identity(number=NUMBER, user_name="admin", access_key_id="TWAKA"),
        "at": at,
        "region": "us-west-2",
        "source": "sagemaker.amazonaws.com",
        "name": name,
        "read_only": name.startswith(("Describe", "List")),
        "request_id": f"{name}-{at}",
    }
    return Witnessed(**(fields | changes))


def data(name: str = "Sample", at: float = 1000.0, **changes: Any) -> Witnessed:
    return seen(name, at, category=Category.DATA, resources=[JOB], **changes)


# ── verification ──────────────────────────────────────────────────────────────────────────────


def a_chain(count: int) -> tuple[AuditHead, list[AuditRecord]]:
    """A chain of so many records, all of the open segment."""
    head = AuditHead(account_id=ACCOUNT)
    records = []
    for n in range(count):
        made = draft(seen(at=1000.0 + n))
        digest = chained(head.digest, made.body)
        head = replace(head, last_seq=n + 1, digest=digest)
        fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
        records.append(AuditRecord(account_id=ACCOUNT, seq=n + 1, digest=digest, **fields))
    return replace(head, seal=SEALER.head(head)), records


def verdict(
    head: AuditHead,
    records: list[AuditRecord],
    segments: list[AuditSegment] | None = None,
    now: float = 2000.0,
) -> Verdict:
    verifier = Verifier(head, segments or [], SEALER, now)
    verifier.take(records)
    return verifier.verdict()


def rechained(records: list[AuditRecord]) -> list[AuditRecord]:
    """What someone would do who changed a record and knows how digests are made."""
    previous, chain = "0" * 64, []
    for n, record in enumerate(records):
        previous = chained(previous, record.body)
        chain.append(replace(record, seq=n + 1, digest=previous))
    return chain


@given(st.data(), st.integers(1, 12))
@settings(deadline=None, max_examples=150)
def test_any_record_that_is_altered_removed_inserted_or_moved_is_found(
    choose: st.DataObject, count: int
) -> None:
    head, records = a_chain(count)
    assert verdict(head, records).is_intact
    at = choose.draw(st.integers(0, count - 1), "at")
    how = choose.draw(st.sampled_from(["alter", "field", "remove", "insert", "swap", "cut"]), "how")
    tampered = list(records)
    if how == "alter":
        body = json.loads(records[at].body) | {"sourceIPAddress": "6.6.6.6"}
        tampered[at] = replace(records[at], body=json.dumps(body))
    elif how == "field":
        tampered[at] = replace(records[at], user_name="somebody else")
    elif how == "remove":
        del tampered[at]
    elif how == "insert":
        tampered.insert(at, replace(records[at], body=draft(seen("Forged")).body))
    elif how == "swap":
        other = choose.draw(st.integers(0, count - 1).filter(lambda n: n != at or count == 1))
        if other == at:
            return
        a, b = records[at], records[other]
        tampered[at] = replace(b, seq=a.seq, digest=a.digest)
        tampered[other] = replace(a, seq=b.seq, digest=b.digest)
    else:
        del tampered[at:]
    found = verdict(head, tampered)
    assert not found.is_intact
    # It says where: at the record, or at the next one that shows it.
    assert min(flaw.seq for flaw in found.flaws) <= at + 2

    if how in ("field", "cut"):
        return
    # Making the digests anew does not help: the seal's key is not in the database.
    forged = rechained(tampered)
    new_head = replace(head, last_seq=len(forged), digest=forged[-1].digest if forged else "0" * 64)
    if forged:
        assert not verdict(replace(new_head, seal=OTHERS.head(new_head)), forged).is_intact
        assert not verdict(new_head, forged).is_intact


async def a_store(clock: SetClock) -> SqlStore:
    store = SqlStore.in_memory(clock=clock)
    await store.default_account()
    return store


@pytest.fixture
def clock() -> SetClock:
    return SetClock(1_000_000.0)


@pytest.fixture
async def store(clock: SetClock) -> AsyncIterator[SqlStore]:
    opened = await a_store(clock)
    yield opened
    await opened.close()


@pytest.fixture
def audit(store: SqlStore, clock: SetClock) -> AuditTrail:
    return AuditTrail(store, store, SEALER, clock)


async def test_retention_drops_whole_segments_and_the_rest_stays_verifiable(
    audit: AuditTrail, store: SqlStore, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SEGMENT_RECORDS", 3)
    for n in range(10):
        await audit.record(seen(at=clock.at + n))
    assert (await audit.verify(ADMIN)).segments == 3

    clock.at += 89 * DAY_S
    await audit.retain()
    assert (await audit.verify(ADMIN)).dropped == 0

    clock.at += 2 * DAY_S
    await audit.record(seen(at=clock.at))  # the open segment's age seals it
    await audit.retain()
    found = await audit.verify(ADMIN)
    assert found.is_intact
    assert (found.dropped, found.first_seq, found.records) == (4, 11, 1)

    # Records that go before their time are missed, whoever claims that they were dropped.
    clock.at += DAY_S
    await audit.record(seen(at=clock.at))
    await store.drop_audit(ACCOUNT, before=clock.at)
    early = await audit.verify(ADMIN)
    assert [flaw.what for flaw in early.flaws] == ["records up to 11 were removed too early"]


async def test_a_segment_is_sealed_by_its_age_and_records_are_numbered_through(
    audit: AuditTrail, store: SqlStore, clock: SetClock
) -> None:
    for _ in range(3):
        await audit.record(seen(at=clock.at))
        clock.at += DAY_S
    segments = await store.audit_segments(ACCOUNT)
    assert [(each.first_seq, each.last_seq) for each in segments] == [(1, 1), (2, 2)]
    assert segments[1].previous == segments[0].digest
    found = await store.audit_records(ACCOUNT, AuditQuery(newest_first=False))
    assert [each.seq for each in found] == [1, 2, 3]


async def test_calls_at_the_same_moment_get_one_chain(audit: AuditTrail) -> None:
    await asyncio.gather(*(audit.record(seen(at=1_000_000.0 + n)) for n in range(50)))
    found = await audit.verify(ADMIN)
    assert found.is_intact
    assert (found.records, found.last_seq) == (50, 50)


async def test_accounts_have_chains_of_their_own(audit: AuditTrail) -> None:
    await audit.record(seen())
    await audit.record(seen(account_id="acc_other"))
    assert (await audit.verify(ADMIN)).records == 1
    assert len(await audit.search(Principal(account_id="acc_other"), AuditQuery())) == 1


async def test_who_may_not_read_the_account_may_not_read_its_trail(audit: AuditTrail) -> None:
    limited = (
        Principal(account_id=ACCOUNT, actions=frozenset({Action.SAMPLE})),
        Principal(account_id=ACCOUNT, job_ids=frozenset({"job_a"})),
    )
    for principal in limited:
        with pytest.raises(errors.Denied):
            await audit.search(principal, AuditQuery())
        with pytest.raises(errors.Denied):
            await audit.verify(principal)


async def test_a_record_that_the_store_refuses_is_kept_when_it_takes_one_again(
    store: SqlStore, clock: SetClock
) -> None:
    class Full:
        """A store on a disk that is full for a while."""

        is_full = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def append_audit(self, *given: Any) -> int:
            if self.is_full:
                raise errors.StorageFull("full")
            return await store.append_audit(*given)

    full = Full()
    audit = AuditTrail(full, store, SEALER, clock)  # type: ignore[arg-type]
    with pytest.raises(errors.StorageFull):
        await audit.record(seen())
    with pytest.raises(errors.StorageFull):
        await audit.flush()
    full.is_full = False
    await audit.close()
    assert len(await audit.search(ADMIN, AuditQuery())) == 1


async def test_a_search_finds_by_each_field(audit: AuditTrail) -> None:
    await audit.record(seen("CreateJob", resources=[JOB]))
    await audit.record(seen("ListJobs", at=2000.0))

    async def names(**wanted: Any) -> list[str]:
        return [each.name for each in await audit.search(ADMIN, AuditQuery(**wanted))]

    assert await names() == ["ListJobs", "CreateJob"]
    assert await names(resource="walk") == await names(resource=JOB.arn) == ["CreateJob"]
    assert await names(resource="wal") == await names(resource="wal%") == []
    assert await names(resource_type=JOB.kind) == ["CreateJob"]
    assert await names(read_only=True) == await names(since=2000.0) == ["ListJobs"]
    assert await names(until=1999.0) == await names(before=2) == ["CreateJob"]
    assert await names(user_name="nobody") == []


# ── what a record holds ───────────────────────────────────────────────────────────────────────


@given(st.recursive(st.text() | st.floats() | st.none(), st.lists, max_leaves=12))
def test_any_value_becomes_json(value: Any) -> None:
    json.dumps(safe(value), allow_nan=False).encode()


def test_secrets_are_masked_by_name_and_by_look() -> None:
    key = "tw_" + "a" * 40
    given = {
        "SecretAccessKey": "s3cret",
        "headers": {"X-Api-Key": "s3cret", "Authorization": "Bearer s3cretsecret"},
        "NextToken": "page 2",
        "max_tokens": 8,
        "JobConfigDocument": json.dumps({"agent": {"password": "s3cret", "url": "http://a:p@h"}}),
        "note": f"use {key} at http://h/r/rollout_abc.SecretSecret/v1?X-Amz-Signature=ffff",
    }
    kept = safe(given)
    text = json.dumps(kept)
    assert "s3cret" not in text
    assert key not in text
    assert "SecretSecret" not in text
    assert "ffff" not in text
    assert "a:p@" not in text
    assert (kept["NextToken"], kept["max_tokens"]) == ("page 2", 8)


def test_large_parameters_are_cut_with_a_mark() -> None:
    made = draft(seen(parameters={"long": "x" * 10_000, "many": list(range(1000))}))
    kept = json.loads(made.body)["requestParameters"]
    assert kept["long"].endswith("... (10000 characters)")
    assert kept["many"][-1] == "... (1000 members)"
    huge = draft(seen(parameters={f"part{n}": "x" * 4000 for n in range(50)}))
    assert "omitted" in json.loads(huge.body)["requestParameters"]
    assert len(huge.body) < MAX_BYTES


# ── trails ────────────────────────────────────────────────────────────────────────────────────

DATA_OF_JOBS = [
    {
        "FieldSelectors": [
            {"Field": "eventCategory", "Equals": ["Data"]},
            {"Field": "resources.type", "Equals": [JOB.kind]},
        ]
    }
]


class Bucket:
    """Buckets that keep everything, or nothing while they are broken."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.broken: Exception | None = None

    async def exists(self, account_id: str, bucket: str) -> bool:
        return bucket == "logs"

    async def put(self, account_id: str, bucket: str, key: str, data: bytes) -> None:
        if self.broken is not None:
            raise self.broken
        self.objects[key] = data

    @property
    def names(self) -> list[str]:
        pages = [json.loads(gzip.decompress(each))["Records"] for each in self.objects.values()]
        records = sorted((r for page in pages for r in page), key=lambda r: r["eventTime"])
        return [record["eventName"] for record in records]


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def opened(audit: AuditTrail, store: SqlStore, clock: SetClock, bucket: Bucket) -> Trails:
    return Trails(audit, store, clock, region="us-west-2", buckets=bucket)


@pytest.fixture
async def account(store: SqlStore) -> Account:
    return await store.default_account()


async def logging_trail(trails: Trails, account: Account) -> None:
    await trails.create(ADMIN, account, "trail", bucket="logs", prefix="audit")
    await trails.start_logging(ADMIN, "trail")


async def test_a_trail_has_what_happened_while_it_logged_and_no_record_twice(
    audit: AuditTrail, store: SqlStore, clock: SetClock, bucket: Bucket, account: Account
) -> None:
    trails = opened(audit, store, clock, bucket)
    await audit.record(seen("Before"))
    await logging_trail(trails, account)
    await audit.record(seen("First", 2000.0))
    await trails.deliver()
    await audit.record(seen("Second", 3000.0))
    await trails.stop_logging(ADMIN, "trail")
    await audit.record(seen("Between", 4000.0))
    await trails.start_logging(ADMIN, "trail")
    await audit.record(seen("Third", 5000.0))
    await trails.deliver()
    assert bucket.names == ["First", "Second", "Third"]
    assert all(
        key.startswith(
            f"audit/AWSLogs/{NUMBER}/CloudTrail/us-west-2/1970/01/01/{NUMBER}_CloudTrail"
        )
        for key in bucket.objects
    )


async def test_a_trail_that_cannot_deliver_says_so_and_catches_up(
    audit: AuditTrail, store: SqlStore, clock: SetClock, bucket: Bucket, account: Account
) -> None:
    trails = opened(audit, store, clock, bucket)
    await logging_trail(trails, account)
    bucket.broken = errors.NotFound("bucket", "logs")
    await audit.record(seen("First", 2000.0))
    await trails.deliver()
    assert trails.trail(ADMIN, "trail").error == "NoSuchBucket: bucket 'logs' does not exist"
    await audit.record(seen("Second", 3000.0))
    bucket.broken = None
    await trails.deliver()
    assert bucket.names == ["First", "Second"]
    assert trails.trail(ADMIN, "trail").error == ""


async def test_a_trail_that_could_not_deliver_until_its_records_were_too_old_goes_on_after_them(
    audit: AuditTrail, store: SqlStore, clock: SetClock, bucket: Bucket, account: Account
) -> None:
    trails = opened(audit, store, clock, bucket)
    await logging_trail(trails, account)
    bucket.broken = errors.NotFound("bucket", "logs")
    await audit.record(seen("Lost", clock.at))
    await trails.deliver()
    clock.at += 91 * DAY_S
    await audit.record(seen("Late", clock.at))  # the open segment's age seals it
    await audit.retain()
    assert [each.name for each in await audit.after(ACCOUNT, 0, None)] == ["Late"]

    bucket.broken = None
    await trails.deliver()
    assert bucket.names == ["Late"]


@pytest.mark.parametrize("moment", ["before the file", "after the file"])
async def test_a_server_that_is_killed_while_it_delivers_leaves_no_gap_and_no_duplicate(
    moment: str,
    audit: AuditTrail,
    store: SqlStore,
    clock: SetClock,
    bucket: Bucket,
    account: Account,
) -> None:
    class Killed(Exception):
        pass

    class Dying(Bucket):
        async def put(self, account_id: str, name: str, key: str, data: bytes) -> None:
            if moment == "after the file":
                await bucket.put(account_id, name, key, data)
            raise Killed

    trails = opened(audit, store, clock, Dying())
    await logging_trail(trails, account)
    await audit.record(seen("First", 2000.0))
    await trails.deliver()
    await audit.record(seen("Second", 3000.0))

    after = opened(audit, store, clock, bucket)
    await after.open([account])
    await after.close()
    assert bucket.names == ["First", "Second"]


async def test_data_events_are_recorded_only_while_a_logging_trail_selects_them(
    audit: AuditTrail, store: SqlStore, clock: SetClock, bucket: Bucket, account: Account
) -> None:
    trails = opened(audit, store, clock, bucket)
    await trails.create(ADMIN, account, "trail", bucket="logs")
    audit.record_soon(data())
    assert not audit.selects_data
    await trails.put_selectors(ADMIN, "trail", advanced=DATA_OF_JOBS)
    assert not audit.selects_data  # it is not logging
    await trails.start_logging(ADMIN, "trail")
    assert audit.selects_data
    audit.record_soon(data("UpdateReward", 2000.0))
    audit.record_soon(replace(data("OfAnother"), account_id="acc_other"))
    await trails.stop_logging(ADMIN, "trail")
    assert not audit.selects_data
    assert bucket.names == ["UpdateReward"]
    assert len(await audit.search(ADMIN, AuditQuery(category=Category.DATA))) == 1


async def test_a_folder_gets_whole_files_and_is_the_operators_alone(
    audit: AuditTrail, store: SqlStore, clock: SetClock, account: Account, tmp_path: Path
) -> None:
    trails = Trails(audit, store, clock, region="us-west-2")
    with pytest.raises(errors.Denied):
        await trails.create(replace(ADMIN, is_operator=False), account, "trail", folder="/tmp/x")
    with pytest.raises(errors.InvalidInput):
        await trails.create(ADMIN, account, "trail", folder="relative")
    with pytest.raises(errors.NotFound, match="bucket 'logs'"):
        await trails.create(ADMIN, account, "trail", bucket="logs")
    with pytest.raises(errors.InvalidInput):
        await trails.create(ADMIN, account, "trail", folder=str(tmp_path), prefix="../up")
    await trails.create(ADMIN, account, "trail", folder=str(tmp_path / "out"))
    await trails.start_logging(ADMIN, "trail")
    await audit.record(seen("First"))
    await trails.deliver()
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) == 1
    assert json.loads(gzip.decompress(files[0].read_bytes()))["Records"][0]["eventName"] == "First"
