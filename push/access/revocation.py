"""Who may still do what, in memory: the API keys, and what has ended access tokens before their time.

A relay polls one number in the database, and reads on where it has grown: so what any relay changes is
in force at all of them within `POLL_S`, without a look at the database for each request, and without
the broker, which could hold it back. One that has not seen the database for `STALE_S` believes nobody.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from bellwire.config.waiting import Sleep
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.access import (
    ApiKeyRow,
    Ended,
    Revocation,
    access_revision,
    api_key_rows,
    forget_ended_tokens,
    note_key_uses,
    note_token_device,
    revocations_after,
)
from bellwire.push.store.rows.devices import find_device
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import Forbidden, Refusal, Unauthenticated, Unavailable
from bellwire.signaling.identifiers import DeviceId, Identity

log = structlog.get_logger(__name__)

POLL_S = 0.25
STALE_S = 5.0
KEPT = timedelta(hours=25)
"""How long a revocation is kept: longer than any token lives, with an hour for clocks that differ."""

_USES_KEPT_EVERY_S = 60.0
_CLOCKS_DIFFER_MS = 5_000
_OWNER_KNOWN_S = 60.0
_NO_OWNER_KNOWN_S = 0.5
_REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class ShownToken:
    """What tells an access token from others, and from those that were issued before or after it."""

    jti: str
    issued_at_ms: int
    expires_at_ms: int
    revision: int | None = None
    """The newest change that its issuer knew; None where the version before has issued it."""

    def is_ended_by(self, revocation: Revocation) -> bool:
        """Whether it was issued before. The number says so whatever clocks say; the clock also where
        the database has been put back to a day when the number was lower."""
        if self.revision is None:
            return self.issued_at_ms <= revocation.at_ms
        long_before = self.issued_at_ms + _CLOCKS_DIFFER_MS < revocation.at_ms
        return self.revision < revocation.revision or long_before


@dataclass(frozen=True, slots=True)
class _News:
    revision: int
    keys: list[ApiKeyRow]
    revocations: list[Revocation]


class Access:
    """What this relay knows of keys and revocations. `open_access` reads it first, `run` keeps it.

    Args:
        database: Where it is kept.
        metrics: Counts what is refused.
        now: Tells the time.
        clock: Tells seconds that pass, whatever the time.
        sleep: Waits.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._database = database
        self._refused = metrics.refused.labels
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._revision = -1
        self._looked_at = clock()
        self._revoked: dict[tuple[Ended, str], Revocation] = {}
        self._owners: dict[DeviceId, tuple[Identity | None, float]] = {}
        self._noted: set[tuple[str, DeviceId]] = set()
        self._uses: dict[str, datetime] = {}
        self._uses_kept_at = clock()
        self._listeners: list[Callable[[], None]] = []
        self.keys: dict[str, ApiKeyRow] = {}
        """The API keys by their hash."""

    @property
    def revision(self) -> int:
        """The newest change that is known here."""
        return self._revision

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has `listener` called on the loop whenever keys or revocations have changed."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Keeps up with what any relay changes, until cancelled."""
        away = False
        while True:
            try:
                await self.look()
                if self._clock() - self._uses_kept_at >= _USES_KEPT_EVERY_S:
                    await self._keep_uses()
                away = False
            except Unavailable as error:
                if not away:
                    log.warning("keys and revocations not read", error=str(error))
                away = True
            await self._sleep(POLL_S)

    async def look(self) -> None:
        """Reads what has changed, if anything. Who has changed something calls it, and who must know the
        newest.

        Raises:
            Unavailable: the database is away.
        """
        began = self._clock()
        known = self._revision

        def work(connection: Connection) -> _News | None:
            revision = access_revision(connection)
            if revision == known:
                return None
            # A lower number is of a database that was put back, or has lost its last changes.
            since = known if revision > known else -1
            # Read after the number: what has come in between is read again by the next look.
            return _News(revision, api_key_rows(connection), revocations_after(connection, since))

        news = await self._database.read(work)
        self._looked_at = max(self._looked_at, began)
        # Another look may have ended meanwhile, with less or with more.
        if news is not None and (self._revision == known or news.revision > self._revision):
            self._take(news)

    async def read_keys(self) -> None:
        """Reads the keys whether or not their number has changed: the version before makes its relay's
        own without.

        Raises:
            Unavailable: the database is away.
        """
        revision = self._revision
        rows = await self._database.read(api_key_rows)
        if self._revision == revision:
            self.keys = {row.key_hash: row for row in rows}

    def _take(self, news: _News) -> None:
        self._revision = news.revision
        self.keys = {row.key_hash: row for row in news.keys}
        for revocation in news.revocations:
            self._revoked[revocation.kind, revocation.subject] = revocation
            if revocation.kind is Ended.DEVICE:
                self._owners.pop(DeviceId(revocation.subject), None)
        for listener in self._listeners:
            listener()

    def must_be_fresh(self) -> None:
        """Lets nobody in who may have been shut out since.

        Raises:
            Unavailable: this relay has not seen a database that others share for too long.
        """
        if self._database.shared and self._clock() - self._looked_at > STALE_S:
            raise Unavailable("the relay cannot read who may still do what: its database is away")

    def refusal(
        self, token: ShownToken, identity: Identity, device: DeviceId | None
    ) -> Unauthenticated | None:
        """Why an access token is good no more, or None where it is."""
        if not self._revoked:
            return None
        subjects: list[tuple[Ended, str]] = [
            (Ended.TOKEN, token.jti),
            (Ended.IDENTITY, identity),
        ]
        if device is not None:
            subjects.append((Ended.DEVICE, device))
        for subject in subjects:
            revocation = self._revoked.get(subject)
            if revocation is not None and token.is_ended_by(revocation):
                return Unauthenticated(
                    f"the access token has ended: {_WHY[revocation.kind]}; ask your backend for a new one"
                )
        return None

    async def admit(self, token: ShownToken, identity: Identity, device: DeviceId | None) -> None:
        """Lets an access token in.

        Raises:
            Unauthenticated: it was revoked, or its device is not registered, or no longer.
            Unavailable: this relay cannot know.
        """
        self.must_be_fresh()
        refusal = self.refusal(token, identity, device)
        if refusal is not None:
            raise self.counted("token-ended", refusal)
        if device is None:
            return
        owner, until = self._owners.get(device, (None, 0.0))
        if until <= self._clock():
            owner = await self._owner(device)
        if owner != identity:
            raise self.counted(
                "device-not-registered",
                Unauthenticated(
                    f"the access token is for {device}, which is no device of {identity}, or no longer:"
                    " register it, and ask your backend for a new token"
                ),
            )

    async def act_as(self, token: ShownToken, identity: Identity, device: DeviceId) -> None:
        """Lets a token for any device of an identity act as this one; it ends with it from now on.

        Raises:
            Forbidden: it is no device of the identity.
            Unavailable: as `admit`.
        """
        if (token.jti, device) in self._noted:
            return
        owned = await self._database.write(
            lambda c: note_token_device(c, token.jti, device, identity, token.expires_at_ms)
        )
        if not owned:
            raise self.counted(
                "foreign-device",
                Forbidden(
                    f"{device} is no device of {identity}: register it, or leave `device_id` out"
                ),
            )
        if len(self._noted) >= _REMEMBERED:
            self._noted.clear()
        self._noted.add((token.jti, device))

    async def _owner(self, device: DeviceId) -> Identity | None:
        revision = self._revision
        row = await self._database.read(lambda c: find_device(c, device))
        owner = None if row is None else row.identity
        if self._revision == revision:  # else it may have been removed since it was read
            if len(self._owners) >= _REMEMBERED:
                self._owners.clear()
            known_s = _NO_OWNER_KNOWN_S if owner is None else _OWNER_KNOWN_S
            self._owners[device] = (owner, self._clock() + known_s)
        return owner

    def forget_owner(self, device: DeviceId) -> None:
        """A device was registered here: what was known of it may be wrong."""
        self._owners.pop(device, None)

    def note_use(self, key_hash: str) -> None:
        """An API key was shown."""
        self._uses[key_hash] = self._now()

    def last_use(self, row: ApiKeyRow) -> int | None:
        """When a key was last used, as far as it is known here."""
        here = self._uses.get(row.key_hash)
        return row.used_at_ms if here is None else max(to_ms(here), row.used_at_ms or 0)

    def counted(self, reason: str, refusal: Refusal) -> Refusal:
        """A refusal, counted."""
        self._refused(reason).inc()
        return refusal

    async def forget_old(self) -> None:
        """Forgets, here and in the database, what can matter to no token any more."""
        now = self._now()
        before_ms = to_ms(now - KEPT)
        await self._database.write(lambda c: forget_ended_tokens(c, to_ms(now), before_ms))
        self._revoked = {s: r for s, r in self._revoked.items() if r.at_ms >= before_ms}

    async def _keep_uses(self) -> None:
        self._uses_kept_at = self._clock()
        used, self._uses = self._uses, {}
        # Of keys that are still there: those that were revoked have no rows.
        known = {key_hash: to_ms(at) for key_hash, at in used.items() if key_hash in self.keys}
        if known:
            await self._database.write(lambda c: note_key_uses(c, known))


_WHY = {
    Ended.TOKEN: "it was revoked, or a device that has used it was removed",
    Ended.IDENTITY: "the tokens of its identity were revoked",
    Ended.DEVICE: "its device was removed, or its tokens were revoked",
}


async def open_access(
    database: Database,
    metrics: Metrics,
    *,
    now: Callable[[], datetime],
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
) -> Access:
    """What a database says of keys and revocations."""
    access = Access(database, metrics, now=now, clock=clock, sleep=sleep)
    await access.look()
    return access
