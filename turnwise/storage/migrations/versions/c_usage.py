"""What a turn took from the prefix cache, and what was sampled behind its stop string."""

import sqlalchemy as sa
from alembic import op

revision = "usage"
down_revision = "packages"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("cached_tokens", "past_stop_tokens"):
        op.add_column("turns", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
