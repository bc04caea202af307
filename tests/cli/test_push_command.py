"""`bellwire push test` rings a device and says, channel by channel, what became of it."""

import asyncio
import json
import sqlite3
from contextlib import closing

import httpx
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.cli.doctor.diagnosis import Condition
from bellwire.cli.push.command import ChannelReport, report_channel
from bellwire.cli.push.reasons import APNS, FCM
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.wire.answers import ChannelAnswer, DeliveryAnswer, DeliveryState
from tests.cli.command import Ended, bellwire
from tests.conftest import PATIENCE_S, register_station, running_station
from tests.forking import ForkedRelay

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def push_test(relay: ForkedRelay, device: str, *more: object) -> Ended:
    return await bellwire("push", "test", "--device", device, "--data", relay.data, *more)


def http_of(relay: ForkedRelay) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {relay.access.api_key}"}
    return httpx.AsyncClient(base_url=relay.access.url, headers=headers, timeout=PATIENCE_S)


async def state_of_newest_call(http: httpx.AsyncClient, identity: str) -> str:
    calls = (await http.get("/v1/calls", params={"identity": identity})).json()["calls"]
    state: str = calls[0]["state"]
    return state


async def test_device_that_is_connected_rings_until_the_test_is_over(
    shared_relay: ForkedRelay,
) -> None:
    async with http_of(shared_relay) as http:
        settings = await register_station(http, "door")
        async with running_station(settings) as door:
            ended = await push_test(shared_relay, "door", "--cancel-after", 0.5)
            call = await door.until(CallStatus.CLOSED)
        assert (ended.code, ended.err) == (0, "")
        assert call.sid in ended.out
        assert "whose only device is door" in ended.out
        assert "✓ mqtt: " in ended.out
        assert ended.out.splitlines()[-1] == "door can be rung."
        assert await state_of_newest_call(http, "door") == "ended"


async def test_call_that_a_device_answers_meanwhile_is_ended_too(
    shared_relay: ForkedRelay,
) -> None:
    async with http_of(shared_relay) as http:
        settings = await register_station(http, "hall")
        async with running_station(settings) as hall, asyncio.TaskGroup() as tasks:
            test = tasks.create_task(push_test(shared_relay, "hall", "--cancel-after", 15))
            await hall.until(CallStatus.PENDING)
            await hall.fingers.press("a")
            await hall.until(CallStatus.CLOSED)
        assert test.result().code == 0, test.result().out
        assert await state_of_newest_call(http, "hall") == "ended"


async def test_device_that_is_away_is_said_to_be_with_what_to_do_and_exit_code_1(
    shared_relay: ForkedRelay,
) -> None:
    async with http_of(shared_relay) as http:
        await register_station(http, "attic")
        await register_station(http, "cellar", identity="attic")
        ended = await push_test(shared_relay, "attic", "--timeout", 1)
        assert ended.code == 1
        assert "it rings all devices of attic, also cellar" in ended.out
        assert "✗ mqtt: not taken" in ended.out and ", 1 attempt: " in ended.out
        assert "→ is the device switched on" in ended.out
        assert ended.out.splitlines()[-1] == "No channel of attic took the call."
        assert await state_of_newest_call(http, "attic") == "ended"


async def test_push_app_that_the_settings_no_longer_hold_is_named(
    shared_relay: ForkedRelay,
) -> None:
    async with http_of(shared_relay) as http:
        body = {"identity": "alice", "channels": [{"kind": "websocket"}]}
        (await http.put("/v1/devices/alice-phone", json=body)).raise_for_status()
    # As it is once an operator has taken an app out of the settings.
    with closing(sqlite3.connect(shared_relay.data / "relay.db")) as database, database:
        database.execute(
            "INSERT INTO channels (device_id, kind, app, environment, token, registered_at_ms)"
            " VALUES ('alice-phone', 'apns', 'com.example.app', 'sandbox', ?, 0)",
            ["ab" * 32],
        )
    ended = await push_test(shared_relay, "alice-phone", "--cancel-after", 0, "--json")
    assert ended.code == 1
    found = json.loads(ended.out)
    assert (found["device_id"], found["identity"], found["took"]) == ("alice-phone", "alice", False)
    apns, stream = found["channels"]
    assert (apns["channel"], apns["app"], apns["environment"]) == (
        *("apns", "com.example.app", "sandbox"),
    )
    assert (apns["verdict"], apns["took"]) == ("bad", False)
    assert "[apns.'com.example.app']" in apns["next"]
    assert (stream["channel"], stream["verdict"]) == ("websocket", "unknown")
    assert found["call_sid"] in ended.err, "people are told on the other stream"


async def test_device_that_is_not_there_or_has_no_channels_is_refused_in_one_line(
    shared_relay: ForkedRelay,
) -> None:
    (await push_test(shared_relay, "nobody")).must_say_in_one_line("there is no device nobody")
    async with http_of(shared_relay) as http:
        (await http.put("/v1/devices/mute", json={"identity": "mute"})).raise_for_status()
    (await push_test(shared_relay, "mute")).must_say_in_one_line("no channels", "/v1/devices/mute")
    (await push_test(shared_relay, "bad id!")).must_say_in_one_line("bad id!", "must be")


PHONE = ChannelAnswer(kind="apns", app="com.example.app", environment="production")
ANDROID = ChannelAnswer(kind="fcm", app="com.example.app")
STREAM = ChannelAnswer(kind="websocket")
STATION = ChannelAnswer(kind="mqtt")


def report(
    channel: ChannelAnswer,
    state: DeliveryState | None,
    detail: str = "",
    *,
    attempts: int = 0,
    user: UserState = UserState.INVITING,
    is_over: bool = False,
) -> ChannelReport:
    delivery = None
    if state is not None:
        delivery = DeliveryAnswer(
            device_id="phone",
            channel=channel.kind,
            app=channel.app,
            event_id="CA1-1",
            state=state,
            detail=detail,
            attempts=attempts,
            latency_ms=412,
        )
    return report_channel(channel, delivery, user, is_over=is_over)


async def test_what_apple_and_google_took_is_well_and_says_what_to_do_if_it_stays_silent() -> None:
    apns = report(PHONE, "sent", "5f1e")
    assert apns.took
    assert apns.settled
    assert apns.finding.condition is Condition.GOOD
    assert apns.finding.what == ("apns com.example.app (production): Apple took it (apns-id 5f1e)")
    assert "If the phone does not ring" in apns.finding.mend
    assert report(ANDROID, "sent").finding.what == "fcm com.example.app: Google took it"


async def test_what_the_device_confirmed_is_beyond_doubt() -> None:
    confirmed = report(PHONE, "received")
    assert (confirmed.took, confirmed.settled, confirmed.finding.mend) == (True, True, "")
    assert "confirmed it after 412 ms" in confirmed.finding.what


@pytest.mark.parametrize(
    ("channel", "detail", "next_step"),
    [
        (PHONE, "BadDeviceToken", "sandbox"),
        (PHONE, "Apple said: Unregistered (410)", "install it again"),
        (PHONE, "403 ExpiredProviderToken", "NTP"),
        (ANDROID, "FCM 404: NOT_FOUND Requested entity was not found.", "install it again"),
        (ANDROID, "FCM 404: NOT_FOUND ...: check project_id of the FCM app a.b", "project_id"),
        (ANDROID, "FCM 403: PERMISSION_DENIED SenderId mismatch", "google-services.json"),
        (ANDROID, "FCM 403: PERMISSION_DENIED Permission denied", "role Firebase"),
        (ANDROID, "something new", "relay's log"),
        (PHONE, "", "relay's log"),
    ],
)
async def test_refusal_is_explained_by_its_name_with_what_to_do(
    channel: ChannelAnswer, detail: str, next_step: str
) -> None:
    refused = report(channel, "refused", detail)
    assert (refused.took, refused.settled) == (False, True)
    assert refused.finding.condition is Condition.BAD
    assert detail in refused.finding.what
    assert next_step in refused.finding.mend


async def test_delivery_that_is_owed_is_waited_for_and_in_the_end_is_bad() -> None:
    fresh = report(PHONE, "owed")
    assert (fresh.settled, fresh.finding.condition) == (False, Condition.UNKNOWN)
    trying = report(PHONE, "owed", "503 ServiceUnavailable", attempts=2)
    assert (trying.settled, trying.finding.condition) == (False, Condition.UNKNOWN)
    assert "2 attempts: 503 ServiceUnavailable: Apple is overloaded" in trying.finding.what
    for attempts in (0, 2):
        late = report(PHONE, "owed", "", attempts=attempts, is_over=True)
        assert (late.took, late.settled, late.finding.condition) == (False, True, Condition.BAD)
    expired = report(PHONE, "expired", "TooManyRequests")
    assert (expired.settled, expired.finding.condition) == (True, Condition.BAD)
    assert "before the invite ran out" in expired.finding.what


@pytest.mark.parametrize(
    ("channel", "user", "took"),
    [
        (STATION, UserState.INVITING, True),
        (STREAM, UserState.INVITING, False),
        (STREAM, UserState.NOT_YET_RECEIVED, False),
        (STREAM, UserState.RECEIVED, True),
        (PHONE, UserState.RECEIVED, False),
    ],
)
async def test_channel_of_which_nothing_is_kept_took_the_call_where_that_can_be_known(
    channel: ChannelAnswer, user: UserState, took: bool
) -> None:
    shown = report(channel, None, user=user)
    assert (shown.took, shown.settled) == (took, True)


async def test_no_reason_is_part_of_another_so_that_each_is_found_by_its_own_name() -> None:
    for kind, reasons in (("apns", APNS), ("fcm", FCM)):
        channel = ChannelAnswer.model_validate({"kind": kind, "app": "com.example.app"})
        for name, reason in reasons.items():
            said = report(channel, "refused", f"it said {(reason.words or (name,))[0]}.").finding
            assert (said.mend, reason.meaning in said.what) == (reason.next_step, True)
