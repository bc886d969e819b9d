"""The audit trail: records, sealed segments, ends of chains; and the streams of agents' logs."""

import sqlalchemy as sa
from alembic import op

revision = "audit"
down_revision = "models"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_records",
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("category", sa.String(32), nullable=False),
        sa.Column("source", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("access_key_id", sa.String(64), nullable=False),
        sa.Column("event_id", sa.String(64), nullable=False),
        sa.Column("read_only", sa.Boolean(), nullable=False),
        sa.Column("resources", sa.Text(), nullable=False),
        sa.Column("resource_types", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "seq", name=op.f("pk_audit_records")),
    )
    for column in ("category", "name"):
        index = op.f(f"ix_audit_records_account_id_{column}_seq")
        op.create_index(index, "audit_records", ["account_id", column, "seq"])
    op.create_table(
        "audit_segments",
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
        sa.Column("dropped_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("account_id", "first_seq", name=op.f("pk_audit_segments")),
    )
    op.create_table(
        "audit_heads",
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("seal", sa.String(64), nullable=False),
        sa.Column("open_seq", sa.BigInteger(), nullable=False),
        sa.Column("open_at", sa.Double(), nullable=False),
        sa.Column("open_digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_audit_heads")),
    )
    op.add_column("agent_logs", sa.Column("stream", sa.Text(), server_default="", nullable=False))
