"""What lists are filtered and ordered by, in columns and indexes; and transcripts to search.

Rollouts of before are made searchable by and by, as those that end from now on.
"""

import json
import math
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "pages"
down_revision = "audit"
branch_labels = None
depends_on = None

_FILTERS = ["step", "purpose", "status", "row_index", "fault_code"]
_ENDED = "duration IS NOT NULL"
_BATCH = 10_000


def upgrade() -> None:
    _jobs()
    _events()
    _rollouts()
    _transcripts()


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def _json_value(column: str, name: str, sql_type: str) -> str:
    """A member of a JSON text, in the dialect at hand."""
    if op.get_bind().dialect.name == "sqlite":
        return f"json_extract({column}, '$.{name}')"
    return f"CAST(CAST({column} AS json) ->> '{name}' AS {sql_type})"


# ── jobs ──────────────────────────────────────────────────────────────────────────────────────


def _jobs() -> None:
    for name in ("kind", "model", "output_group", "description"):
        kind = sa.String(32) if name == "kind" else sa.Text()
        op.add_column("jobs", sa.Column(name, kind, server_default="", nullable=False))
    for name in ("priority", "max_steps"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("latest_reward", sa.Double(), nullable=True))
    bind = op.get_bind()
    for job_id, text in bind.execute(sa.text("SELECT job_id, spec FROM jobs")).all():
        spec = json.loads(text)
        shown = {
            "kind": spec.get("kind", "train"),
            "model": spec["model"],
            "output_group": spec.get("output_group") or spec["name"],
            "description": spec.get("description", ""),
            "priority": spec.get("priority", 0),
            "max_steps": spec.get("schedule", {}).get("max_steps", 50),
            "latest_reward": _latest_reward(job_id),
        }
        values = ", ".join(f"{name} = :{name}" for name in shown)
        bind.execute(
            sa.text(f"UPDATE jobs SET {values} WHERE job_id = :job_id"), shown | {"job_id": job_id}
        )
    op.create_index("ix_jobs_status", "jobs", ["status", "seq"])
    op.create_index(
        "ix_jobs_page", "jobs", ["account_id", "seq", "status", "kind", "name", "job_id"]
    )


def _latest_reward(job_id: str) -> float | None:
    newest = sa.text(
        "SELECT body FROM events WHERE job_id = :job_id AND kind = 'metrics'"
        " AND body LIKE '%rollout/reward/mean%' ORDER BY seq DESC LIMIT 1"
    )
    body = op.get_bind().execute(newest, {"job_id": job_id}).scalar()
    return None if body is None else json.loads(body)["values"]["rollout/reward/mean"]


# ── events ────────────────────────────────────────────────────────────────────────────────────


def _events() -> None:
    op.add_column("events", sa.Column("rollout_id", sa.String(64), nullable=True))
    op.add_column("events", sa.Column("step", sa.Integer(), nullable=True))
    op.execute(
        f"UPDATE events SET rollout_id = {_json_value('body', 'rollout_id', 'varchar')},"
        f" step = {_json_value('body', 'step', 'integer')}"
    )
    op.create_index("ix_events_kind", "events", ["job_id", "kind", "seq"])
    op.create_index("ix_events_level", "events", ["job_id", "level", "seq"])
    for name, column in (("ix_events_rollout", "rollout_id"), ("ix_events_step", "step")):
        op.create_index(
            name, "events", ["job_id", column, "seq"], **_where(f"{column} IS NOT NULL")
        )


# ── rollouts ──────────────────────────────────────────────────────────────────────────────────


def _rollouts() -> None:
    op.add_column("rollouts", sa.Column("reward", sa.Double(), nullable=True))
    op.add_column("rollouts", sa.Column("fault_code", sa.Text(), nullable=True))
    op.add_column("rollouts", sa.Column("duration", sa.Double(), nullable=True))
    op.add_column(
        "rollouts",
        sa.Column("is_searchable", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.execute("UPDATE rollouts SET duration = ended_at - created_at")
    op.execute(
        f"UPDATE rollouts SET fault_code = {_json_value('fault', 'code', 'varchar')}"
        " WHERE fault IS NOT NULL"
    )
    _keep_rewards()
    for columns in (["seq"], ["status", "seq"], ["step", "seq"]):
        op.drop_index(op.f("ix_rollouts_job_id_" + "_".join(columns)), "rollouts")
    op.create_index(
        "ix_rollouts_seq", "rollouts", ["job_id", "seq", *_FILTERS, "reward", "duration"]
    )
    op.create_index(
        "ix_rollouts_tally", "rollouts", ["job_id", "step", "purpose", "status", "fault_code"]
    )
    op.create_index(
        "ix_rollouts_reward",
        "rollouts",
        ["job_id", "reward", "seq", *_FILTERS],
        **_where("reward IS NOT NULL"),
    )
    for key in ("turns", "tokens", "duration"):
        columns = ["job_id", key, "seq", *_FILTERS, "reward"]
        op.create_index(f"ix_rollouts_{key}", "rollouts", columns, **_where(_ENDED))
    op.create_index(
        "ix_rollouts_unsearchable",
        "rollouts",
        ["seq"],
        **_where(f"{_ENDED} AND NOT is_searchable"),
    )


def _keep_rewards() -> None:
    """The sum of each rollout's rewards, rounded as `Rollout.reward` rounds it."""
    bind, after = op.get_bind(), 0
    some = sa.text(
        "SELECT seq, rewards FROM rollouts WHERE seq > :after AND rewards IS NOT NULL"
        f" ORDER BY seq LIMIT {_BATCH}"
    )
    keep = sa.text("UPDATE rollouts SET reward = :reward WHERE seq = :seq")
    while rows := bind.execute(some, {"after": after}).all():
        after = rows[-1].seq
        sums = [{"seq": seq, "reward": math.fsum(json.loads(rewards))} for seq, rewards in rows]
        bind.execute(keep, sums)


# ── transcripts ───────────────────────────────────────────────────────────────────────────────


def _transcripts() -> None:
    op.create_table(
        "transcripts",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_transcripts")),
    )
    op.create_index(op.f("ix_transcripts_job_id_seq"), "transcripts", ["job_id", "seq"])
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_deleted_jobs")),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE search_index USING fts5(job, text, content='')")
    else:
        op.execute(
            "CREATE INDEX search_index ON transcripts USING gin (to_tsvector('simple', text))"
        )
