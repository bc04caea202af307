"""API keys with names, scopes and an expiry; what has ended the tokens of before"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    # All may be null: a relay of the version before goes on adding keys beside this one.
    op.add_column("api_keys", sa.Column("name", sa.String(length=64)))
    op.add_column("api_keys", sa.Column("scopes", sa.Text(), comment="none: a key from before"))
    op.add_column("api_keys", sa.Column("expires_at_ms", sa.BigInteger()))
    op.create_table(
        "key_uses",
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("used_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_hash", name=op.f("pk_key_uses")),
    )
    op.create_table(
        "revoked_keys",
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_hash", name=op.f("pk_revoked_keys")),
    )
    access = op.create_table(
        "access",
        sa.Column(
            "number", sa.Integer(), autoincrement=False, nullable=False, comment="1: one row"
        ),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="of keys and revocations"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_access")),
    )
    op.bulk_insert(access, [{"number": 1, "revision": 0}])
    op.create_table(
        "revocations",
        sa.Column("kind", sa.String(length=16), nullable=False, comment="identity, device, token"),
        sa.Column("subject", sa.String(length=128), nullable=False, comment="a token's is its jti"),
        sa.Column("revision", sa.BigInteger(), nullable=False, comment="of `access`, when it came"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", name=op.f("pk_revocations")),
    )
    op.create_index(op.f("ix_revocations_revision"), "revocations", ["revision"])
    op.create_index(op.f("ix_revocations_at_ms"), "revocations", ["at_ms"])
    op.create_table(
        "token_devices",
        sa.Column("jti", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"],
            ["devices.device_id"],
            name=op.f("fk_token_devices_device_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("jti", "device_id", name=op.f("pk_token_devices")),
    )
    op.create_index(op.f("ix_token_devices_device_id"), "token_devices", ["device_id"])
    op.create_index(op.f("ix_token_devices_expires_at_ms"), "token_devices", ["expires_at_ms"])
