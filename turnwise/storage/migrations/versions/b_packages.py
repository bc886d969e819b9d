"""What a job started from and leaves, and model packages that are records alone."""

import sqlalchemy as sa
from alembic import op

revision = "packages"
down_revision = "first"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("inputs", sa.Text(), nullable=True))
    for name in ("parent", "output"):
        op.add_column("jobs", sa.Column(name, sa.Text(), server_default="", nullable=False))
    op.add_column("packages", sa.Column("pruned_at", sa.Double(), nullable=True))
