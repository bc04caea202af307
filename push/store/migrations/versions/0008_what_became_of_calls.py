"""What became of calls: their list filtered, the attempts of deliveries, and what devices tell of calls"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0005"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_index(
        "ix_calls_live",
        "calls",
        ["number"],
        sqlite_where=sa.text("state <> 'ended'"),
        postgresql_where=sa.text("state <> 'ended'"),
    )
    # Both may be null: a relay of the version before goes on writing rows beside this one.
    op.add_column(
        "outbox",
        sa.Column(
            "tries",
            sa.Text(),
            comment="the attempts that failed, as JSON; a relay of before adds none",
        ),
    )
    op.add_column(
        "delivery_results",
        sa.Column("tries", sa.Text(), comment="the attempts before the last, as JSON"),
    )
    op.create_table(
        "insights",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("call_sid", sa.String(length=34), nullable=False),
        sa.Column("identity", sa.String(length=128), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False, comment="when it was heard"),
        sa.Column(
            "fingerprint",
            sa.String(length=32),
            nullable=False,
            comment="of the document: each is kept once",
        ),
        sa.Column("document", sa.Text(), nullable=False, comment="what the device said"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_insights")),
        sa.UniqueConstraint(
            "call_sid",
            "device_id",
            "fingerprint",
            name=op.f("uq_insights_call_sid_device_id_fingerprint"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_insights_at_ms"), "insights", ["at_ms"])
