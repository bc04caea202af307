"""`/v1/groups`, and calls to a group."""

import pytest

from tests.push.support import (
    Running,
    assert_problem,
    fresh,
    listening,
    on_both_stores,
    states,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores]


async def put(running: Running, name: str, *members: str) -> None:
    answer = await running.http.put(f"/v1/groups/{name}", json={"members": list(members)})
    assert answer.is_success, answer.text


async def test_a_group_is_made_read_changed_and_removed(running: Running) -> None:
    name = fresh("kitchen")
    path = f"/v1/groups/{name}"
    made = await running.http.put(path, json={"members": ["bob", "client:alice"]})
    assert (made.status_code, made.json()) == (201, {"name": name, "members": ["bob", "alice"]})
    assert (await running.http.get(path)).json() == made.json()

    changed = await running.http.put(path, json={"members": ["carol"]})
    assert (changed.status_code, changed.json()) == (200, {"name": name, "members": ["carol"]})
    again = await running.http.put(path, json={"members": ["carol"]})
    assert (again.status_code, again.json()) == (200, changed.json())

    await put(running, f"{name}.a", "bob")
    listed = (await running.http.get("/v1/groups")).json()["groups"]
    assert [group for group in listed if group["name"].startswith(name)] == [
        {"name": name, "members": ["carol"]},
        {"name": f"{name}.a", "members": ["bob"]},
    ]

    assert (await running.http.delete(path)).status_code == 204
    assert_problem(await running.http.get(path), 404, "not-found")
    assert_problem(await running.http.delete(path), 404, "not-found")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("kitchen", {}),
        ("kitchen", {"members": []}),
        ("kitchen", {"members": "bob"}),
        ("kitchen", {"members": ["bob", "client:bob"]}),
        ("kitchen", {"members": ["two words"]}),
        ("kitchen", {"members": [f"bob-{n}" for n in range(257)]}),
        ("kitchen", {"members": ["bob"], "more": 1}),
        ("-kitchen", {"members": ["bob"]}),
        ("k" * 65, {"members": ["bob"]}),
        ("k%20k", {"members": ["bob"]}),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_group_that_cannot_be_is_refused(
    running: Running, name: str, body: dict[str, object]
) -> None:
    before = running.tables()
    assert_problem(await running.http.put(f"/v1/groups/{name}", json=body), 422, "invalid-input")
    assert running.tables() == before


async def test_groups_are_for_servers_only(running: Running) -> None:
    name = fresh("kitchen")
    await put(running, name, "bob")
    as_bob = await running.token("bob")
    before = running.tables()
    path = f"/v1/groups/{name}"
    for asked in (
        running.http.get("/v1/groups", headers=as_bob),
        running.http.get(path, headers=as_bob),
        running.http.put(path, json={"members": ["eve"]}, headers=as_bob),
        running.http.delete(path, headers=as_bob),
    ):
        assert_problem(await asked, 403, "forbidden")
    assert running.tables() == before


async def test_a_call_to_a_group_rings_all_its_members_but_the_caller(running: Running) -> None:
    alice, bob, carol, nobody = map(fresh, ("alice", "bob", "carol", "nobody"))
    name = fresh("kitchen")
    await put(running, name, bob, alice, nobody, carol)
    async with (
        listening(running, alice) as at_alice,
        listening(running, bob) as at_bob,
        listening(running, carol) as at_carol,
    ):
        asked = await at_alice.ask({"operation": "invite", "to": {"group": name}, "timeout": 600})
        assert asked["status"] == 201, asked
        call = asked["call"]
        assert states(call) == {alice: "Accepted", bob: "Inviting", carol: "Inviting"}
        assert call["error_invitees"] == [{"identity": nobody, "reason": "unknown"}]
        for device in (at_bob, at_carol):
            assert (await device.until("call.received"))["call_sid"] == call["call_sid"]
        created = await at_alice.until("call.created")
        assert [invitee["identity"] for invitee in created["invitees"]] == [bob, carol]
        # The call has its users: what becomes of the group is nothing to it.
        await put(running, name, carol)
        assert (await running.http.delete(f"/v1/groups/{name}")).status_code == 204
        assert states(await running.call(call["call_sid"])) == states(call)
        assert at_alice.seen("call.received") == 0


async def test_a_server_calls_a_group_on_nobodys_behalf_with_its_newest_members(
    running: Running,
) -> None:
    bob, carol, name = fresh("bob"), fresh("carol"), fresh("kitchen")
    await running.register(bob)
    await running.register(carol)
    await put(running, name, bob)
    await put(running, name, carol, bob)
    made = await running.http.post("/v1/calls", json={"to": {"group": name}})
    assert list(states(made.json()).items()) == [(carol, "Inviting"), (bob, "Inviting")]


async def test_a_group_that_cannot_be_called_is_refused_and_says_why(running: Running) -> None:
    alice, name = fresh("alice"), fresh("kitchen")
    crowd = [fresh("member") for _ in range(31)]
    for member in crowd:
        await running.register(member)
    await put(running, name, alice)
    await put(running, f"{name}-crowd", *crowd, alice)
    await put(running, f"{name}-thirty", *crowd[:30], alice)
    before = running.tables()
    for group, status, slug in (
        (f"{name}-none", 404, "not-found"),
        (name, 404, "nobody-to-call"),  # its only member is the caller
        (f"{name}-crowd", 422, "invalid-input"),
        ("not a name", 422, "invalid-input"),
    ):
        body = {"from": alice, "to": {"group": group}}
        assert_problem(await running.http.post("/v1/calls", json=body), status, slug)
    assert running.tables() == before
    body = {"from": alice, "to": {"group": f"{name}-thirty"}}
    made = await running.http.post("/v1/calls", json=body)
    assert len(made.json()["users"]) == 31
