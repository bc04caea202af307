"""Access tokens that end before their time, on each kind of database: which do, which do not, and for how
long that is kept."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import Connection, func, select, update

from bellwire.push.access.revocation import KEPT, Access, ShownToken, open_access
from bellwire.push.access.tokens import AccessTokens, Actor, open_access_tokens
from bellwire.push.metrics import Metrics
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.access import Ended, Revocation, revoke, revoke_device
from bellwire.push.store.rows.devices import DeviceRow, delete_device, put_device
from bellwire.push.store.tables import access as access_table
from bellwire.push.store.tables import revocations, to_ms, token_devices
from bellwire.signaling.errors import Forbidden, Unauthenticated
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.tokens import MAX_TTL_S
from tests.push.clock import Clock

ALICE, BOB = Identity("alice"), Identity("bob")
PHONE, DESK = DeviceId("phone"), DeviceId("desk")


class Scene:
    """One relay's view of tokens, on a database that others use too."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.metrics = Metrics()
        self.passed_s = 0.0
        self.access: Access
        self.tokens: AccessTokens
        self.old_tokens: AccessTokens

    async def open(self) -> "Scene":
        self.access = await open_access(
            self.database, self.metrics, now=self.clock.now, clock=lambda: self.passed_s
        )
        self.tokens = await open_access_tokens(
            self.database, "bellwire", self.clock.now, lambda: self.access.revision
        )
        self.old_tokens = await open_access_tokens(self.database, "bellwire", self.clock.now)
        return self

    async def register(self, device: DeviceId, identity: Identity) -> None:
        row = DeviceRow(device, identity, ())
        await self.database.write(lambda c: put_device(c, row, to_ms(self.clock.now())))
        self.access.forget_owner(device)

    async def remove(self, device: DeviceId) -> None:
        at_ms = to_ms(self.clock.now())
        await self.database.write(lambda c: delete_device(c, device, at_ms))

    async def admits(self, token: str, acting_as: DeviceId | None = None) -> bool:
        await self.access.look()
        actor: Actor = await self.tokens.check(token)
        assert actor.token is not None and actor.identity is not None
        try:
            await self.access.admit(actor.token, actor.identity, actor.device)
            if acting_as is not None:
                await self.access.act_as(actor.token, actor.identity, acting_as)
        except (Unauthenticated, Forbidden):
            return False
        return True

    def issue(
        self, identity: Identity, device: DeviceId | None = None, *, by_old: bool = False
    ) -> str:
        issuer = self.old_tokens if by_old else self.tokens
        return issuer.issue(identity, device, 3600)[0]


@pytest.fixture
async def scene(each_database: Database, clock: Clock) -> Scene:
    return await Scene(each_database, clock).open()


async def test_a_token_of_the_version_before_goes_on_until_its_device_is_removed(
    scene: Scene,
) -> None:
    await scene.register(PHONE, ALICE)
    await scene.register(DESK, ALICE)
    phone, desk, any_device = (scene.issue(ALICE, d, by_old=True) for d in (PHONE, DESK, None))
    assert await scene.admits(phone) and await scene.admits(any_device, acting_as=DESK)
    scene.clock.advance(0.9)  # in the same second as they were issued
    await scene.remove(PHONE)
    assert not await scene.admits(phone)
    assert await scene.admits(desk) and await scene.admits(any_device)
    await scene.register(PHONE, ALICE)
    assert not await scene.admits(phone)
    scene.clock.advance(0.1)
    assert await scene.admits(scene.issue(ALICE, PHONE, by_old=True))


async def test_a_token_whose_device_was_removed_before_this_version_came_is_refused(
    scene: Scene,
) -> None:
    """The version before keeps nothing of a removal: that the device is not there has to do."""
    assert not await scene.admits(scene.issue(ALICE, PHONE, by_old=True))
    await scene.register(PHONE, BOB)
    assert not await scene.admits(scene.issue(ALICE, PHONE, by_old=True))


async def test_a_token_issued_in_the_millisecond_of_a_revocation_is_good(scene: Scene) -> None:
    await scene.register(PHONE, ALICE)
    before = scene.issue(ALICE, PHONE)
    at_ms = to_ms(scene.clock.now())
    await scene.database.write(lambda c: revoke(c, Ended.IDENTITY, [ALICE], at_ms))
    assert not await scene.admits(before)
    after = scene.issue(ALICE, PHONE)
    assert await scene.admits(after)
    await scene.database.write(lambda c: revoke_device(c, PHONE, at_ms))
    assert not await scene.admits(after)
    assert await scene.admits(scene.issue(ALICE, PHONE))


async def test_only_the_tokens_of_whom_is_named_end(scene: Scene) -> None:
    for device, identity in ((PHONE, ALICE), (DESK, BOB)):
        await scene.register(device, identity)
    alices, bobs = scene.issue(ALICE), scene.issue(BOB)
    await scene.database.write(lambda c: revoke(c, Ended.IDENTITY, [ALICE], 0))
    assert [await scene.admits(token) for token in (alices, bobs)] == [False, True]


@pytest.mark.parametrize(
    ("issued_at_ms", "revision", "ended"),
    [
        (20_000, 6, True),  # issued before it, whatever its issuer's clock says
        (10_000, 6, True),
        (10_000, 7, False),
        (9_000, 8, False),  # after it, by a clock that is somewhat behind
        (4_999, 8, True),  # of a database that was put back: its number is higher, and it is older
        (10_000, None, True),  # of the version before: the clock alone
        (10_001, None, False),
    ],
)
def test_a_token_ends_if_it_was_issued_before(
    issued_at_ms: int, revision: int | None, ended: bool
) -> None:
    token = ShownToken("jti", issued_at_ms, 0, revision)
    assert token.is_ended_by(Revocation(Ended.TOKEN, "jti", 7, 10_000)) is ended


async def test_a_device_that_is_removed_while_a_token_first_acts_as_it_takes_the_token_with_it(
    scene: Scene,
) -> None:
    for number in range(20):
        device = DeviceId(f"phone-{number}")
        await scene.register(device, ALICE)
        token = scene.issue(ALICE)
        await asyncio.gather(scene.admits(token, acting_as=device), scene.remove(device))
        acted = await scene.database.read(lambda c: _rows(c, token_devices))
        assert acted == 0
        # Whichever came first: it does not act as this device any more.
        assert not await scene.admits(token, acting_as=device)


async def test_what_is_known_of_owners_is_not_asked_of_the_database_for_each_request(
    scene: Scene,
) -> None:
    await scene.register(PHONE, ALICE)
    token, any_device = scene.issue(ALICE, PHONE), scene.issue(ALICE)
    assert await scene.admits(token) and await scene.admits(any_device, acting_as=PHONE)
    actors = [await scene.tokens.check(shown) for shown in (token, any_device)]
    await scene.database.close()
    for actor in actors:
        assert actor.token is not None
        await scene.access.admit(actor.token, ALICE, actor.device)
        if actor.device is None:
            await scene.access.act_as(actor.token, ALICE, PHONE)


async def test_a_revocation_is_kept_as_long_as_a_token_of_before_can_live_and_no_longer(
    scene: Scene,
) -> None:
    assert timedelta(seconds=MAX_TTL_S) < KEPT
    await scene.register(PHONE, ALICE)
    longest = scene.tokens.issue(ALICE, PHONE, MAX_TTL_S)[0]
    for_any = scene.tokens.issue(ALICE, None, MAX_TTL_S)[0]
    assert await scene.admits(for_any, acting_as=PHONE)
    await scene.remove(PHONE)
    await scene.register(PHONE, ALICE)
    scene.clock.advance(MAX_TTL_S - 1)
    await scene.access.forget_old()
    assert not await scene.admits(longest) and not await scene.admits(for_any)
    scene.clock.advance(KEPT.total_seconds() - MAX_TTL_S + 2)
    await scene.access.forget_old()
    assert await scene.database.read(lambda c: _rows(c, revocations)) == 0
    assert await scene.database.read(lambda c: _rows(c, token_devices)) == 0
    newcomer = await open_access(scene.database, Metrics(), now=scene.clock.now)
    assert newcomer.revision == scene.access.revision


async def test_a_relay_that_starts_knows_what_was_revoked_before(
    scene: Scene, clock: Clock
) -> None:
    await scene.register(PHONE, ALICE)
    token = scene.issue(ALICE, PHONE)
    await scene.remove(PHONE)
    await scene.register(PHONE, ALICE)
    started = await Scene(scene.database, clock).open()
    assert not await started.admits(token)


async def test_a_database_that_was_put_back_lets_no_revoked_token_in_again(scene: Scene) -> None:
    await scene.register(PHONE, ALICE)
    for _ in range(5):
        await scene.database.write(lambda c: revoke(c, Ended.IDENTITY, [BOB], 0))
    await scene.access.look()
    token = scene.issue(ALICE, PHONE)
    await scene.database.write(lambda c: c.execute(update(access_table).values(revision=0)))
    scene.clock.advance(60)
    await scene.remove(PHONE)
    await scene.register(PHONE, ALICE)
    assert not await scene.admits(token)


def _rows(connection: Connection, table: object) -> int:
    count: int = connection.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type] # a table
    return count
