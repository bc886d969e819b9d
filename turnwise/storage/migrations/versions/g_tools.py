"""The tools that a request offered. Rollouts of before have their identity alone."""

import sqlalchemy as sa
from alembic import op

revision = "tools"
down_revision = "pages"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("tools", sa.Text(), server_default="[]", nullable=False))
