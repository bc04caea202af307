"""Keys as rows: hashes of API keys, and the keys that sign access tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from bellwire.push.store.rows.access_rows import advance_access
from bellwire.push.store.tables import api_keys, key_uses, revoked_keys, signing_keys
from bellwire.signaling.tokens import Scope


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """An API key, without the key itself. Times are Unix milliseconds."""

    key_hash: str
    name: str
    scopes: frozenset[Scope]
    created_at_ms: int
    expires_at_ms: int | None = None
    used_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SigningKeyRow:
    """A private key in PEM, by its key id."""

    kid: str
    private_key: str


def own_key_name(key_hash: str) -> str:
    """What a relay's own key is called, also where the version before has added it, without a name."""
    return f"relay-{key_hash[:8]}"


def api_key_rows(connection: Connection) -> list[ApiKeyRow]:
    """All API keys, by name. One that was revoked is none, whoever has put it back: a relay of the
    version before does, at its start."""
    rows = connection.execute(
        select(api_keys, key_uses.c.used_at_ms)
        .select_from(api_keys.outerjoin(key_uses, key_uses.c.key_hash == api_keys.c.key_hash))
        .where(api_keys.c.key_hash.not_in(select(revoked_keys.c.key_hash)))
    )
    found = [
        ApiKeyRow(
            row.key_hash,
            row.name or own_key_name(row.key_hash),
            _scopes(row.scopes),
            row.created_at_ms,
            row.expires_at_ms,
            row.used_at_ms,
        )
        for row in rows
    ]
    return sorted(found, key=lambda row: row.name)


def add_api_key(connection: Connection, key: ApiKeyRow) -> None:
    """Keeps an API key."""
    connection.execute(
        insert(api_keys),
        {
            "key_hash": key.key_hash,
            "created_at_ms": key.created_at_ms,
            "name": key.name,
            "scopes": " ".join(sorted(key.scopes)),
            "expires_at_ms": key.expires_at_ms,
        },
    )
    advance_access(connection)


def is_revoked_key(connection: Connection, key_hash: str) -> bool:
    """Whether a key was revoked."""
    found = select(revoked_keys.c.key_hash).where(revoked_keys.c.key_hash == key_hash)
    return connection.execute(found).first() is not None


def revoke_api_key(connection: Connection, key_hash: str, at_ms: int) -> None:
    """Ends an API key for good."""
    connection.execute(delete(api_keys).where(api_keys.c.key_hash == key_hash))
    connection.execute(delete(key_uses).where(key_uses.c.key_hash == key_hash))
    connection.execute(insert(revoked_keys), {"key_hash": key_hash, "revoked_at_ms": at_ms})
    advance_access(connection)


def note_key_uses(connection: Connection, used: Mapping[str, int]) -> None:
    """Keeps when keys were last used, by their hash; what another relay has kept later stays."""
    for key_hash, at_ms in used.items():
        its = key_uses.c.key_hash == key_hash
        kept = connection.execute(select(key_uses.c.used_at_ms).where(its)).scalar()
        if kept is None:
            connection.execute(insert(key_uses), {"key_hash": key_hash, "used_at_ms": at_ms})
        elif kept < at_ms:
            connection.execute(update(key_uses).where(its).values(used_at_ms=at_ms))


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


def _scopes(text: str | None) -> frozenset[Scope]:
    """Those of a key; a key from before has all, and a scope of a later version opens nothing here."""
    if text is None:
        return frozenset({Scope.ADMIN})
    return frozenset(scope for scope in Scope if scope in text.split())
