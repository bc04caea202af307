"""Keys and revocations as rows: hashes of API keys, the keys that sign access tokens, and what has ended
tokens before their time.

All changes of keys and revocations share one number, `access`'s revision, whose row is locked by whoever
makes it: so on any database they become visible in their order, and a relay that knows up to a number
has missed none below it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bellwire.push.store.tables import (
    access,
    api_keys,
    devices,
    key_uses,
    revocations,
    revoked_keys,
    signing_keys,
    token_devices,
)
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.tokens import Scope


class Ended(StrEnum):
    """Whose tokens have ended."""

    IDENTITY = "identity"
    DEVICE = "device"
    TOKEN = "token"  # noqa: S105 - a word


@dataclass(frozen=True, slots=True)
class Revocation:
    """The tokens of one subject that were issued before `revision`, which came at `at_ms`, have ended."""

    kind: Ended
    subject: str
    revision: int
    at_ms: int


def access_revision(connection: Connection) -> int:
    """The number of the newest change."""
    revision: int = connection.execute(select(access.c.revision)).scalar_one()
    return revision


def advance_access(connection: Connection) -> int:
    """Gives a change its number. No other is made until this transaction has ended."""
    revision: int = connection.execute(
        update(access).values(revision=access.c.revision + 1).returning(access.c.revision)
    ).scalar_one()
    return revision


def revoke(connection: Connection, kind: Ended, subjects: Iterable[str], at_ms: int) -> None:
    """Ends the tokens of some subjects, in place of what ended earlier ones of theirs."""
    subjects = tuple(subjects)
    if not subjects:
        return
    revision = advance_access(connection)
    for subject in subjects:
        connection.execute(
            delete(revocations).where(revocations.c.kind == kind, revocations.c.subject == subject)
        )
        connection.execute(
            insert(revocations),
            {"kind": kind, "subject": subject, "revision": revision, "at_ms": at_ms},
        )


def revoke_device(connection: Connection, device: DeviceId, at_ms: int) -> None:
    """Ends the tokens that were made for a device, and those for any device that it has used."""
    # Nobody can note another token for the device until this transaction has ended.
    connection.execute(
        select(devices.c.device_id).where(devices.c.device_id == device).with_for_update()
    )
    used = connection.execute(
        select(token_devices.c.jti).where(token_devices.c.device_id == device)
    ).scalars()
    revoke(connection, Ended.TOKEN, used.all(), at_ms)
    revoke(connection, Ended.DEVICE, [device], at_ms)


def revocations_after(connection: Connection, revision: int) -> list[Revocation]:
    """What has come after a change."""
    rows = connection.execute(select(revocations).where(revocations.c.revision > revision))
    return [Revocation(Ended(row.kind), row.subject, row.revision, row.at_ms) for row in rows]


def note_token_device(
    connection: Connection, jti: str, device: DeviceId, identity: Identity, expires_at_ms: int
) -> bool:
    """Keeps that a token for any device of an identity acts as this one; False, and nothing is kept,
    where the identity has no such device."""
    # Held against removal, by the lock that the row's foreign key takes anyway.
    owned = (
        select(devices.c.device_id)
        .where(devices.c.device_id == device, devices.c.identity == identity)
        .with_for_update(read=True, key_share=True)
    )
    if connection.execute(owned).first() is None:
        return False
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        dialect.insert(token_devices)
        .values(jti=jti, device_id=device, expires_at_ms=expires_at_ms)
        .on_conflict_do_nothing()
    )
    return True


def forget_ended_tokens(connection: Connection, now_ms: int, revoked_before_ms: int) -> None:
    """Forgets what matters to no token any more, since all that it could be about have expired."""
    connection.execute(delete(token_devices).where(token_devices.c.expires_at_ms < now_ms))
    connection.execute(delete(revocations).where(revocations.c.at_ms < revoked_before_ms))


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
