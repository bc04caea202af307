"""API keys: who shows one, and how they are made, rotated and revoked, at all relays at once.

A key is 256 random bits, so its SHA-256 is as good a secret as a slow hash would make it. It is looked up
by that hash: how long that takes tells something about hashes alone, and from a hash nobody gets to a
key that has it.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import Connection

from bellwire.config.private_file import write_private
from bellwire.push.access.revocation import Access
from bellwire.push.access.tokens import Actor, Reloaded
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.access import (
    ApiKeyRow,
    add_api_key,
    advance_access,
    api_key_rows,
    is_revoked_key,
    own_key_name,
    revoke_api_key,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Conflict, NotFound, Unauthenticated
from bellwire.signaling.tokens import Scope
from bellwire.signaling.wire.answers import ApiKeyAnswer, NewApiKeyAnswer

log = structlog.get_logger(__name__)

API_KEY_PREFIX = "bwk_"
MOST_KEYS = 1000


@dataclass(frozen=True, slots=True)
class _Shown:
    row: ApiKeyRow
    actor: Actor


class ApiKeys:
    """The API keys of a database."""

    def __init__(self, database: Database, access: Access, now: Callable[[], datetime]) -> None:
        self._database = database
        self._access = access
        self._now = now
        self._reloaded = Reloaded(now)
        self._known: dict[str, _Shown] = {}

    async def check(self, key: str) -> Actor:
        """Whom a key stands for.

        Raises:
            Unauthenticated: there is no such key, or it has expired.
            Unavailable: this relay cannot know.
        """
        self._access.must_be_fresh()
        key_hash = _hash(key)
        row = self._access.keys.get(key_hash)
        if row is None and self._reloaded.due():
            await self._access.read_keys()
            row = self._access.keys.get(key_hash)
        if row is None:
            raise self._access.counted(
                "api-key-unknown",
                Unauthenticated(
                    "the API key is not known, or was revoked: the relay's own is in the file `api-key`"
                    " of its data, others are made by `bellwire keys add`"
                ),
            )
        if row.expires_at_ms is not None and row.expires_at_ms <= to_ms(self._now()):
            raise self._access.counted(
                "api-key-expired",
                Unauthenticated(
                    f"the API key {row.name} has expired: make another with `bellwire keys rotate`"
                ),
            )
        self._access.note_use(key_hash)
        return self._actor(row)

    def _actor(self, row: ApiKeyRow) -> Actor:
        shown = self._known.get(row.key_hash)
        if shown is None or shown.row is not row:
            until = None if row.expires_at_ms is None else _time(row.expires_at_ms)
            actor = Actor(until=until, key_hash=row.key_hash, scopes=row.scopes)
            self._known = {h: s for h, s in self._known.items() if h in self._access.keys}
            self._known[row.key_hash] = shown = _Shown(row, actor)
        return shown.actor

    async def all(self) -> list[ApiKeyAnswer]:
        """All keys, by name."""
        return [self._answer(row) for row in await self._database.read(api_key_rows)]

    async def add(
        self, name: str, scopes: Collection[Scope], life: timedelta | None
    ) -> NewApiKeyAnswer:
        """Makes a key.

        Raises:
            Conflict: there is one of this name, or there are too many.
        """
        now = self._now()
        key = _new_key()
        row = ApiKeyRow(_hash(key), name, frozenset(scopes), to_ms(now), _end(now, life))

        def work(connection: Connection) -> None:
            advance_access(connection)  # from here on no other relay changes keys
            rows = api_key_rows(connection)
            if any(known.name == name for known in rows):
                raise Conflict(f"there is an API key {name}: give another name, or rotate that one")
            if len(rows) >= MOST_KEYS:
                raise Conflict(f"there are {len(rows)} API keys: revoke some first")
            add_api_key(connection, row)

        await self._database.write(work)
        await self._access.look()
        log.info("API key made", name=name, scopes=sorted(scopes))
        return self._new_answer(row, key)

    async def rotate(self, name: str, life: timedelta | None) -> NewApiKeyAnswer:
        """Makes a key in place of the one of this name, which is good no more. It lives as long as that
        was made for, unless it is told otherwise.

        Raises:
            NotFound: there is none of this name.
        """
        now = self._now()
        key = _new_key()

        def work(connection: Connection) -> ApiKeyRow:
            advance_access(connection)
            old = _named(connection, name)
            its_life = life
            if its_life is None and old.expires_at_ms is not None:
                its_life = timedelta(milliseconds=old.expires_at_ms - old.created_at_ms)
            row = ApiKeyRow(_hash(key), name, old.scopes, to_ms(now), _end(now, its_life))
            revoke_api_key(connection, old.key_hash, to_ms(now))
            add_api_key(connection, row)
            return row

        row = await self._database.write(work)
        await self._access.look()
        log.info("API key rotated", name=name)
        return self._new_answer(row, key)

    async def revoke(self, name: str) -> None:
        """Ends a key.

        Raises:
            NotFound: there is none of this name.
            Conflict: it is the last that may make others.
        """
        now_ms = to_ms(self._now())

        def work(connection: Connection) -> None:
            advance_access(connection)
            row = _named(connection, name)
            others = [one for one in api_key_rows(connection) if one.name != name]
            if Scope.ADMIN in row.scopes and not any(_is_admin(one, now_ms) for one in others):
                raise Conflict(
                    f"{name} is the last API key with the scope `admin`: make another first, or"
                    " rotate it"
                )
            revoke_api_key(connection, row.key_hash, now_ms)

        await self._database.write(work)
        await self._access.look()
        log.info("API key revoked", name=name)

    def _answer(self, row: ApiKeyRow) -> ApiKeyAnswer:
        used = self._access.last_use(row)
        return ApiKeyAnswer(
            name=row.name,
            scopes=tuple(sorted(row.scopes)),
            created_at=_time(row.created_at_ms),
            expires_at=None if row.expires_at_ms is None else _time(row.expires_at_ms),
            last_used_at=None if used is None else _time(used),
        )

    def _new_answer(self, row: ApiKeyRow, key: str) -> NewApiKeyAnswer:
        return NewApiKeyAnswer(**self._answer(row).model_dump(), key=key)


async def open_api_keys(
    database: Database, key_file: Path, access: Access, now: Callable[[], datetime]
) -> ApiKeys:
    """The API keys of a database; makes this relay's own at its first start, into `key_file` (mode 600),
    and a new one where that was revoked."""
    key = _own_key(key_file)
    if await database.read(lambda c: is_revoked_key(c, _hash(key))):
        key = _make_own_key(key_file)
        log.warning("this relay's own API key was revoked: it has a new one", file=str(key_file))
    own = ApiKeyRow(_hash(key), own_key_name(_hash(key)), frozenset({Scope.ADMIN}), to_ms(now()))

    def work(connection: Connection) -> None:
        if own.key_hash not in {row.key_hash for row in api_key_rows(connection)}:
            add_api_key(connection, own)

    if own.key_hash not in access.keys:
        await database.write(work)
        await access.look()
    return ApiKeys(database, access, now)


def _own_key(key_file: Path) -> str:
    if key_file.exists():
        return key_file.read_text().strip()
    return _make_own_key(key_file)


def _make_own_key(key_file: Path) -> str:
    key = _new_key()
    write_private(key_file, key + "\n")
    return key


def _new_key() -> str:
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _named(connection: Connection, name: str) -> ApiKeyRow:
    for row in api_key_rows(connection):
        if row.name == name:
            return row
    raise NotFound(f"there is no API key {name}: `bellwire keys list` has their names")


def _is_admin(row: ApiKeyRow, now_ms: int) -> bool:
    return Scope.ADMIN in row.scopes and (row.expires_at_ms is None or row.expires_at_ms > now_ms)


def _end(now: datetime, life: timedelta | None) -> int | None:
    return None if life is None else to_ms(now + life)


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)
