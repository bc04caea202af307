"""Keys as rows: hashes of API keys, and the keys that sign access tokens."""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from push.store.tables import api_keys, signing_keys


@dataclass(frozen=True, slots=True)
class SigningKeyRow:
    """A private key in PEM, by its key id."""

    kid: str
    private_key: str


def api_key_hashes(connection: Connection) -> frozenset[str]:
    """The hashes of all API keys."""
    return frozenset(connection.execute(select(api_keys.c.key_hash)).scalars())


def add_api_key(connection: Connection, key_hash: str, at_ms: int) -> None:
    """Keeps an API key's hash."""
    connection.execute(insert(api_keys), {"key_hash": key_hash, "created_at_ms": at_ms})


def signing_key_rows(connection: Connection) -> list[SigningKeyRow]:
    """All signing keys, the newest first: that one signs, the others still verify."""
    rows = connection.execute(
        select(signing_keys.c.kid, signing_keys.c.private_key).order_by(
            signing_keys.c.created_at_ms.desc(), signing_keys.c.kid
        )
    )
    return [SigningKeyRow(row.kid, row.private_key) for row in rows]


def add_signing_key(connection: Connection, key: SigningKeyRow, at_ms: int) -> None:
    """Keeps a signing key."""
    connection.execute(
        insert(signing_keys),
        {"kid": key.kid, "private_key": key.private_key, "created_at_ms": at_ms},
    )
