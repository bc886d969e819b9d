"""The logs of registered agents."""

import sqlalchemy as sa
from alembic import op

revision = "agents"
down_revision = "resources"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_logs",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_agent_logs")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_agent_logs_account_id_agent_seq"), "agent_logs", ["account_id", "agent", "seq"]
    )
