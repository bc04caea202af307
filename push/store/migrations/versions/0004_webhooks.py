"""Webhooks: events kept for a while, so that they can be replayed"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "webhook_events",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("event_id", sa.String(length=80), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column(
            "call_sid", sa.String(length=34), nullable=False, comment="empty where about none"
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False, comment="the body that is sent"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhook_events")),
        sa.UniqueConstraint("event_id", name=op.f("uq_webhook_events_event_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_webhook_events_call_sid"), "webhook_events", ["call_sid"])
    op.create_index(op.f("ix_webhook_events_at_ms"), "webhook_events", ["at_ms"])
