"""Turns and the graphs they make: functions on an open connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, and_, bindparam, select, update

from turnwise import errors
from turnwise.domain.rollout import Delivery, Node, Rollout, RolloutStatus, Trajectory, Turn
from turnwise.storage.rollouts import find
from turnwise.storage.rows import from_row, from_rows, select_nouns
from turnwise.storage.tables import FLOAT32, INT32, nodes, rollouts, to_bytes, to_json, turns


class CommitTurn:
    """The hottest write, with its three statements compiled once for the database at hand.

    Values go to the driver as they are, past SQLAlchemy's per-call work, which was measured to
    be most of the cost of a turn.
    """

    def __init__(self, dialect: Dialect) -> None:
        counted = (
            update(rollouts)
            .where(
                rollouts.c.rollout_id == bindparam("its_id"),
                rollouts.c.account_id == bindparam("its_account"),
                rollouts.c.status == bindparam("pending"),
            )
            .values(
                turns=rollouts.c.turns + bindparam("more_turns"),
                tokens=rollouts.c.tokens + bindparam("more_tokens"),
            )
        )
        self._count = str(counted.compile(dialect=dialect))
        self._add_node = str(nodes.insert().compile(dialect=dialect))
        self._add_turn = str(turns.insert().compile(dialect=dialect))

    def __call__(
        self,
        connection: Connection,
        account_id: str,
        rollout_id: str,
        added: Sequence[Node],
        turn: Turn,
    ) -> None:
        """Insert a turn and the nodes it adds; `Conflict` unless the rollout is PENDING."""
        counted = connection.exec_driver_sql(
            self._count,
            {
                "its_id": rollout_id,
                "its_account": account_id,
                "pending": RolloutStatus.PENDING.value,
                "more_turns": int(turn.is_delivered),
                "more_tokens": turn.sampled_tokens,
            },
        )
        if counted.rowcount != 1:
            status = find(connection, rollout_id, account_id).status.value
            raise errors.NotInValidStatus(
                f"rollout {rollout_id!r} is {status}: it takes no more turns"
            )
        if added:
            rows = [_node_row(account_id, rollout_id, node) for node in added]
            connection.exec_driver_sql(self._add_node, rows)
        connection.exec_driver_sql(self._add_turn, _turn_row(account_id, rollout_id, turn))


def mark_undelivered(
    connection: Connection, account_id: str, rollout_id: str, turn_id: str
) -> None:
    """Take a turn out of those that count; `NotFound`."""
    its = and_(
        turns.c.account_id == account_id,
        turns.c.rollout_id == rollout_id,
        turns.c.turn_id == turn_id,
    )
    delivery = connection.execute(select(turns.c.delivery).where(its)).scalar_one_or_none()
    if delivery is None:
        raise errors.NotFound("turn", turn_id)
    if delivery is Delivery.DELIVERED:
        connection.execute(update(turns).where(its).values(delivery=Delivery.UNDELIVERED))
        connection.execute(
            update(rollouts)
            .where(rollouts.c.rollout_id == rollout_id)
            .values(turns=rollouts.c.turns - 1)
        )


def trajectory(connection: Connection, account_id: str, rollout_id: str) -> Trajectory:
    """A rollout with all nodes and turns."""
    return _with_turns(connection, [find(connection, rollout_id, account_id)])[0]


def of_group(connection: Connection, account_id: str, group_id: str) -> list[Trajectory]:
    """Every attempt of the group, by (slot, attempt)."""
    query = select_nouns(
        Rollout, rollouts.c.account_id == account_id, rollouts.c.group_id == group_id
    ).order_by(rollouts.c.slot, rollouts.c.attempt)
    return _with_turns(connection, from_rows(Rollout, connection.execute(query).all()))


def _with_turns(connection: Connection, found: Sequence[Rollout]) -> list[Trajectory]:
    ids = [rollout.rollout_id for rollout in found]
    their_nodes: dict[str, list[Node]] = defaultdict(list)
    query = select_nouns(Node, nodes.c.rollout_id.in_(ids)).order_by(nodes.c.node_id)
    for row in connection.execute(query.add_columns(nodes.c.rollout_id)):
        their_nodes[row.rollout_id].append(from_row(Node, row))
    their_turns: dict[str, list[Turn]] = defaultdict(list)
    query = select_nouns(Turn, turns.c.rollout_id.in_(ids)).order_by(turns.c.index)
    for row in connection.execute(query.add_columns(turns.c.rollout_id)):
        their_turns[row.rollout_id].append(from_row(Turn, row))
    return [
        Trajectory(
            rollout=rollout,
            nodes=tuple(their_nodes[rollout.rollout_id]),
            turns=tuple(their_turns[rollout.rollout_id]),
        )
        for rollout in found
    ]


def _node_row(account_id: str, rollout_id: str, node: Node) -> dict[str, Any]:
    return {
        "rollout_id": rollout_id,
        "account_id": account_id,
        "node_id": node.node_id,
        "parent": node.parent,
        "kind": node.kind.value,
        "messages": to_json(node.messages),
        "tokens": to_bytes(node.tokens, INT32),
        "logprobs": None if node.logprobs is None else to_bytes(node.logprobs, FLOAT32),
        "tools_sha256": node.tools_sha256,
        "tools": to_json(node.tools),
        "fork_cause": None if node.fork_cause is None else node.fork_cause.value,
    }


def _turn_row(account_id: str, rollout_id: str, turn: Turn) -> dict[str, Any]:
    return {
        "rollout_id": rollout_id,
        "account_id": account_id,
        "index": turn.index,
        "turn_id": turn.turn_id,
        "leaf": turn.leaf,
        "policy": to_json(turn.policy),
        "sampling": to_json(turn.sampling),
        "seed": str(turn.seed),
        "finish_reason": turn.finish_reason.value,
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
        "request_sha256": turn.request_sha256,
        "delivery": turn.delivery.value,
        "started_at": turn.started_at,
        "ended_at": turn.ended_at,
        "cached_tokens": turn.cached_tokens,
        "past_stop_tokens": turn.past_stop_tokens,
    }
