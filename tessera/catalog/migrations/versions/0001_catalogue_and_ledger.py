"""Items, interactions and the enrichment ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the three tables."""
    # Spelled out rather than taken from tables.py: a revision says what was true when it was published.
    texts = sa.JSON().with_variant(JSONB(), "postgresql")
    op.create_table(
        "items",
        sa.Column("item_id", sa.Text, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("brand", sa.Text, nullable=False),
        sa.Column("categories", texts, nullable=False),
        sa.Column("attributes", texts, nullable=False),
        sa.Column("image_status", sa.Text, nullable=False),
        sa.Column("image", sa.Text),
    )
    op.create_table(
        "interactions",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("item_id", sa.Text, nullable=False),
        sa.Column("timestamp", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "enrichments",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("provider", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("prompt_version", sa.Text, primary_key=True),
        sa.Column("item_id", sa.Text, primary_key=True),
        sa.Column("content_hash", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary),
        sa.Column("reason", sa.Text),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("enrichments", "interactions", "items"):
        op.drop_table(table)
