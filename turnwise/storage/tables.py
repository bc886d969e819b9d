"""The tables. A column carries the name of the noun's field that it stores, and its type.

Every table has `account_id`. There are no foreign keys: a turn is the hottest write, its rollout
is checked by the statement that counts it, and a job is deleted whole in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.event import listen
from sqlalchemy.schema import ExecutableDDLElement

from turnwise.domain.access import Action
from turnwise.domain.agent import AgentLogKind
from turnwise.domain.audit import Category
from turnwise.domain.event import EventKind, Level
from turnwise.domain.job import Inputs, JobKind, JobSpec, JobStatus, Secondary
from turnwise.domain.rollout import (
    Delivery,
    Fault,
    FinishReason,
    ForkCause,
    GroupStatus,
    Message,
    NodeKind,
    Policy,
    Purpose,
    RolloutStatus,
    SamplingParams,
)
from turnwise.domain.training import Adapter


def _plain(value: Any) -> Any:
    """Numpy's scalars as Python's: metrics often come as numpy numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def to_json(value: object) -> str:
    """JSON of nouns and plain values. Numbers that are not finite become null."""
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def to_bytes(values: npt.NDArray[Any], dtype: str) -> bytes:
    """An array's raw little-endian bytes."""
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


class Json(TypeDecorator[Any]):
    """A value of the given type as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self._decode = msgspec.json.Decoder(stored).decode
        super().__init__()

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Noun to text; None stays NULL."""
        return None if value is None else to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Text to noun."""
        return None if value is None else self._decode(value)


class Word(TypeDecorator[Any]):
    """A member of an enum, as its value."""

    impl = String(32)
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        self.enum = enum
        super().__init__()

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Member to word. A word that is no member raises ValueError."""
        return None if value is None else self.enum(value).value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Word to member."""
        return None if value is None else self.enum(value)


class Array(TypeDecorator[Any]):
    """A numpy array as raw little-endian bytes."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        super().__init__()

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        """Array to bytes."""
        return None if value is None else to_bytes(value, self.dtype)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Bytes to array."""
        return None if value is None else np.frombuffer(value, dtype=self.dtype)


class Digits(TypeDecorator[int]):
    """An integer of any size as text: seeds are unsigned 64 bit, which no SQL integer holds."""

    impl = String(24)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Integer to digits."""
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        """Digits to integer."""
        return None if value is None else int(value)


#: The condition that a rollout has ended.
ENDED = "duration IS NOT NULL"

#: What makes transcripts searchable, by dialect. On SQLite `job` is a term like any other, so that
#: a search finds one job's rollouts in their order; the text itself stays in `transcripts`.
SEARCH_INDEX = {
    "sqlite": "CREATE VIRTUAL TABLE search_index USING fts5(job, text, content='')",
    "postgresql": (
        "CREATE INDEX search_index ON transcripts USING gin (to_tsvector('simple', text))"
    ),
}

INT32 = "<i4"
FLOAT32 = "<f4"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _id(name: str, **options: Any) -> Column[Any]:
    return Column(name, String(64), nullable=False, **options)


def _seq() -> Column[Any]:
    """A counter over all accounts: a cursor, and the order of insertion."""
    # SQLite counts by itself only in a column of exactly this type.
    return Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _json(name: str, stored: Any, *, nullable: bool = False) -> Column[Any]:
    return Column(name, Json(stored), nullable=nullable)


def _word(name: str, enum: type[StrEnum], *, nullable: bool = False) -> Column[Any]:
    return Column(name, Word(enum), nullable=nullable)


def _int(name: str, **options: Any) -> Column[Any]:
    return Column(name, Integer, nullable=False, **options)


def _time(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, Double, nullable=nullable)


def _text(name: str) -> Column[Any]:
    return Column(name, Text, nullable=False)


def _index(name: str, *columns: str, where: str) -> Index:
    """An index of the rows alone for which a condition holds."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


accounts = Table(
    "accounts",
    metadata,
    _id("account_id", primary_key=True),
    Column("slug", String(64), nullable=False, unique=True),
    Column("number", String(12), nullable=False, unique=True),
)

keys = Table(
    "keys",
    metadata,
    _id("key_id", primary_key=True),
    _id("account_id", index=True),
    _text("name"),
    Column("sha256", String(64), nullable=False, unique=True),
    _json("actions", frozenset[Action]),
    _json("job_ids", frozenset[str], nullable=True),
    _time("created_at"),
    _time("revoked_at", nullable=True),
    _id("access_key_id", server_default="", index=True),
    Column("sealed", LargeBinary),
)

#: Beside the noun: what a list shows of the spec, and the newest step's mean training reward.
jobs = Table(
    "jobs",
    metadata,
    _seq(),
    _id("job_id", unique=True),
    _id("account_id"),
    Column("name", String(256), nullable=False),
    _json("spec", JobSpec),
    _word("status", JobStatus),
    _word("secondary", Secondary),
    _text("message"),
    _int("incarnation"),
    _int("step"),
    _time("created_at"),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    _json("inputs", Inputs, nullable=True),
    _text("parent"),
    _text("output"),
    _int("last_event", default=0),
    _word("kind", JobKind),
    _text("model"),
    _text("output_group"),
    _text("description"),
    _int("priority"),
    _int("max_steps"),
    Column("latest_reward", Double),
    UniqueConstraint("account_id", "name"),
    Index("ix_jobs_status", "status", "seq"),
    # A list is filtered in it: a row of this table is as long as the job's spec.
    Index("ix_jobs_page", "account_id", "seq", "status", "kind", "name", "job_id"),
    sqlite_autoincrement=True,
)

#: Beside the noun: what of its body events are asked for by.
events = Table(
    "events",
    metadata,
    _id("job_id", primary_key=True),
    _int("seq", primary_key=True, autoincrement=False),
    _id("account_id"),
    _time("at"),
    _word("kind", EventKind),
    _word("level", Level),
    _json("body", dict[str, Any]),
    Column("rollout_id", String(64)),
    Column("step", Integer),
    Index("ix_events_kind", "job_id", "kind", "seq"),
    Index("ix_events_level", "job_id", "level", "seq"),
    _index("ix_events_rollout", "job_id", "rollout_id", "seq", where="rollout_id IS NOT NULL"),
    _index("ix_events_step", "job_id", "step", "seq", where="step IS NOT NULL"),
)

groups = Table(
    "groups",
    metadata,
    _seq(),
    _id("group_id", unique=True),
    _id("account_id"),
    _id("job_id"),
    _int("incarnation"),
    _int("order"),
    _int("row_index"),
    _int("epoch"),
    _int("size"),
    _int("admitted_at_step"),
    _word("status", GroupStatus),
    Column("step", Integer),
    Index(None, "job_id", "seq"),
    sqlite_autoincrement=True,
)

# What pages of rollouts are filtered by, in each index that orders them: so that rollouts which
# do not match are passed over there, without a look at their rows.
_FILTERS = ("step", "purpose", "status", "row_index", "fault_code")

#: Beside the noun: how many turns were delivered and tokens sampled; the ledger's bins with the
#: step that they are counted in; and what pages are filtered and ordered by: the total reward,
#: the code of the fault, and the seconds from its creation to its end.
#:
#: A turn changes `turns` and `tokens`; the indexes over these hold only rollouts that have ended.
rollouts = Table(
    "rollouts",
    metadata,
    _seq(),
    _id("rollout_id", unique=True),
    _id("account_id"),
    _id("job_id"),
    _int("incarnation"),
    _id("group_id"),
    _int("slot"),
    _int("attempt"),
    _word("purpose", Purpose),
    _int("row_index"),
    _int("step"),
    Column("seed", Digits, nullable=False),
    _json("sampling", SamplingParams),
    Column("secret_sha256", String(64), nullable=False),
    _time("created_at"),
    _time("deadline_at"),
    _json("policy", Policy, nullable=True),
    _word("status", RolloutStatus),
    _json("rewards", tuple[float, ...], nullable=True),
    _json("metrics", Mapping[str, float]),
    _json("fault", Fault, nullable=True),
    _time("ended_at", nullable=True),
    Column("reason", Text, nullable=False, server_default=""),
    _int("turns", default=0),
    _int("tokens", default=0),
    _json("bins", dict[str, int], nullable=True),
    Column("ledger_step", Integer),
    Column("reward", Double),
    Column("fault_code", Text),
    Column("duration", Double),
    Column("is_searchable", Boolean, nullable=False, default=False),
    UniqueConstraint("group_id", "slot", "attempt"),
    Index("ix_rollouts_seq", "job_id", "seq", *_FILTERS, "reward", "duration"),
    Index("ix_rollouts_tally", "job_id", "step", "purpose", "status", "fault_code"),
    _index("ix_rollouts_reward", "job_id", "reward", "seq", *_FILTERS, where="reward IS NOT NULL"),
    *(
        _index(f"ix_rollouts_{key}", "job_id", key, "seq", *_FILTERS, "reward", where=ENDED)
        for key in ("turns", "tokens", "duration")
    ),
    _index("ix_rollouts_unsearchable", "seq", where=f"{ENDED} AND NOT is_searchable"),
    sqlite_autoincrement=True,
)

#: What the messages of an ended rollout say; `seq` is the rollout's. Searched by word: on SQLite in
#: the table `search_index` beside it, whose rowid is `seq`, on Postgres by an index of that name.
transcripts = Table(
    "transcripts",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _id("account_id"),
    _id("job_id"),
    _text("text"),
    Index(None, "job_id", "seq"),
)
for _dialect, _statement in SEARCH_INDEX.items():
    _made: ExecutableDDLElement = DDL(_statement)  # type: ignore[no-untyped-call]
    listen(transcripts, "after_create", _made.execute_if(dialect=_dialect))

#: Deleted jobs whose transcripts, up to one of a number, are still to be removed.
deleted_jobs = Table(
    "deleted_jobs",
    metadata,
    _id("job_id", primary_key=True),
    _id("account_id"),
    Column("last_seq", BigInteger, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    _id("rollout_id", primary_key=True),
    _int("node_id", primary_key=True, autoincrement=False),
    _id("account_id"),
    Column("parent", Integer),
    _word("kind", NodeKind),
    _json("messages", tuple[Message, ...]),
    Column("tokens", Array(INT32), nullable=False),
    Column("logprobs", Array(FLOAT32)),
    Column("tools_sha256", String(64), nullable=False),
    Column("tools", Json(tuple[Mapping[str, Any], ...]), nullable=False, server_default="[]"),
    _word("fork_cause", ForkCause, nullable=True),
)

turns = Table(
    "turns",
    metadata,
    _id("rollout_id", primary_key=True),
    _int("index", primary_key=True, autoincrement=False),
    _id("account_id"),
    _id("turn_id"),
    _int("leaf"),
    _json("policy", Policy),
    _json("sampling", SamplingParams),
    Column("seed", Digits, nullable=False),
    _word("finish_reason", FinishReason),
    _int("prompt_tokens"),
    _int("completion_tokens"),
    Column("request_sha256", String(64), nullable=False),
    _word("delivery", Delivery),
    _time("started_at"),
    _time("ended_at"),
    _int("cached_tokens", server_default="0"),
    _int("past_stop_tokens", server_default="0"),
)

steps = Table(
    "steps",
    metadata,
    _id("job_id", primary_key=True),
    _int("step", primary_key=True, autoincrement=False),
    _id("account_id"),
    _json("policy", Policy),
    _time("finished_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _id("job_id", primary_key=True),
    _int("step", primary_key=True, autoincrement=False),
    _id("account_id"),
    _text("path"),
    Column("sha256", String(64), nullable=False),
    _json("adapter", Adapter),
)

packages = Table(
    "packages",
    metadata,
    _seq(),
    _id("package_id", unique=True),
    _id("account_id"),
    Column("group", String(256), nullable=False),
    _int("version"),
    Column("kind", String(32), nullable=False),
    _text("path"),
    Column("sha256", String(64), nullable=False),
    _text("base_model"),
    _id("job_id"),
    _int("step"),
    _time("created_at"),
    _json("metadata", dict[str, Any]),
    _time("pruned_at", nullable=True),
    _time("deleted_at", nullable=True),
    UniqueConstraint("account_id", "group", "version"),
    sqlite_autoincrement=True,
)

resources = Table(
    "resources",
    metadata,
    _seq(),
    _id("account_id"),
    Column("kind", String(32), nullable=False),
    Column("name", String(256), nullable=False),
    _json("body", dict[str, Any]),
    _time("created_at"),
    _time("updated_at"),
    UniqueConstraint("account_id", "kind", "name"),
    sqlite_autoincrement=True,
)


def _digest(name: str) -> Column[Any]:
    return Column(name, String(64), nullable=False)


def _position(name: str, **options: Any) -> Column[Any]:
    """A place in an account's audit trail."""
    return Column(name, BigInteger, nullable=False, **options)


audit_records = Table(
    "audit_records",
    metadata,
    _id("account_id", primary_key=True),
    _position("seq", primary_key=True, autoincrement=False),
    _time("at"),
    _word("category", Category),
    Column("source", String(128), nullable=False),
    Column("name", String(128), nullable=False),
    _text("user_name"),
    _id("access_key_id"),
    _id("event_id"),
    Column("read_only", Boolean, nullable=False),
    _json("resources", tuple[str, ...]),
    _json("resource_types", tuple[str, ...]),
    _text("body"),
    _digest("digest"),
    Index(None, "account_id", "category", "seq"),
    Index(None, "account_id", "name", "seq"),
)

audit_segments = Table(
    "audit_segments",
    metadata,
    _id("account_id", primary_key=True),
    _position("first_seq", primary_key=True, autoincrement=False),
    _position("last_seq"),
    _time("last_at"),
    _digest("previous"),
    _digest("digest"),
    _digest("seal"),
    _time("dropped_at", nullable=True),
)

audit_heads = Table(
    "audit_heads",
    metadata,
    _id("account_id", primary_key=True),
    _position("last_seq"),
    _time("last_at"),
    _digest("digest"),
    _digest("seal"),
    _position("open_seq"),
    _time("open_at"),
    _digest("open_digest"),
)

#: A key is kept as its bytes, which is the order of a listing. `blob` names the content's file.
objects = Table(
    "objects",
    metadata,
    _id("account_id", primary_key=True),
    _id("bucket", primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    _id("blob"),
    Column("size", BigInteger, nullable=False),
    Column("etag", String(64), nullable=False),
    _time("modified"),
    _text("content_type"),
    _json("metadata", dict[str, str]),
    _json("headers", dict[str, str]),
)

uploads = Table(
    "uploads",
    metadata,
    _id("account_id", primary_key=True),
    _id("upload_id", primary_key=True),
    _id("bucket"),
    Column("key", LargeBinary, nullable=False),
    _time("started_at"),
    _text("content_type"),
    _json("metadata", dict[str, str]),
    _json("headers", dict[str, str]),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    _id("account_id", primary_key=True),
    _id("upload_id", primary_key=True),
    _int("number", primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("etag", String(64), nullable=False),
    _time("modified"),
    _id("blob"),
)

agent_logs = Table(
    "agent_logs",
    metadata,
    _seq(),
    _id("account_id"),
    _id("agent"),
    _time("at"),
    _word("kind", AgentLogKind),
    _text("text"),
    _id("rollout_id"),
    _id("job_id"),
    Column("stream", Text, nullable=False, server_default=""),
    Index(None, "account_id", "agent", "seq"),
    sqlite_autoincrement=True,
)

traced_calls = Table(
    "traced_calls",
    metadata,
    _seq(),
    _id("account_id"),
    _id("call_id"),
    _json("tags", tuple[str, ...]),
    _time("at"),
    _time("started_at"),
    _text("model"),
    _json("messages", tuple[Message, ...]),
    _json("tools", tuple[Mapping[str, Any], ...]),
    _json("reply", Message),
    _word("finish_reason", FinishReason),
    Column("prompt", Array(INT32), nullable=False),
    Column("completion", Array(INT32), nullable=False),
    Column("logprobs", Array(FLOAT32), nullable=False),
    Index(None, "account_id", "seq"),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

traced_logs = Table(
    "traced_logs",
    metadata,
    _seq(),
    _id("account_id"),
    _json("tags", tuple[str, ...]),
    _time("at"),
    Column("program", String(128), nullable=False),
    _text("message"),
    Column("severity", String(32), nullable=False),
    Column("status_code", BigInteger),
    _json("status", Mapping[str, Any], nullable=True),
    _json("extras", Mapping[str, Any], nullable=True),
    Index(None, "account_id", "seq"),
    Index(None, "at"),
    sqlite_autoincrement=True,
)

trace_tags = Table(
    "trace_tags",
    metadata,
    _id("account_id", primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("tag", String(256), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
)
