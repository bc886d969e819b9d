"""Nouns as rows and back. A column has the name of the field that it stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select, Table, select

from turnwise.domain.access import Account, Key
from turnwise.domain.agent import AgentLogEntry
from turnwise.domain.audit import AuditHead, AuditRecord, AuditSegment
from turnwise.domain.event import Event
from turnwise.domain.job import Job
from turnwise.domain.resource import Resource
from turnwise.domain.rollout import Group, Node, Rollout, Turn
from turnwise.domain.traced import TracedCall, TracedLog
from turnwise.domain.training import Checkpoint
from turnwise.ports import ModelPackage
from turnwise.storage import tables

N = TypeVar(
    "N",
    Account,
    Key,
    Job,
    Event,
    Group,
    Rollout,
    Node,
    Turn,
    Checkpoint,
    ModelPackage,
    Resource,
    AuditRecord,
    AuditSegment,
    AuditHead,
    AgentLogEntry,
    TracedCall,
    TracedLog,
)

TABLES: dict[type[Any], Table] = {
    Account: tables.accounts,
    Key: tables.keys,
    Job: tables.jobs,
    Event: tables.events,
    Group: tables.groups,
    Rollout: tables.rollouts,
    Node: tables.nodes,
    Turn: tables.turns,
    Checkpoint: tables.checkpoints,
    ModelPackage: tables.packages,
    Resource: tables.resources,
    AuditRecord: tables.audit_records,
    AuditSegment: tables.audit_segments,
    AuditHead: tables.audit_heads,
    AgentLogEntry: tables.agent_logs,
    TracedCall: tables.traced_calls,
    TracedLog: tables.traced_logs,
}


_NAMES = {
    kind: tuple(f.name for f in fields(kind) if f.metadata.get("stored", True)) for kind in TABLES
}


def to_row(noun: Any, **more: Any) -> dict[str, Any]:
    """A noun's fields by column, and the columns that the noun does not carry."""
    return {name: getattr(noun, name) for name in _NAMES[type(noun)]} | more


def select_nouns(kind: type[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
    """The columns that make nouns of that kind, where the conditions hold."""
    table = TABLES[kind]
    return select(*(table.c[name] for name in _NAMES[kind])).where(*conditions)


def from_row(kind: type[N], row: Row[Any]) -> N:
    """The noun in the first columns of a row, as `select_nouns` orders them."""
    return kind(**dict(zip(_NAMES[kind], row, strict=False)))


def from_rows(kind: type[N], rows: Sequence[Row[Any]]) -> list[N]:
    """The noun of each row."""
    return [from_row(kind, row) for row in rows]
