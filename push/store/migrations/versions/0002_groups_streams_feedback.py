"""Groups, event streams, connections and feedback"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "groups",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_groups")),
    )
    op.create_table(
        "connections",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column(
            "connection",
            sa.String(length=32),
            nullable=False,
            comment="which one; a newer replaces it",
        ),
        sa.Column(
            "relay",
            sa.String(length=32),
            nullable=False,
            comment="who holds it, empty where nobody does",
        ),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("seen_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.device_id"],
            name=op.f("fk_connections_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", "kind", name=op.f("pk_connections")),
    )
    op.create_table(
        "device_events",
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column(
            "sequence",
            sa.BigInteger(),
            nullable=False,
            comment="in the order of the device's events",
        ),
        sa.Column("event_id", sa.String(length=80), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.device_id"],
            name=op.f("fk_device_events_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("device_id", "sequence", name=op.f("pk_device_events")),
        sa.UniqueConstraint(
            "event_id", "device_id", name=op.f("uq_device_events_event_id_device_id")
        ),
    )
    with op.batch_alter_table("device_events", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_device_events_expires_at_ms"), ["expires_at_ms"], unique=False
        )

    op.create_table(
        "feedback",
        sa.Column(
            "call_number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("identity", sa.String(length=128), nullable=False),
        sa.Column(
            "device_id", sa.String(length=64), nullable=False, comment="empty where a server speaks"
        ),
        sa.Column("score", sa.Integer(), nullable=True),
        sa.Column("issue", sa.String(length=32), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["call_number"],
            ["calls.number"],
            name=op.f("fk_feedback_call_number"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("call_number", "identity", "device_id", name=op.f("pk_feedback")),
    )
    op.create_table(
        "group_members",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("identity", sa.String(length=128), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["name"], ["groups.name"], name=op.f("fk_group_members_name"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name", "identity", name=op.f("pk_group_members")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False)
        )

    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.alter_column(
            "event_id",
            existing_type=sa.VARCHAR(length=64),
            type_=sa.String(length=80),
            existing_nullable=False,
        )


def downgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.alter_column(
            "event_id",
            existing_type=sa.String(length=80),
            type_=sa.VARCHAR(length=64),
            existing_nullable=False,
        )

    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_column("sequence")

    op.drop_table("group_members")
    op.drop_table("feedback")
    with op.batch_alter_table("device_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_device_events_expires_at_ms"))

    op.drop_table("device_events")
    op.drop_table("connections")
    op.drop_table("groups")
