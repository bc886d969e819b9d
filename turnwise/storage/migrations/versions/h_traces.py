"""What remote rollouts leave at the tracing gateway: calls, log entries, and the tags of both."""

import sqlalchemy as sa
from alembic import op

revision = "traces"
down_revision = "tools"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "traced_calls",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("call_id", sa.String(64), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("messages", sa.Text(), nullable=False),
        sa.Column("tools", sa.Text(), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.String(32), nullable=False),
        sa.Column("prompt", sa.LargeBinary(), nullable=False),
        sa.Column("completion", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_traced_calls")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "traced_logs",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("program", sa.String(128), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("severity", sa.String(32), nullable=False),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("extras", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_traced_logs")),
        sqlite_autoincrement=True,
    )
    for table in ("traced_calls", "traced_logs"):
        op.create_index(op.f(f"ix_{table}_account_id_seq"), table, ["account_id", "seq"])
        op.create_index(op.f(f"ix_{table}_at"), table, ["at"])
    op.create_table(
        "trace_tags",
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("tag", sa.String(256), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "kind", "tag", "seq", name=op.f("pk_trace_tags")),
    )
