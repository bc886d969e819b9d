"""What rollouts say: excerpts for a list, and the words of ended ones to search for.

Functions on an open connection. A rollout becomes searchable some time after it has ended, in small
pieces of work that the writer does while nothing else waits (`work`). What is still to do stands in
the database: in a rollout's `is_searchable` and in `deleted_jobs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Dialect,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)

from turnwise import errors
from turnwise.domain.rollout import Message, NodeKind
from turnwise.ports import EXCERPT, Excerpt
from turnwise.storage.tables import ENDED, deleted_jobs, nodes, rollouts, transcripts

#: Of one rollout, so many characters are searched.
MAX_CHARS = 200_000
#: Words and phrases in one search.
MAX_WORDS = 32

# ── messages as text ──────────────────────────────────────────────────────────────────────────


def _content(message: Message) -> str:
    """A message's text, whether it comes as such or in parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(each for each in texts if isinstance(each, str))


def _calls(message: Message) -> Iterator[str]:
    """The calls of tools in a message: "name(arguments)"."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, Sequence) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield f"{function.get('name', '')}({function.get('arguments', '')})"


def _said(message: Message) -> Iterator[str]:
    for each in (message.get("reasoning_content"), _content(message), *_calls(message)):
        if isinstance(each, str) and each:
            yield each


# ── excerpts ──────────────────────────────────────────────────────────────────────────────────


def excerpts(
    connection: Connection, account_id: str, rollout_ids: Sequence[str]
) -> dict[str, Excerpt]:
    """By rollout id; one statement."""
    later = nodes.alias()
    last = (
        select(func.max(later.c.node_id))
        .where(later.c.rollout_id == nodes.c.rollout_id, later.c.kind == NodeKind.COMPLETION)
        .scalar_subquery()
    )
    columns = (nodes.c.rollout_id, nodes.c.node_id, nodes.c.messages)
    wanted = select(*columns).where(
        nodes.c.account_id == account_id,
        nodes.c.rollout_id.in_(rollout_ids),
        or_(nodes.c.node_id == 0, nodes.c.node_id == last),
    )
    asked: dict[str, str] = {}
    replied: dict[str, str] = {}
    for rollout_id, node_id, messages in connection.execute(wanted):
        if node_id == 0:
            asked[rollout_id] = _asked(messages)
        else:
            replied[rollout_id] = "\n".join([_content(messages[-1]), *_calls(messages[-1])])
    return {
        rollout_id: Excerpt(
            prompt=prompt.strip()[:EXCERPT], reply=replied.get(rollout_id, "").strip()[:EXCERPT]
        )
        for rollout_id, prompt in asked.items()
    }


def _asked(messages: Sequence[Message]) -> str:
    by_user = [_content(each) for each in messages if each.get("role") == "user"]
    return by_user[-1] if by_user else ""


# ── search ────────────────────────────────────────────────────────────────────────────────────

_PIECE = re.compile(r'"([^"]*)"?|([^\s"]+)')


def pieces(typed: str) -> list[str]:
    """The words and "phrases" that a person typed, without those that have no letter or digit.

    Raises `InvalidInput` where there are none, or too many.

    >>> pieces('valve "open by hand" -- pump_2')
    ['valve', 'open by hand', 'pump_2']
    """
    found = [(phrase or word).replace("\0", " ") for phrase, word in _PIECE.findall(typed)]
    found = [each for each in found if any(map(str.isalnum, each))]
    if not found:
        raise errors.InvalidInput("text", typed, "has no word", remedy="give a word to search for")
    if len(found) > MAX_WORDS:
        reason = f"has {len(found)} words and phrases"
        raise errors.InvalidInput("text", typed, reason, remedy=f"use {MAX_WORDS} at most")
    return found


def matching(job_id: str, typed: str, dialect: Dialect) -> Select[Any]:
    """The numbers of the rollouts of a job in which all that was typed is found."""
    wanted = pieces(typed)
    if dialect.name == "sqlite":
        table = text("search_index")
        rowid = literal_column("search_index.rowid", Integer)
        match = " AND ".join([f'job:"{_term(job_id)}"', *(f'text:"{each}"' for each in wanted)])
        found = text("search_index MATCH :words").bindparams(words=match)
        return select(rowid).select_from(table).where(found)
    vector = func.to_tsvector(literal_column("'simple'"), transcripts.c.text)
    phrases = [func.phraseto_tsquery(literal_column("'simple'"), each) for each in wanted]
    found_in = and_(*(vector.bool_op("@@")(phrase) for phrase in phrases))
    return select(transcripts.c.seq).where(transcripts.c.job_id == job_id, found_in)


def _term(job_id: str) -> str:
    """A job's id as one word, whatever is in it."""
    return "j" + job_id.encode().hex()


# ── making searchable ─────────────────────────────────────────────────────────────────────────

_WAITING = (
    select(rollouts.c.seq, rollouts.c.rollout_id, rollouts.c.account_id, rollouts.c.job_id)
    .where(text(f"{ENDED} AND NOT is_searchable"))
    .with_hint(rollouts, "INDEXED BY ix_rollouts_unsearchable", "sqlite")
    .order_by(rollouts.c.seq)
    .limit(bindparam("most"))
)
_DONE = update(rollouts).where(rollouts.c.seq == bindparam("its_seq")).values(is_searchable=True)
_ADD = text("INSERT INTO search_index (rowid, job, text) VALUES (:seq, :job, :text)")
_REMOVE = text(
    "INSERT INTO search_index (search_index, rowid, job, text) VALUES ('delete', :seq, :job, :text)"
)


def work(connection: Connection, most: int) -> bool:
    """Take up at most `most` ended rollouts or deleted transcripts; whether any were left."""
    return _add(connection, most) or _remove(connection, most)


def _add(connection: Connection, most: int) -> bool:
    waiting = connection.execute(_WAITING, {"most": most}).all()
    if not waiting:
        return False
    said = _texts(connection, [row.rollout_id for row in waiting])
    added = [
        {
            "seq": row.seq,
            "account_id": row.account_id,
            "job_id": row.job_id,
            "text": said.get(row.rollout_id, ""),
        }
        for row in waiting
    ]
    connection.execute(transcripts.insert(), added)
    if connection.dialect.name == "sqlite":
        connection.execute(_ADD, [_indexed(row) for row in added])
    connection.execute(_DONE, [{"its_seq": row.seq} for row in waiting])
    return True


def _texts(connection: Connection, rollout_ids: Sequence[str]) -> dict[str, str]:
    """All that was said in each of these rollouts, once."""
    query = select(nodes.c.rollout_id, nodes.c.messages).where(nodes.c.rollout_id.in_(rollout_ids))
    found: dict[str, list[str]] = {}
    for rollout_id, messages in connection.execute(query.order_by(nodes.c.node_id)):
        found.setdefault(rollout_id, []).extend(
            each for message in messages for each in _said(message)
        )
    return {name: _storable("\n".join(said)[:MAX_CHARS]) for name, said in found.items()}


def _storable(said: str) -> str:
    return said.replace("\0", " ").encode("utf-8", "replace").decode()


def _indexed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"seq": row["seq"], "job": _term(row["job_id"]), "text": row["text"]}


def _remove(connection: Connection, most: int) -> bool:
    deleted = select(deleted_jobs.c.job_id, deleted_jobs.c.last_seq).limit(1)
    job = connection.execute(deleted).first()
    if job is None:
        return False
    columns = transcripts.c
    its = select(columns.seq, columns.job_id, columns.text).where(
        columns.job_id == job.job_id, columns.seq <= job.last_seq
    )
    rows = [dict(row._mapping) for row in connection.execute(its.order_by(columns.seq).limit(most))]
    if rows and connection.dialect.name == "sqlite":
        connection.execute(_REMOVE, [_indexed(row) for row in rows])
    if rows:
        gone = [row["seq"] for row in rows]
        connection.execute(delete(transcripts).where(columns.seq.in_(gone)))
    else:
        connection.execute(delete(deleted_jobs).where(deleted_jobs.c.job_id == job.job_id))
    return True


def forget(connection: Connection, account_id: str, job_id: str) -> None:
    """Have the transcripts of a job removed, whose rollouts are about to be."""
    newest = select(func.max(rollouts.c.seq)).where(rollouts.c.job_id == job_id)
    last_seq = connection.execute(newest).scalar()
    if last_seq is None:
        return
    connection.execute(delete(deleted_jobs).where(deleted_jobs.c.job_id == job_id))
    connection.execute(
        deleted_jobs.insert(), {"job_id": job_id, "account_id": account_id, "last_seq": last_seq}
    )
