"""Push channels: apps in the outbox, what became of deliveries, webhooks, tokens with one owner"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    # Tokens of channels that have none were kept as they came; now a token has one owner.
    op.execute("UPDATE channels SET token = NULL WHERE kind NOT IN ('apns', 'fcm')")
    with op.batch_alter_table("channels") as channels:
        channels.add_column(
            sa.Column("registered_at_ms", sa.BigInteger(), server_default="0", nullable=False)
        )
        channels.create_index(
            op.f("ix_channels_token_kind_app"), ["token", "kind", "app"], unique=True
        )
    with op.batch_alter_table("outbox", table_kwargs={"sqlite_autoincrement": True}) as outbox:
        outbox.add_column(
            sa.Column("call_sid", sa.String(length=34), server_default="", nullable=False)
        )
        outbox.add_column(
            sa.Column(
                "app",
                sa.String(length=256),
                server_default="",
                nullable=False,
                comment="or the webhook's name",
            )
        )
        outbox.add_column(sa.Column("reason", sa.Text(), comment="why the last attempt failed"))
        outbox.alter_column(
            "device_id",
            existing_type=sa.String(length=64),
            nullable=True,
            comment="none for a webhook",
        )
        outbox.drop_constraint(op.f("uq_outbox_event_id_device_id_kind"), type_="unique")
        outbox.create_unique_constraint(
            op.f("uq_outbox_event_id_device_id_kind_app"), ["event_id", "device_id", "kind", "app"]
        )
    op.create_table(
        "delivery_results",
        sa.Column("event_id", sa.String(length=80), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("app", sa.String(length=256), nullable=False),
        sa.Column("call_sid", sa.String(length=34), nullable=False),
        sa.Column(
            "result",
            sa.String(length=16),
            comment="sent, refused or expired; none where none is known yet",
        ),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "received_at_ms",
            sa.BigInteger(),
            comment="when the device confirmed, naming this channel",
        ),
        sa.PrimaryKeyConstraint(
            "event_id", "device_id", "kind", "app", name=op.f("pk_delivery_results")
        ),
    )
    op.create_index(op.f("ix_delivery_results_call_sid"), "delivery_results", ["call_sid"])
    op.create_index(op.f("ix_delivery_results_at_ms"), "delivery_results", ["at_ms"])
