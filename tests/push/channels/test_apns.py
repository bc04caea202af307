"""A VoIP push over APNs: what is composed, every header and byte that goes out, and what becomes of
it by what APNs answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from bellwire.push.channels.apns.channel import push_id
from bellwire.push.channels.apns.reasons import REASONS
from bellwire.push.channels.channel import (
    Addressee,
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
    TokenDead,
)
from bellwire.push.channels.payload import APNS_LIMIT_BYTES
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.signaling.calls.calls import Call, User, UserState
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallEnded,
    CallEvent,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
)
from bellwire.signaling.errors import TooLarge
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from tests.push.apns_scene import BODY, BUNDLE, CALL, TOKEN, Apns, delivery, utc_now
from tests.push.apns_server import Authority, Reply, apns_server

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
async def apns(tmp_path: Path) -> AsyncIterator[Apns]:
    authority = Authority(tmp_path)
    async with apns_server(authority) as server:
        yield Apns(server, authority, tmp_path)


def addressee(state: UserState = UserState.INVITING, app: str = BUNDLE) -> Addressee:
    bob = Identity("bob")
    users = (User(Identity("alice"), UserState.ACCEPTED, AT), User(bob, state, AT))
    call = Call(CallSid(CALL), Identity("alice"), users, AT, 60)
    channel = ChannelRow("apns", app, "production", TOKEN)
    return Addressee(call, DeviceRow(DeviceId("phone"), bob, (channel,)), channel)


def invite(**fields: str) -> CallReceived:
    return CallReceived(
        id=f"{CALL}-1",
        call_sid=CALL,
        at=AT,
        **{"from": "client:alice"},
        to="client:bob",
        custom_parameters={"door": "front & back", "name": "Zoë"},
        expires_at=AT + timedelta(seconds=60),
        **fields,
    )


async def test_an_invite_is_twilios_keys_beside_an_aps(apns: Apns) -> None:
    body = apns.channel().compose(invite(title="Ding"), addressee())
    assert body is not None
    assert json.loads(body) == {
        "aps": {},
        "twi_message_type": "twilio.voice.call",
        "twi_call_sid": CALL,
        "twi_from": "client:alice",
        "twi_to": "client:bob",
        "twi_account_sid": "AC" + "0" * 32,
        "twi_message_id": f"{CALL}-1",
        "twi_params": "door=front%20%26%20back&name=Zo%C3%AB",
        "twi_bridge_token": "connect-token",
        "title": "Ding",
    }


async def test_a_body_may_have_5120_bytes_and_no_more(apns: Apns) -> None:
    channel = apns.channel()
    bare = channel.compose(invite(payload=""), addressee())
    assert bare is not None
    room = APNS_LIMIT_BYTES - len(bare.encode())
    full = channel.compose(invite(payload="é" * (room // 2) + "x" * (room % 2)), addressee())
    assert full is not None and len(full.encode()) == 5120
    with pytest.raises(TooLarge, match=r"5121 bytes over APNs.* 5120.*shorten .*push.payload") as e:
        channel.compose(invite(payload="x" * (room + 1)), addressee())
    assert e.value.fields == {"size": 5121, "limit": 5120, "channel": "apns"}


def over(event: type[CallCancelled] | type[CallTimeout] | type[CallEnded]) -> CallEvent:
    return event(id=f"{CALL}-2", call_sid=CALL, at=AT)


async def test_the_end_of_an_invite_is_pushed_only_where_the_app_asks_for_it(apns: Apns) -> None:
    silent = apns.channel()
    telling = apns.channel({BUNDLE: apns.app(cancel_by_push=True)})
    for event in (over(CallCancelled), over(CallTimeout), over(CallEnded)):
        assert silent.compose(event, addressee()) is None
        body = telling.compose(event, addressee())
        assert body is not None
        assert json.loads(body)["twi_message_type"] == "twilio.voice.cancel"


async def test_a_phone_that_was_not_ringing_is_not_told_by_push_that_the_call_ended(
    apns: Apns,
) -> None:
    channel = apns.channel({BUNDLE: apns.app(cancel_by_push=True)})
    assert channel.compose(over(CallEnded), addressee(UserState.ACCEPTED)) is None
    moved = CallCancelled(id=f"{CALL}-2", call_sid=CALL, at=AT, reason="joined_elsewhere")
    assert channel.compose(moved, addressee(UserState.ACCEPTED)) is None


async def test_events_that_are_no_invite_and_apps_unknown_are_not_pushed(apns: Apns) -> None:
    channel = apns.channel()
    changed = CallUserStateChanged(
        id=f"{CALL}-2", call_sid=CALL, at=AT, identity="bob", state=UserState.RECEIVED
    )
    assert channel.compose(changed, addressee()) is None
    assert channel.compose(invite(), addressee(app="com.example.gone")) is None


async def test_a_push_has_exactly_these_headers_and_bytes(apns: Apns) -> None:
    sent = delivery(life_s=30)
    async with apns.running() as channel:
        apns_id = await channel.send(sent, 30)
        await channel.send(sent, 30)
    first, second = apns.server.pushes
    for push in (first, second):
        authorization = push.header("authorization")
        assert authorization.startswith("bearer ")
        assert sorted(push.headers) == sorted(
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", f"127.0.0.1:{apns.server.port}"),
                (":path", f"/3/device/{TOKEN}"),
                ("apns-topic", f"{BUNDLE}.voip"),
                ("apns-push-type", "voip"),
                ("apns-priority", "10"),
                ("apns-id", apns_id),
                ("apns-expiration", str(sent.expires_at_ms // 1000)),
                ("apns-collapse-id", CALL),
                ("authorization", authorization),
            ]
        )
        assert push.body == BODY.encode()


async def test_all_retries_of_a_delivery_have_one_apns_id_and_others_have_their_own(
    apns: Apns,
) -> None:
    async with apns.running() as channel:
        ids = [
            await channel.send(sent, 30)
            for sent in (
                delivery("event-1"),
                delivery("event-1", attempts=3),
                delivery("event-2"),
                delivery("event-1", device_id=DeviceId("tablet")),
            )
        ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert [push.header("apns-id") for push in apns.server.pushes] == ids
    assert all(str(UUID(apns_id)) == apns_id for apns_id in ids)


async def test_with_less_than_a_second_left_it_is_now_or_never(apns: Apns) -> None:
    now = datetime(2026, 3, 1, 12, 0, 0, 200_000, tzinfo=UTC)
    sent = delivery(expires_at_ms=int(now.timestamp() * 1000) + 700)
    async with apns.running(now=lambda: now) as channel:
        await channel.send(sent, 0.7)
    assert apns.server.pushes[0].header("apns-expiration") == "0"


STATUSES = {  # Apple, "Handling notification responses from APNs"
    "400": """BadCollapseId BadDeviceToken BadExpirationDate BadMessageId BadPriority BadTopic
        DeviceTokenNotForTopic DuplicateHeaders IdleTimeout InvalidPushType MissingDeviceToken
        MissingTopic PayloadEmpty TopicDisallowed""",
    "403": """BadCertificate BadCertificateEnvironment ExpiredProviderToken Forbidden
        InvalidProviderToken MissingProviderToken UnrelatedKeyIdInToken BadEnvironmentKeyIdInToken
        BadEnvironmentKeyInToken""",
    "404": "BadPath",
    "405": "MethodNotAllowed",
    "410": "ExpiredToken Unregistered",
    "413": "PayloadTooLarge",
    "429": "TooManyProviderTokenUpdates TooManyRequests",
    "500": "InternalServerError",
    "503": "ServiceUnavailable Shutdown",
}
DEAD = {"BadDeviceToken", "DeviceTokenNotForTopic", "ExpiredToken", "Unregistered"}
AGAIN = {"IdleTimeout", *STATUSES["429"].split(), *STATUSES["500"].split()}
AGAIN |= set(STATUSES["503"].split())
FAULTS = {"TopicDisallowed", *STATUSES["403"].split()}


def expected(reason: str) -> type[Exception]:
    if reason in DEAD:
        return TokenDead
    if reason in FAULTS:
        return ChannelAtFault
    return DeliveryFailed if reason in AGAIN else DeliveryRefused


async def test_every_documented_reason_has_its_consequence(apns: Apns) -> None:
    documented = {r: status for status, reasons in STATUSES.items() for r in reasons.split()}
    assert set(documented) == set(REASONS)
    async with apns.running() as channel:
        for reason, status in documented.items():
            apns.server.answer = lambda _, s=status, r=reason: Reply(int(s), r)  # type: ignore[misc]
            with pytest.raises((DeliveryFailed, DeliveryRefused), match=f"{status} {reason}") as e:
                await channel.send(delivery(), 30)
            assert type(e.value) is expected(reason), reason


@pytest.mark.parametrize(
    ("status", "consequence"),
    [
        (400, DeliveryRefused),
        (403, ChannelAtFault),
        (404, DeliveryRefused),
        (410, TokenDead),
        (418, DeliveryRefused),
        (429, DeliveryFailed),
        (302, DeliveryFailed),
        (500, DeliveryFailed),
        (599, DeliveryFailed),
    ],
)
async def test_an_unknown_reason_or_none_goes_by_the_status(
    apns: Apns, status: int, consequence: type[Exception]
) -> None:
    bodies = [[], [b'{"reason":"Novel"}'], [b"<html>"], [b"[1]"], [b"\xff\xfe"], [b'{"reason":7}']]
    async with apns.running() as channel:
        for pieces in bodies:
            answer = Reply(status, pieces=pieces, with_apns_id=False)
            apns.server.answer = lambda _, a=answer: a  # type: ignore[misc]
            with pytest.raises((DeliveryFailed, DeliveryRefused)) as e:
                await channel.send(delivery(), 30)
            assert type(e.value) is consequence


async def test_an_error_in_pieces_is_read_as_a_whole(apns: Apns) -> None:
    pieces = [b'{"rea', b"", b'son":"BadDev', b'iceToken"}', b""]
    apns.server.answer = lambda _: Reply(400, pieces=pieces)
    async with apns.running() as channel:
        with pytest.raises(TokenDead, match="400 BadDeviceToken"):
            await channel.send(delivery(), 30)


async def test_of_an_endless_body_the_rest_is_dropped(apns: Apns) -> None:
    apns.server.answer = lambda _: Reply(500, pieces=[b"x" * 8000] * 3)
    async with apns.running() as channel:
        for _ in range(10):  # More than a window's worth: it is credited back.
            with pytest.raises(DeliveryFailed, match="500"):
                await channel.send(delivery(), 30)
    assert apns.server.opened == 1


async def test_a_dead_token_is_dead_since_when_apple_says(apns: Apns) -> None:
    async with apns.running() as channel:
        apns.server.answer = lambda _: Reply(410, "Unregistered", timestamp=1_700_000_000_123)
        with pytest.raises(TokenDead) as e:
            await channel.send(delivery(), 30)
        assert e.value.since == datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
        for nonsense in (-1, 1 << 60):
            apns.server.answer = lambda _, t=nonsense: Reply(410, timestamp=t)  # type: ignore[misc]
            with pytest.raises(TokenDead) as e:
                await channel.send(delivery(), 30)
            assert e.value.since is None


async def test_retry_after_is_kept_as_seconds_or_a_date(apns: Apns) -> None:
    now = utc_now().replace(microsecond=0)
    later = (now + timedelta(seconds=90)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    async with apns.running(now=lambda: now) as channel:
        for value, wait_s in (("7", 7.0), (later, 90.0), ("99999", 3600.0), ("soon", None)):
            answer = Reply(429, "TooManyRequests", {"retry-after": value})
            apns.server.answer = lambda _, a=answer: a  # type: ignore[misc]
            with pytest.raises(DeliveryFailed) as e:
                await channel.send(delivery(), 30)
            assert e.value.retry_after_s == wait_s


async def test_a_push_whose_time_is_over_is_not_sent(apns: Apns) -> None:
    async with apns.running() as channel:
        with pytest.raises(DeliveryFailed, match="too late"):
            await channel.send(delivery(), 0)
        await channel.send(delivery("alive"), 30)
    assert len(apns.server.pushes) == 1


async def test_a_push_without_app_or_token_is_refused(apns: Apns) -> None:
    async with apns.running() as channel:
        with pytest.raises(DeliveryRefused, match="no longer hold"):
            await channel.send(delivery(app="com.example.gone"), 30)
        for token in (None, "", "ab/../cd", "é" * 32):
            with pytest.raises(DeliveryRefused, match="no APNs token"):
                await channel.send(delivery(token=token), 30)
    assert not apns.server.pushes


async def test_an_app_at_fault_alarms_once_and_again_when_it_is_mended(
    apns: Apns,
) -> None:
    with capture_logs() as logs:
        await _fail_thrice_and_be_mended(apns)
    logged = [(log["log_level"], log["event"]) for log in logs]
    assert logged == [
        ("error", "apns refuses an app: its calls do not ring until this is mended"),
        ("info", "apns takes an app's pushes again"),
    ]
    assert TOKEN not in repr(logs)


async def _fail_thrice_and_be_mended(apns: Apns) -> None:
    async with apns.running() as channel:
        assert apns.fault() == 0
        apns.server.answer = lambda _: Reply(400, "TopicDisallowed")
        for _ in range(3):
            with pytest.raises(ChannelAtFault):
                await channel.send(delivery(), 30)
        assert apns.fault() == 1
        apns.server.answer = lambda _: Reply()
        await channel.send(delivery(), 30)
        await channel.send(delivery(), 30)
        assert apns.fault() == 0


async def test_an_app_or_environment_that_fails_delays_no_other(apns: Apns, tmp_path: Path) -> None:
    other = "com.example.other"
    authority = Authority(tmp_path, "other-ca")
    async with apns_server(authority) as stalled:
        stalled.answer = lambda _: None
        slow = apns.app(server=f"127.0.0.1:{stalled.port}", ca_file=authority.file)
        async with apns.running({BUNDLE: apns.app(), other: slow}) as channel:
            async with asyncio.TaskGroup() as tasks:
                stuck = [
                    tasks.create_task(_outcome(channel.send(delivery(f"s{n}", app=other), 1.5)))
                    for n in range(50)
                ]
                await stalled.until(lambda: len(stalled.pushes) == 50)
                for number in range(20):
                    await channel.send(delivery(f"f{number}"), 30)
                assert not any(task.done() for task in stuck)
            assert all(isinstance(task.result(), DeliveryFailed) for task in stuck)


async def _outcome(sending: asyncio.Future[str] | object) -> object:
    try:
        return await sending  # type: ignore[misc]
    except DeliveryFailed as error:
        return error


async def test_the_sandbox_has_connections_of_its_own_from_its_first_push(apns: Apns) -> None:
    async with apns.running() as channel:
        await channel.send(delivery(), 30)
        assert apns.server.opened == 1
        await channel.send(delivery("event-2", environment="sandbox"), 30)
        assert apns.server.opened == 2
        first, second = apns.server.pushes
        assert first.connection is not second.connection
        await channel.send(delivery("event-3", environment=None), 30)
        assert apns.server.pushes[2].connection is first.connection


def test_a_push_id_is_known_to_depend_on_event_device_and_app_alone() -> None:
    assert push_id(delivery()) == push_id(delivery(token="ff" * 32, life_s=1, attempts=2))
    assert push_id(delivery()) != push_id(delivery(app="com.example.other"))
