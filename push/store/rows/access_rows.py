"""What has ended the access tokens of before, as rows: of which devices, identities, or single tokens.

All changes of keys and revocations share one number, `access`'s revision, whose row is locked by whoever
makes it: so on any database they become visible in their order, and a relay that knows up to a number
has missed none below it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bellwire.push.store.tables import access, devices, revocations, token_devices
from bellwire.signaling.identifiers import DeviceId, Identity


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
