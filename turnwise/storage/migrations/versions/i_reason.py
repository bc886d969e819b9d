"""What an evaluator says of a rollout's score. Rollouts of before have none."""

import sqlalchemy as sa
from alembic import op

revision = "reason"
down_revision = "traces"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("reason", sa.Text(), server_default="", nullable=False))
