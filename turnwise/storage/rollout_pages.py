"""Reading many rollouts: pages, histograms, tallies, samples. Functions on an open connection.

What is asked for is found in an index that holds all that rollouts are filtered by (`tables`);
only the rows of the page itself are read. SQLite is told which index, for it keeps no statistics
and would otherwise take one that seems to fit better and reads every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    func,
    select,
    tuple_,
)

from turnwise.domain.rollout import Purpose, Rollout, RolloutStatus
from turnwise.ports import (
    Histogram,
    RolloutCursor,
    RolloutQuery,
    RolloutSort,
    RolloutSummary,
    Tally,
)
from turnwise.storage import transcripts as transcripts_of
from turnwise.storage.bins import edges_for
from turnwise.storage.rows import from_row, select_nouns
from turnwise.storage.tables import groups, jobs, rollouts

S = TypeVar("S", bound=Select[Any])

# So many rollouts that say a text are looked at before all of the job's are.
_NEAR = 1000

_FINAL = (RolloutStatus.REWARDED, RolloutStatus.FAILED)

_HAS_REWARD = rollouts.c.reward.is_not(None)
_HAS_NO_REWARD = rollouts.c.reward.is_(None)
_HAS_ENDED = rollouts.c.duration.is_not(None)
_IS_OPEN = rollouts.c.duration.is_(None)


def page(connection: Connection, account_id: str, query: RolloutQuery) -> list[RolloutSummary]:
    """One page, by keyset."""
    if not _has(connection, account_id, query.job_id):
        return []
    filters = [*_filters(query), *_in_range(query)]
    found = _near(connection, query, filters)
    if len(found) < query.limit:
        found = []
        for part in _parts(query, [*filters, *_says(query, connection.dialect)]):
            rest = query.limit - len(found)
            if rest > 0:
                found += connection.execute(part.limit(rest)).scalars()
    return _summaries(connection, found)


def _near(
    connection: Connection, query: RolloutQuery, filters: Sequence[ColumnElement[bool]]
) -> list[int]:
    """What the next few rollouts that say the text have for the page: often all of it.

    Without a bound, all rollouts of the job that have a common word would be gathered first.
    """
    if not query.text or query.sort is not RolloutSort.SEQ:
        return []
    said = transcripts_of.matching(query.job_id, query.text, connection.dialect)
    (seq,) = said.selected_columns
    nearest = _ordered(_past(said, query, seq, query.after), query, seq).limit(_NEAR)
    wanted = _by_seq(query, [*filters, rollouts.c.seq.in_(nearest)], query.after)
    return list(connection.execute(wanted.limit(query.limit)).scalars())


def _parts(query: RolloutQuery, filters: Sequence[ColumnElement[bool]]) -> Iterator[Select[Any]]:
    """The statements whose rows, one's behind the other's, are what is left of the list."""
    after = query.after
    if query.sort is not RolloutSort.SEQ:
        if after is None or after.value is not None:
            yield _ranked(query, filters, after)
            after = None
        is_unranked = _HAS_NO_REWARD if query.sort is RolloutSort.REWARD else _IS_OPEN
        filters = [*filters, is_unranked]
    yield _by_seq(query, filters, after)


def _ranked(
    query: RolloutQuery, filters: Sequence[ColumnElement[bool]], after: RolloutCursor | None
) -> Select[Any]:
    """Rollouts with a value of the sort key, by it."""
    key = rollouts.c[query.sort.value]
    is_ranked = _HAS_REWARD if query.sort is RolloutSort.REWARD else _HAS_ENDED
    wanted = _seqs(query, f"ix_rollouts_{query.sort.value}").where(is_ranked, *filters)
    if after is not None:
        place, behind = tuple_(key, rollouts.c.seq), (after.value, after.seq)
        wanted = wanted.where(place < behind if query.descending else place > behind)
    return _ordered(wanted, query, key, rollouts.c.seq)


def _by_seq(
    query: RolloutQuery, filters: Sequence[ColumnElement[bool]], after: RolloutCursor | None
) -> Select[Any]:
    seq = rollouts.c.seq
    wanted = _seqs(query, "ix_rollouts_seq").where(*filters)
    return _ordered(_past(wanted, query, seq, after), query, seq)


def _past(
    wanted: Select[Any], query: RolloutQuery, seq: Any, after: RolloutCursor | None
) -> Select[Any]:
    if after is None:
        return wanted
    return wanted.where(seq < after.seq if query.descending else seq > after.seq)


def _ordered(wanted: Select[Any], query: RolloutQuery, *keys: Any) -> Select[Any]:
    return wanted.order_by(*(key.desc() if query.descending else key for key in keys))


def _seqs(query: RolloutQuery, index: str) -> Select[Any]:
    return _of_job(select(rollouts.c.seq), query, index)


def _of_job(wanted: S, query: RolloutQuery, index: str) -> S:
    if query.group_id is None and query.trained_step is None:
        return _using(wanted, index).where(rollouts.c.job_id == query.job_id)
    # Siblings are few, and found by their group's index once no other seems to fit.
    wanted = wanted.where(func.coalesce(rollouts.c.job_id, "") == query.job_id)
    if query.group_id is not None:
        wanted = wanted.where(rollouts.c.group_id == query.group_id)
    if query.trained_step is not None:
        wanted = wanted.where(_taken_by(query.job_id, query.trained_step))
    return wanted


def _taken_by(job_id: str, step: int) -> ColumnElement[bool]:
    its_groups = select(groups.c.group_id).where(groups.c.job_id == job_id, groups.c.step == step)
    return rollouts.c.group_id.in_(its_groups)


def _using(wanted: S, index: str) -> S:
    return wanted.with_hint(rollouts, f"INDEXED BY {index}", "sqlite")


def _says(query: RolloutQuery, dialect: Dialect) -> list[ColumnElement[bool]]:
    if not query.text:
        return []
    return [rollouts.c.seq.in_(transcripts_of.matching(query.job_id, query.text, dialect))]


def _filters(query: RolloutQuery) -> list[ColumnElement[bool]]:
    """All of a query's conditions but the range of rewards and the text."""
    columns = rollouts.c
    equal = {
        columns.step: query.step,
        columns.purpose: query.purpose,
        columns.status: query.status,
        columns.row_index: query.row_index,
        columns.fault_code: query.fault_code,
    }
    found = [column == value for column, value in equal.items() if value is not None]
    if query.is_valid is not None:
        found.append(_valid() if query.is_valid else _invalid())
    return found


def _valid() -> ColumnElement[bool]:
    return and_(rollouts.c.status == RolloutStatus.REWARDED, rollouts.c.reward.is_not(None))


def _invalid() -> ColumnElement[bool]:
    return and_(
        rollouts.c.status.in_(_FINAL),
        (rollouts.c.status == RolloutStatus.FAILED) | rollouts.c.reward.is_(None),
    )


def _in_range(query: RolloutQuery) -> list[ColumnElement[bool]]:
    found = []
    if query.reward_ge is not None:
        found.append(rollouts.c.reward >= query.reward_ge)
    if query.reward_lt is not None:
        found.append(rollouts.c.reward < query.reward_lt)
    return found


def _summaries(connection: Connection, seqs: Sequence[int]) -> list[RolloutSummary]:
    """The rollouts of these numbers, in this order."""
    columns = rollouts.c
    wanted = select_nouns(Rollout, columns.seq.in_(seqs))
    rows = connection.execute(wanted.add_columns(columns.seq, columns.turns, columns.tokens))
    found = {
        row.seq: RolloutSummary(
            seq=row.seq, rollout=from_row(Rollout, row), turns=row.turns, tokens=row.tokens
        )
        for row in rows
    }
    return [found[seq] for seq in seqs if seq in found]


def _has(connection: Connection, account_id: str, job_id: str) -> bool:
    its = select(jobs.c.seq).where(jobs.c.job_id == job_id, jobs.c.account_id == account_id)
    return connection.execute(its).first() is not None


# ── counts ────────────────────────────────────────────────────────────────────────────────────


def histogram(connection: Connection, account_id: str, query: RolloutQuery, bins: int) -> Histogram:
    """Rewards of what the query's filters let through, and how many have none."""
    if not _has(connection, account_id, query.job_id):
        return Histogram(edges=(), counts=(), unscored=0)
    filters = [*_filters(query), *_says(query, connection.dialect)]
    scored = [_HAS_REWARD, *filters]
    everything = _of_job(select(func.count()).select_from(rollouts), query, "ix_rollouts_seq")
    total = connection.execute(everything.where(*filters)).scalar_one()
    reward = rollouts.c.reward
    its = _of_job(select(reward), query, "ix_rollouts_reward").where(*scored).limit(1)
    lowest = connection.execute(its.order_by(reward)).scalar()
    if lowest is None:
        return Histogram(edges=(), counts=(), unscored=total)
    highest = connection.execute(its.order_by(reward.desc())).scalar_one()
    edges = edges_for(lowest, highest, bins)
    in_bin = (reward >= bindparam("low"), reward < bindparam("high"))
    counted = _of_job(select(func.count()).select_from(rollouts), query, "ix_rollouts_reward")
    counted = counted.where(*scored, *in_bin)
    counts = [
        connection.execute(counted, {"low": low, "high": high}).scalar_one()
        for low, high in pairwise(edges)
    ]
    return Histogram(edges=edges, counts=tuple(counts), unscored=total - sum(counts))


def tally(connection: Connection, account_id: str, job_id: str) -> list[Tally]:
    """By step, purpose, status and fault: one pass over an index that holds nothing else."""
    if not _has(connection, account_id, job_id):
        return []
    keys = [rollouts.c[name] for name in ("step", "purpose", "status", "fault_code")]
    counted = select(*keys, func.count().label("rollouts")).where(rollouts.c.job_id == job_id)
    grouped = _using(counted, "ix_rollouts_tally").group_by(*keys).order_by(*keys)
    return [
        Tally(
            step=row.step,
            purpose=row.purpose,
            status=row.status,
            fault_code=row.fault_code,
            count=row.rollouts,
        )
        for row in connection.execute(grouped)
    ]


#: The order of a sample: two steps of a generator modulo this prime, from a rollout's number.
_PRIME = 2**31 - 1
_FACTOR = 48271


def sample(
    connection: Connection,
    account_id: str,
    job_id: str,
    step: int,
    purpose: Purpose,
    count: int,
    seed: int,
    *,
    is_trained: bool = False,
) -> list[RolloutSummary]:
    """Ended rollouts of a step, or that a step took, whose numbers a seed puts first."""
    if not _has(connection, account_id, job_id):
        return []
    seq = rollouts.c.seq
    mixed = (seq * _FACTOR + cast(seed * _FACTOR % _PRIME, Integer)) % _PRIME
    wanted = select(seq).where(rollouts.c.purpose == purpose, rollouts.c.status.in_(_FINAL))
    if is_trained:
        its_job = func.coalesce(rollouts.c.job_id, "") == job_id
        wanted = wanted.where(its_job, _taken_by(job_id, step))
    else:
        wanted = wanted.where(rollouts.c.job_id == job_id, rollouts.c.step == step)
        wanted = _using(wanted, "ix_rollouts_tally")
    wanted = wanted.order_by(mixed * mixed % _PRIME, seq)
    return _summaries(connection, list(connection.execute(wanted.limit(count)).scalars()))
