"""Model packages that have been deleted; their numbers are not given again."""

import sqlalchemy as sa
from alembic import op

revision = "models"
down_revision = "s3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("packages", sa.Column("deleted_at", sa.Double(), nullable=True))
