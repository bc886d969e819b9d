"""Named records, and keys that can verify a signature."""

import sqlalchemy as sa
from alembic import op

revision = "resources"
down_revision = "usage"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "resources",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_resources")),
        sa.UniqueConstraint(
            "account_id", "kind", "name", name=op.f("uq_resources_account_id_kind_name")
        ),
        sqlite_autoincrement=True,
    )
    access_key_id = sa.Column("access_key_id", sa.String(64), server_default="", nullable=False)
    op.add_column("keys", access_key_id)
    op.add_column("keys", sa.Column("sealed", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_keys_access_key_id"), "keys", ["access_key_id"])
