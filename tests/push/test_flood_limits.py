"""Floods are refused: token buckets of apps and devices, alone and in front of calls."""

import time
from collections.abc import Sequence

import httpx
import pytest

from push.flood_limits import FloodLimits
from push.store.device_rows import ChannelRow, DeviceRow
from signaling.errors import TooManyRequests
from signaling.identifiers import DeviceId, Identity
from tests.push.support import Running, assert_problem, fresh, on_both_stores


class Seconds:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def device(name: str, *apps: str, identity: str | None = None) -> DeviceRow:
    """A device with the FCM channel of each app, or with MQTT alone."""
    channels = [ChannelRow("fcm", app, token=f"{name} {app}") for app in apps]
    return DeviceRow(
        DeviceId(name), Identity(identity or name), tuple(channels or [ChannelRow("mqtt")])
    )


def take(limits: FloodLimits, *devices: DeviceRow) -> None:
    with limits.taken(devices):
        pass


def refused(limits: FloodLimits, *devices: DeviceRow) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as flood, limits.taken(devices):
        pytest.fail("it was let through")
    return flood.value


def how_many(limits: FloodLimits, *devices: DeviceRow) -> int:
    """How many calls are let through now."""
    count = 0
    while True:
        try:
            take(limits, *devices)
        except TooManyRequests:
            return count
        count += 1


def test_a_device_takes_half_a_minutes_calls_at_once_and_then_its_rate(seconds: Seconds) -> None:
    limits = FloodLimits(1000, 2, seconds)
    bob = device("bob")
    assert how_many(limits, bob) == 60
    for passed, calls in ((0.5, 1), (0.25, 0), (0.25, 1), (10, 20), (3600, 60)):
        seconds.now += passed
        assert how_many(limits, bob) == calls


def test_an_app_takes_five_seconds_invites_at_once_and_then_its_rate(seconds: Seconds) -> None:
    limits = FloodLimits(100, 1000, seconds)
    phones = [device(f"phone-{n}", "com.example.app") for n in range(10)]
    assert how_many(limits, *phones) == 50
    seconds.now += 0.1
    assert how_many(limits, *phones) == 1
    take(limits, device("tablet", "com.example.other"))  # another app has a bucket of its own
    take(limits, device("desk"))  # and who is not pushed to needs none


def test_a_refusal_says_whose_device_or_which_app_it_is_and_when_to_ask_again(
    seconds: Seconds,
) -> None:
    limits = FloodLimits(10, 2, seconds)
    bob = device("phone-7", identity="bob")
    how_many(limits, bob)
    flood = refused(limits, device("carol"), bob)
    assert "bob" in flood.detail and "at most 2 calls per second" in flood.detail
    assert "phone-7" not in flood.detail and "carol" not in flood.detail
    assert flood.retry_after_s == pytest.approx(0.5)
    phones = [device(f"p{n}", "com.example.app") for n in range(50)]
    take(limits, *phones)
    flood = refused(limits, *phones[:20])
    assert "com.example.app" in flood.detail and "10 invites per second" in flood.detail
    assert flood.retry_after_s == pytest.approx(2)
    seconds.now += 2
    take(limits, *phones[:20])


def test_all_is_taken_or_nothing(seconds: Seconds) -> None:
    limits = FloodLimits(1000, 2, seconds)
    bob, carol = device("bob"), device("carol", "app")
    how_many(limits, bob)
    for _ in range(100):
        refused(limits, carol, bob)
    assert how_many(limits, carol) == 60


def test_what_fails_for_another_reason_costs_nothing(seconds: Seconds) -> None:
    limits = FloodLimits(1, 2, seconds)
    phone = device("phone", "app")
    for _ in range(100):
        with pytest.raises(ValueError, match="too large"), limits.taken([phone]):
            raise ValueError("too large")
    assert how_many(limits, phone) == 5


def test_who_wants_more_than_a_bucket_holds_has_it_from_a_full_one(seconds: Seconds) -> None:
    limits = FloodLimits(1, 1000, seconds)  # the app's bucket holds 5
    team = [device(f"phone-{n}", "app") for n in range(9)]
    take(limits, *team)
    assert refused(limits, team[0]).retry_after_s == pytest.approx(5)
    seconds.now += 5
    take(limits, team[0])
    assert refused(limits, *team).retry_after_s == pytest.approx(5)
    seconds.now += 5
    take(limits, *team)


def test_a_rate_below_one_in_a_burst_still_lets_one_through(seconds: Seconds) -> None:
    limits = FloodLimits(0.01, 0.001, seconds)
    phone = device("phone", "app")
    assert how_many(limits, phone) == 1
    assert refused(limits, phone).retry_after_s == pytest.approx(1000)
    seconds.now += 1000
    assert how_many(limits, phone) == 1


def test_buckets_that_are_full_again_are_forgotten(seconds: Seconds) -> None:
    limits = FloodLimits(1000, 2, seconds)
    for second in range(300):
        for n in range(100):
            take(limits, device(f"device-{second}-{n}"))
        seconds.now += 1
        assert len(limits) <= 1100
    how_many(limits, device("flooded"))
    for n in range(5000):
        take(limits, device(f"other-{n}"))
    assert how_many(limits, device("flooded")) == 0


def test_a_call_to_nine_people_is_weighed_in_microseconds() -> None:
    limits = FloodLimits(1e9, 1e9)
    team = [device(f"phone-{n}", "app") for n in range(9)]

    def round_s(rounds: int = 2000) -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            take(limits, *team)
        return (time.perf_counter() - started) / rounds

    assert (
        min(round_s() for _ in range(5)) < 100e-6
    )  # 15 us on a machine that has nothing else to do


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"BELLWIRE_DEVICE_INVITES_PER_S": "0.1"}  # three at once, and one each ten seconds


async def invite(running: Running, to: Sequence[str], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"to": list(to), "timeout": 600, "mode": "advanced"}
    return await running.http.post("/v1/calls", json=body, headers=headers)


@pytest.mark.asyncio(loop_scope="module")
@on_both_stores
async def test_a_flood_of_calls_is_answered_429_and_makes_nothing(running: Running) -> None:
    bob, carol = fresh("bob"), fresh("carol")
    await running.register(bob)
    await running.register(carol)
    sids = [(await invite(running, [bob], f"key-{bob}-{n}")).json()["call_sid"] for n in range(3)]
    before = running.tables()
    answer = await invite(running, [carol, bob], "another key")
    problem = assert_problem(answer, 429, "too-many-requests")
    assert bob in problem["detail"] and carol not in problem["detail"]
    assert 5 < problem["retry_after_s"] <= 10
    assert answer.headers["Retry-After"] in {str(seconds) for seconds in range(6, 11)}
    # A call that was made is not made again, so asking for it anew costs nothing.
    for n, sid in enumerate(sids):
        again = await invite(running, [bob], f"key-{bob}-{n}")
        assert (again.status_code, again.json()["call_sid"]) == (201, sid)
        assert again.headers["Idempotent-Replayed"] == "true"
    # Nor does an invite that is refused for another reason, or one of who is invited already.
    for _ in range(5):
        too_long = {"to": [carol], "push": {"payload": "x" * 4000}, "extended_data": "x" * 4000}
        assert_problem(await running.http.post("/v1/calls", json=too_long), 413, "too-large")
        assert (await running.do(sids[0], "invite", to=[bob])).status_code == 200
    assert running.tables() == before
    # Who is invited into a call under way counts as who is called; carol has lost nothing.
    for sid in sids:
        assert (await running.do(sid, "invite", to=[carol])).status_code == 200
    dave = fresh("dave")
    await running.register(dave)
    sid = (await invite(running, [dave])).json()["call_sid"]
    before = running.tables()
    assert_problem(await running.do(sid, "invite", to=[carol]), 429, "too-many-requests")
    assert running.tables() == before
