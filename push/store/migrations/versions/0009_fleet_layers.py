"""The revisions of the fleet's layers, so that a broker that has lost them gets them back"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "fleet_layers",
        sa.Column(
            "layer", sa.String(length=80), nullable=False, comment="default, group/NAME, ..."
        ),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False, comment="as it was retained"),
        sa.Column("stored_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("layer", "revision", name=op.f("pk_fleet_layers")),
    )
