"""Floods are refused: token buckets of apps and devices, alone and in front of calls."""

import time
from collections.abc import Sequence

import httpx
import pytest

from bellwire.push.calls.rate_limits import Caller, RateLimits
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.signaling.errors import TooManyRequests
from bellwire.signaling.identifiers import DeviceId, Identity
from tests.push.support import Running, assert_problem, fresh, on_both_stores_in_full


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


A_SERVER = Caller()


def own(name: str) -> Caller:
    """Somebody who calls by a token of their own."""
    return Caller(name, itself=True)


def take(limits: RateLimits, *devices: DeviceRow, by: Caller = A_SERVER) -> None:
    with limits.taken(devices, by):
        pass


def refused(limits: RateLimits, *devices: DeviceRow, by: Caller = A_SERVER) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as flood, limits.taken(devices, by):
        pytest.fail("it was let through")
    return flood.value


def how_many(limits: RateLimits, *devices: DeviceRow, by: Caller = A_SERVER) -> int:
    """How many calls are let through now."""
    count = 0
    while True:
        try:
            take(limits, *devices, by=by)
        except TooManyRequests:
            return count
        count += 1


def test_a_device_takes_half_a_minutes_calls_at_once_and_then_its_rate(seconds: Seconds) -> None:
    limits = RateLimits(1000, 2, seconds)
    bob = device("bob")
    assert how_many(limits, bob) == 60
    for passed, calls in ((0.5, 1), (0.25, 0), (0.25, 1), (10, 20), (3600, 60)):
        seconds.now += passed
        assert how_many(limits, bob) == calls


def test_who_calls_ten_times_a_second_uses_up_a_share_and_silences_nobody(
    seconds: Seconds,
) -> None:
    counted: list[str] = []
    limits = RateLimits(1000, 2, seconds, on_refused=counted.append)
    doorbell = device("doorbell")
    mallory, ann = own("mallory"), own("ann")
    let_through = 0
    for tick in range(960):
        seconds.now += 0.1
        try:
            take(limits, doorbell, by=mallory)
        except TooManyRequests:
            let_through -= 1
        let_through += 1
        if tick % 10 == 0:
            take(limits, doorbell, by=ann)  # 96 of 96
    assert 60 < let_through < 60 + 2 * 96 + 2
    assert set(counted) == {"caller-invites"}
    flood = refused(limits, doorbell, by=mallory)
    assert "doorbell is called by mallory too often: at most 2 calls per second" in flood.detail
    assert 0 < flood.retry_after_s <= 0.5


def test_names_that_a_server_makes_up_use_up_the_servers_share_and_leave_others_theirs(
    seconds: Seconds,
) -> None:
    counted: list[str] = []
    limits = RateLimits(1000, 2, seconds, on_refused=counted.append)
    doorbell = device("doorbell")
    let_through = sum(how_many(limits, doorbell, by=Caller(f"name-{n}")) for n in range(200))
    assert let_through == 180
    assert set(counted) == {"caller-invites", "device-invites"}
    assert "by servers too often" in refused(limits, doorbell, by=Caller("ann")).detail
    for n in range(60):
        take(limits, doorbell, by=own(f"neighbour-{n}"))
    # Whoever they are: what a device is called in all has an end.
    assert "at most 8 calls" in refused(limits, doorbell, by=own("one-more")).detail


def test_a_name_that_a_server_gives_uses_up_nothing_of_its_own_calls(seconds: Seconds) -> None:
    limits = RateLimits(1000, 2, seconds)
    doorbell = device("doorbell")
    assert how_many(limits, doorbell, by=Caller("ann")) == 60
    assert how_many(limits, doorbell, by=own("ann")) == 60


def test_who_rings_the_whole_house_is_held_to_ten_devices_at_a_time(seconds: Seconds) -> None:
    counted: list[str] = []
    limits = RateLimits(1000, 2, seconds, on_refused=counted.append)
    house = [device(f"flat-{n}") for n in range(50)]
    assert sum(how_many(limits, flat, by=own("mallory")) for flat in house) == 600
    assert "at most 20 calls of devices" in refused(limits, house[-1], by=own("mallory")).detail
    assert set(counted) == {"caller-invites"}
    assert how_many(limits, house[0], by=own("ann")) == 60


def test_an_emergency_caller_is_never_refused_and_costs_nobody_a_call(seconds: Seconds) -> None:
    limits = RateLimits(1, 2, seconds, emergency_callers=["fire"])
    doorbell = device("doorbell", "app")
    for by in (own("fire"), Caller("fire")):
        for _ in range(1000):
            take(limits, doorbell, by=by)
    assert how_many(limits, device("doorbell"), by=own("ann")) == 60
    assert how_many(limits, device("flat", "app"), by=own("ann")) == 5  # what an app's bucket holds


def test_a_flood_under_ever_new_names_leaves_no_more_buckets_than_calls_let_through(
    seconds: Seconds,
) -> None:
    limits = RateLimits(1000, 2, seconds)
    doorbell = device("doorbell")
    let_through = 0
    for n in range(100_000):
        if n % 1000 == 0:
            seconds.now += 1
        try:
            take(limits, doorbell, by=Caller(f"name-{n}"))
        except TooManyRequests:
            continue
        let_through += 1
        assert len(limits) <= 300
    assert let_through < 180 + 6 * 101


def test_an_app_takes_five_seconds_invites_at_once_and_then_its_rate(seconds: Seconds) -> None:
    limits = RateLimits(100, 1000, seconds)
    phones = [device(f"phone-{n}", "com.example.app") for n in range(10)]
    assert how_many(limits, *phones) == 50
    seconds.now += 0.1
    assert how_many(limits, *phones) == 1
    take(limits, device("tablet", "com.example.other"))  # another app has a bucket of its own
    take(limits, device("desk"))  # and who is not pushed to needs none


def test_a_refusal_says_whose_device_or_which_app_it_is_and_when_to_ask_again(
    seconds: Seconds,
) -> None:
    limits = RateLimits(10, 2, seconds)
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
    limits = RateLimits(1000, 2, seconds)
    bob, carol = device("bob"), device("carol", "app")
    how_many(limits, bob)
    for _ in range(100):
        refused(limits, carol, bob)
    assert how_many(limits, carol) == 60


def test_what_fails_for_another_reason_costs_nothing(seconds: Seconds) -> None:
    limits = RateLimits(1, 2, seconds)
    phone = device("phone", "app")
    for _ in range(100):
        with pytest.raises(ValueError, match="too large"), limits.taken([phone]):
            raise ValueError("too large")
    assert how_many(limits, phone) == 5


def test_who_wants_more_than_a_bucket_holds_has_it_from_a_full_one(seconds: Seconds) -> None:
    limits = RateLimits(1, 1000, seconds)  # the app's bucket holds 5
    team = [device(f"phone-{n}", "app") for n in range(9)]
    take(limits, *team)
    assert refused(limits, team[0]).retry_after_s == pytest.approx(5)
    seconds.now += 5
    take(limits, team[0])
    assert refused(limits, *team).retry_after_s == pytest.approx(5)
    seconds.now += 5
    take(limits, *team)


def test_a_rate_below_one_in_a_burst_still_lets_one_through(seconds: Seconds) -> None:
    limits = RateLimits(0.01, 0.001, seconds)
    phone = device("phone", "app")
    assert how_many(limits, phone) == 1
    assert refused(limits, phone).retry_after_s == pytest.approx(1000)
    seconds.now += 1000
    assert how_many(limits, phone) == 1


def test_buckets_that_are_full_again_are_forgotten(seconds: Seconds) -> None:
    limits = RateLimits(1000, 2, seconds)
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
    limits = RateLimits(1e9, 1e9)
    team = [device(f"phone-{n}", "app") for n in range(9)]

    def round_s(rounds: int = 2000) -> float:
        started = time.thread_time()
        for _ in range(rounds):
            take(limits, *team)
        return (time.thread_time() - started) / rounds

    assert min(round_s() for _ in range(5)) < 100e-6  # 15 us on a quiet machine


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    # Three at once, and one each ten seconds.
    return {"BELLWIRE_DEVICE_INVITES_PER_S": "0.1", "BELLWIRE_EMERGENCY_CALLERS": '["fire"]'}


async def invite(running: Running, to: Sequence[str], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"to": list(to), "timeout": 600, "mode": "advanced"}
    return await running.http.post("/v1/calls", json=body, headers=headers)


def refusals(exposition: str, reason: str) -> float:
    line = f'bellwire_refused_total{{reason="{reason}"}} '
    return sum(float(one.removeprefix(line)) for one in exposition.splitlines() if line in one)


async def count_of(running: Running, reason: str) -> float:
    return refusals((await running.http.get("/metrics")).text, reason)


async def ring(running: Running, to: str, headers: dict[str, str]) -> httpx.Response:
    body = {"to": [to], "timeout": 600}
    return await running.http.post("/v1/calls", json=body, headers=headers)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_neighbour_who_floods_a_doorbell_is_refused_in_words_and_nobody_else_is(
    running: Running,
) -> None:
    doorbell, mallory, ann = fresh("doorbell"), fresh("mallory"), fresh("ann")
    await running.register(doorbell)
    tokens = {name: await running.token(name) for name in (mallory, ann)}
    before = await count_of(running, "caller-invites")
    answers = [await ring(running, doorbell, tokens[mallory]) for _ in range(20)]
    refused_ones = [answer for answer in answers if answer.status_code == 429]
    assert len(refused_ones) >= 16  # three at once
    problem = assert_problem(refused_ones[0], 429, "too-many-requests")
    assert f"a device of {doorbell} is called by {mallory} too often" in problem["detail"]
    assert int(refused_ones[0].headers["Retry-After"]) >= 1
    assert await count_of(running, "caller-invites") == before + len(refused_ones)
    for _ in range(3):
        assert (await ring(running, doorbell, tokens[ann])).status_code == 201


@pytest.mark.asyncio(loop_scope="module")
async def test_emergency_callers_of_the_settings_are_never_refused(running: Running) -> None:
    doorbell = fresh("doorbell")
    await running.register(doorbell)
    token = await running.token("fire")
    for _ in range(20):
        assert (await ring(running, doorbell, token)).status_code == 201


@pytest.mark.asyncio(loop_scope="module")
@on_both_stores_in_full
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
