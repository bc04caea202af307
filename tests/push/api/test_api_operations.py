"""What is done to a call over HTTP, by a server with its API key and by an app with its token."""

from dataclasses import dataclass, replace

import httpx
import pytest
import pytest_asyncio

from bellwire.signaling.errors import ERROR_TABLE
from tests.push.support import Running, assert_problem, fresh, on_both_stores, states

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]

Body = dict[str, str]
NO_CALL = "CA" + "0" * 32
OPERATIONS = ("received", "accept", "reject", "cancel", "quit", "end")


@dataclass(frozen=True)
class User:
    """Somebody on one device, who acts by a token or through a server."""

    running: Running
    identity: str
    by_token: bool
    device: str | None = None

    async def do(self, sid: str, operation: str, **body: str) -> httpx.Response:
        path = f"/v1/calls/{sid}/{operation}"
        if self.by_token:
            headers = await self.running.token(self.identity, self.device)
            return await self.running.http.post(path, json=body or None, headers=headers)
        who = {"identity": self.identity}
        if self.device is not None and operation != "cancel":
            who["device_id"] = self.device
        return await self.running.http.post(path, json=who | body)


@dataclass(frozen=True)
class Users:
    """A caller and two who are called, each with a device."""

    running: Running
    alice: User
    bob: User
    carol: User

    async def call_after(self, *steps: tuple[User, str], mode: str = "common") -> str:
        """Alice's call to bob and carol, after some operations."""
        invitees = (self.bob.identity, self.carol.identity)
        sid = await self.running.called(*invitees, mode=mode, **{"from": self.alice.identity})
        for user, operation in steps:
            answer = await user.do(sid, operation)
            assert answer.status_code == 200, answer.text
        return sid


@pytest_asyncio.fixture(loop_scope="module", params=[True, False], ids=["token", "api-key"])
async def users(running: Running, request: pytest.FixtureRequest) -> Users:
    names = [fresh(name) for name in ("alice", "bob", "carol")]
    for name in names:
        await running.register(name)
    return Users(running, *(User(running, name, request.param, name) for name in names))


async def test_every_operation_moves_its_user_where_the_state_allows_it(users: Users) -> None:
    alice, bob, carol = users.alice, users.bob, users.carol
    sid = await users.call_after((carol, "reject"))
    steps: list[tuple[User, str, Body, str, str]] = [
        (bob, "received", {}, "ringing", "Received"),
        (bob, "accept", {"extended_data": "coming"}, "open", "Accepted"),
        (bob, "quit", {}, "ended", "Quit"),
    ]
    for user, operation, body, call_state, state in steps:
        answer = await user.do(sid, operation, **body)
        assert answer.status_code == 200, answer.text
        call = answer.json()
        assert (call["state"], states(call)[user.identity]) == (call_state, state), operation
        assert call == await users.running.call(sid)
    of_bob = next(user for user in call["users"] if user["identity"] == bob.identity)
    assert (of_bob["main_device"], of_bob["extended_data"]) == (bob.device, "coming")

    sid = await users.call_after((carol, "reject"))
    call = (await bob.do(sid, "reject", status="busy")).json()
    assert (call["state"], states(call)[bob.identity]) == ("ended", "Rejected")

    call = (await alice.do(await users.call_after(), "cancel")).json()
    assert call["state"] == "ended"
    assert states(call) == {
        alice.identity: "Accepted",
        bob.identity: "Canceled",
        carol.identity: "Canceled",
    }


async def test_a_common_call_goes_on_until_fewer_than_two_are_left(users: Users) -> None:
    bob, carol = users.bob, users.carol
    for leaving in ("quit", "end"):  # a common call is not one user's to end: it is a hang-up
        sid = await users.call_after((bob, "accept"), (carol, "accept"))
        call = (await bob.do(sid, leaving)).json()
        assert (call["state"], states(call)[bob.identity]) == ("open", "Quit")
        call = (await carol.do(sid, leaving)).json()
        assert (call["state"], states(call)[carol.identity]) == ("ended", "Quit")


async def test_an_advanced_call_outlives_a_hang_up_and_is_ended_for_all_by_one(
    users: Users,
) -> None:
    alice, bob, carol = users.alice, users.bob, users.carol
    sid = await users.call_after((bob, "accept"), (bob, "quit"), mode="advanced")
    assert (await users.running.call(sid))["state"] == "open"
    assert (await carol.do(sid, "accept")).json()["state"] == "open"
    assert (await alice.do(sid, "end")).json()["state"] == "ended"


async def test_an_operation_repeated_by_the_same_device_changes_nothing(users: Users) -> None:
    alice, bob, carol = users.alice, users.bob, users.carol
    ways = {
        "received": ((bob, "received"),),
        "accept": ((bob, "received"), (bob, "accept")),
        "reject": ((bob, "reject"),),
        "quit in an open call": ((bob, "accept"), (carol, "accept"), (bob, "quit")),
        "quit that ended it": ((carol, "reject"), (bob, "accept"), (bob, "quit")),
        "end in common mode": ((carol, "reject"), (bob, "accept"), (bob, "end")),
        "cancel": ((alice, "cancel"),),
    }
    for name, steps in ways.items():
        sid = await users.call_after(*steps)
        before, first = users.running.tables(), await users.running.call(sid)
        user, operation = steps[-1]
        again = await user.do(sid, operation)
        assert (again.status_code, again.json()) == (200, first), name
        assert users.running.tables() == before, name

    sid = await users.call_after((bob, "accept"), (bob, "end"), mode="advanced")
    before = users.running.tables()
    assert (await bob.do(sid, "end")).status_code == 200
    assert users.running.tables() == before


async def test_every_operation_is_refused_with_its_state_where_the_state_does_not_allow_it(
    users: Users,
) -> None:
    alice, bob, carol = users.alice, users.bob, users.carol
    other_bob = replace(bob, device=fresh("other"))
    await users.running.register(str(other_bob.device), bob.identity)
    ringing = await users.call_after()
    accepted = await users.call_after((bob, "accept"))
    rejected = await users.call_after((bob, "reject"))
    left = await users.call_after((bob, "accept"), (carol, "accept"), (bob, "quit"))
    ended = await users.call_after((alice, "cancel"))
    over = await users.call_after((bob, "accept"), (alice, "cancel"), (bob, "quit"))
    table: list[tuple[str, User, str, str, int]] = [
        *((ringing, bob, operation, "Inviting", 31403) for operation in ("quit", "end")),
        *((ringing, alice, operation, "Accepted", 31403) for operation in ("accept", "reject")),
        (accepted, bob, "reject", "Accepted", 31403),
        (accepted, other_bob, "accept", "Accepted", 31403),
        (left, alice, "cancel", "open", 31403),
        (over, alice, "cancel", "ended", 31487),
        (over, bob, "accept", "ended", 31487),
        (rejected, other_bob, "reject", "Rejected", 31403),
        *((rejected, bob, op, "Rejected", 31403) for op in ("received", "accept", "quit", "end")),
        *((left, bob, operation, "Quit", 31403) for operation in ("received", "accept", "reject")),
        *((ended, carol, op, "ended", 31008) for op in ("received", "accept", "reject", "quit")),
    ]
    before = users.running.tables()
    for sid, user, operation, state, code in table:
        answer = await user.do(sid, operation)
        problem = assert_problem(answer, 409, "operation-refused")
        assert (problem["operation"], problem["state"]) == (operation, state), problem
        assert problem["code"] == code, problem
        kind = ERROR_TABLE[code]
        assert problem["explanation"] == kind.explanation
        assert (problem["causes"], problem["solutions"]) == ([*kind.causes], [*kind.solutions])
    assert users.running.tables() == before


@pytest.mark.parametrize("operation", ["quit", "end"])
async def test_another_device_than_the_main_one_is_refused_and_a_server_is_not(
    users: Users, operation: str
) -> None:
    bob = users.bob
    tablet = replace(bob, device=fresh("tablet"))
    await users.running.register(str(tablet.device), bob.identity)
    sid = await users.call_after((bob, "accept"))
    before = users.running.tables()
    if bob.by_token:
        problem = assert_problem(await tablet.do(sid, operation), 409, "operation-refused")
        assert (problem["operation"], problem["state"]) == (operation, "Accepted")
        assert (problem["reason"], problem["code"]) == ("not-main-device", 31403)
        assert users.running.tables() == before
        assert (await tablet.do(sid, "join")).status_code == 200
    assert (await tablet.do(sid, operation)).status_code == 200


async def test_only_its_users_reach_a_call_and_nobody_a_call_that_is_not(users: Users) -> None:
    running, bob = users.running, users.bob
    eve = User(running, fresh("eve"), bob.by_token)
    sid = await users.call_after()
    before = running.tables()
    for operation in OPERATIONS:
        problem = assert_problem(await eve.do(sid, operation), 403, "forbidden")
        assert problem["code"] == 31403
        problem = assert_problem(await bob.do(NO_CALL, operation), 404, "call-not-found")
        assert problem["code"] == 31481
        assert_problem(await bob.do("CA123", operation), 422, "invalid-input")
    # bob is in the call, but only its caller may withdraw it
    assert_problem(await bob.do(sid, "cancel"), 403, "forbidden")
    assert running.tables() == before


async def test_a_call_is_shown_to_its_users_and_to_servers_only(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    path = f"/v1/calls/{sid}"
    as_eve = await running.token(fresh("eve"))
    assert (await running.http.get(path)).json()["call_sid"] == sid
    as_bob = await running.token(bob)
    assert (await running.http.get(path, headers=as_bob)).json()["call_sid"] == sid
    assert_problem(await running.http.get(path, headers=as_eve), 403, "forbidden")
    answer = await running.http.get(f"/v1/calls/{NO_CALL}", headers=as_eve)
    assert_problem(answer, 404, "call-not-found")
    assert_problem(await running.http.get("/v1/calls/CA123", headers=as_eve), 422)


async def test_a_token_acts_as_nobody_but_itself(running: Running) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    await running.register(bob)
    sid = await running.called(bob, **{"from": alice})
    as_alice, as_bob = await running.token(alice), await running.token(bob, bob)
    before = running.tables()
    for headers, body in (
        (as_alice, {"identity": bob}),
        (as_bob, {"identity": alice}),
        (as_bob, {"device_id": "another"}),
        (as_bob, {"identity": bob, "device_id": "another"}),
    ):
        for operation in ("received", "accept", "reject", "ignore", "join", "quit"):
            answer = await running.http.post(
                f"/v1/calls/{sid}/{operation}", json=body, headers=headers
            )
            assert_problem(answer, 403, "forbidden")
    answer = await running.http.post("/v1/calls", json={"from": alice, "to": [bob]}, headers=as_bob)
    assert_problem(answer, 403, "forbidden")
    assert running.tables() == before


async def test_a_token_of_no_one_device_may_name_the_device_it_acts_on(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    answer = await running.http.post(
        f"/v1/calls/{sid}/accept", json={"device_id": bob}, headers=await running.token(bob)
    )
    assert answer.json()["users"][0]["main_device"] == bob


async def test_a_server_says_as_whom_it_acts_except_to_cancel_or_end_a_call(
    running: Running,
) -> None:
    bob = fresh("bob")
    await running.register(bob)
    sid = await running.called(bob)
    before = running.tables()
    for operation in ("received", "accept", "reject", "ignore", "join", "quit"):
        problem = assert_problem(await running.do(sid, operation), 403, "forbidden")
        assert "give `identity`" in problem["detail"]
    assert running.tables() == before
    assert (await running.do(sid, "cancel")).json()["state"] == "ended"
    other = await running.called(bob)
    assert (await running.do(other, "end")).json()["state"] == "ended"
