"""Who may ring whom: the rules alone, and in front of calls, invitations and joins on a real relay."""

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import Connection

from bellwire.config.call_policy import PolicySettings
from bellwire.push.calls.policy import CallPolicy
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.groups import put_group
from bellwire.signaling.identifiers import Identity
from tests.push.support import (
    Running,
    assert_problem,
    fresh,
    listening,
    on_both_stores_in_full,
    states,
)

in_module = pytest.mark.asyncio(loop_scope="module")

POLICY = {
    "default": "deny",
    "rules": [
        {"from": ["banned"], "to": ["*"], "allow": False},
        {"from": ["lobby"], "to": ["group:office"], "allow": True},
        {"from": ["group:office"], "to": ["group:office", "client:lobby"], "allow": True},
        {"from": ["*"], "to": ["porter"], "allow": True},
    ],
}


def allow(*rules: tuple[str, str, bool], default: str = "deny") -> PolicySettings:
    return PolicySettings.model_validate(
        {
            "default": default,
            "rules": [
                {"from": from_.split(), "to": to.split(), "allow": allows}
                for from_, to, allows in rules
            ],
        }
    )


@pytest.mark.parametrize(
    ("policy", "lets_through"),
    [
        (PolicySettings(), "ann bert eve"),
        (allow(), ""),
        (allow(("lobby", "ann", True)), "ann"),
        (allow(("other", "ann", True)), ""),
        (allow(("lobby", "eve", False), default="allow"), "ann bert"),
        (allow(("*", "ann", False), ("lobby", "*", True)), "bert eve"),
        (allow(("lobby", "*", True), ("*", "ann", False)), "ann bert eve"),
        (allow(("lobby", "group:office", True)), "ann bert"),
        (allow(("group:doors", "eve", True)), "eve"),
        (allow(("group:office", "eve", True)), ""),
        (allow(("lobby", "group:nobody", True)), ""),
        (allow(("eve ann lobby", "bert eve", True)), "bert eve"),
    ],
    ids=str,
)
async def test_the_first_rule_that_fits_counts_and_the_default_where_none_does(
    each_database: Database, policy: PolicySettings, lets_through: str
) -> None:
    def groups(connection: Connection) -> None:
        put_group(connection, "office", [Identity("ann"), Identity("bert")])
        put_group(connection, "doors", [Identity("lobby")])

    await each_database.write(groups)
    counted: list[str] = []
    wanted = [Identity(name) for name in ("ann", "bert", "eve")]
    denied = await each_database.write(
        lambda c: CallPolicy(policy, counted.append).denied(c, Identity("lobby"), wanted)
    )
    assert " ".join(name for name in wanted if name not in denied) == lets_through
    assert counted == (["policy"] if denied else [])


@pytest.mark.parametrize(
    "bad",
    [
        {"default": "perhaps"},
        {"rules": [{"from": ["a"], "to": ["b"]}]},
        {"rules": [{"from": [], "to": ["b"], "allow": True}]},
        {"rules": [{"from": ["group:"], "to": ["b"], "allow": True}]},
        {"rules": [{"from": ["a b"], "to": ["b"], "allow": True}]},
        {"rules": [{"from": ["a"], "to": ["b"], "allow": True, "also": 1}]},
    ],
    ids=str,
)
def test_rules_that_say_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicySettings.model_validate(bad)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"BELLWIRE_POLICY": json.dumps(POLICY)}


class House:
    """People with devices on a relay with a policy, and their tokens."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.ann, self.bert, self.eve = fresh("ann"), fresh("bert"), fresh("eve")

    async def open(self) -> None:
        for name in (self.ann, self.bert, self.eve, "lobby", "porter", "banned"):
            await self.running.register(name)
        members = {"members": [self.ann, self.bert]}
        (await self.running.http.put("/v1/groups/office", json=members)).raise_for_status()

    async def calls(self, who: str, to: object, **more: Any) -> httpx.Response:  # noqa: ANN401
        body = {"to": to, "timeout": 600, **more}
        token = await self.running.token(who)
        return await self.running.http.post("/v1/calls", json=body, headers=token)

    async def does(self, who: str, sid: str, operation: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        url = f"/v1/calls/{sid}/{operation}"
        return await self.running.http.post(url, json=body, headers=await self.running.token(who))

    async def refusals(self) -> float:
        line = 'bellwire_refused_total{reason="policy"} '
        text = (await self.running.http.get("/metrics")).text
        return sum(float(row.removeprefix(line)) for row in text.splitlines() if line in row)


@pytest.fixture
def house(running: Running) -> House:
    return House(running)


def reasons(answer: dict[str, Any]) -> dict[str, str]:
    return {one["identity"]: one["reason"] for one in answer["error_invitees"]}


@in_module
@on_both_stores_in_full
async def test_a_call_that_the_policy_denies_is_refused_in_words_and_nothing_is_made(
    house: House,
) -> None:
    await house.open()
    before, counted = house.running.tables(), await house.refusals()
    for who, to in (("lobby", house.eve), (house.ann, house.eve), ("banned", "porter")):
        problem = assert_problem(await house.calls(who, [to]), 403, "forbidden")
        assert f"does not let {who} ring {to}" in problem["detail"]
        assert "[policy]" in problem["detail"]
        assert reasons(problem) == {to: "forbidden"}
    # Nor does it tell who there is.
    assert_problem(await house.calls("lobby", [fresh("nobody")]), 403, "forbidden")
    assert house.running.tables() == before
    assert await house.refusals() == counted + 4


@in_module
async def test_those_who_may_be_rung_ring_and_the_others_come_back_as_forbidden(
    house: House,
) -> None:
    await house.open()
    answer = await house.calls("lobby", [house.ann, house.eve, "porter"])
    assert answer.status_code == 201, answer.text
    assert states(answer.json()).keys() == {"lobby", house.ann, "porter"}
    assert reasons(answer.json()) == {house.eve: "forbidden"}
    missing = fresh("missing")
    await house.running.http.put("/v1/groups/office", json={"members": [house.bert, missing]})
    group = await house.calls("lobby", {"group": "office"})
    assert reasons(group.json()) == {missing: "unknown"}
    # Who has left the group may no longer be rung, from that moment on.
    assert_problem(await house.calls("lobby", [house.ann]), 403, "forbidden")
    only_missing = assert_problem(await house.calls("lobby", [missing, house.eve]), 404)
    assert reasons(only_missing) == {missing: "unknown", house.eve: "forbidden"}


@in_module
async def test_a_device_over_mqtt_is_held_to_the_policy_and_a_server_is_not(
    house: House,
) -> None:
    await house.open()
    phone = fresh("phone")
    async with listening(house.running, phone, house.eve) as device:
        answer = await device.ask({"operation": "invite", "to": [house.ann]})
        assert (answer["status"], answer["problem"]["type"]) == (403, "/problems/forbidden")
        assert (await device.ask({"operation": "invite", "to": ["porter"]}))["status"] == 201
    await house.running.called(house.ann, **{"from": house.eve})
    await house.running.called(house.eve)


@in_module
async def test_who_is_in_a_call_invites_only_whom_it_may_ring(house: House) -> None:
    await house.open()
    sid = (await house.calls(house.ann, [house.bert], mode="advanced")).json()["call_sid"]
    refused = await house.does(house.ann, sid, "invite", to=[house.eve])
    assert house.ann in assert_problem(refused, 403, "forbidden")["detail"]
    more = await house.does(house.ann, sid, "invite", to=[house.eve, "lobby", house.bert])
    assert more.status_code == 200, more.text
    assert states(more.json()).keys() == {house.ann, house.bert, "lobby"}
    assert reasons(more.json()) == {house.eve: "forbidden"}
    by_server = await house.running.do(sid, "invite", identity=house.ann, to=[house.eve])
    assert states(by_server.json())[house.eve] == "Inviting"
    assert reasons(by_server.json()) == {}


@in_module
async def test_a_sid_alone_lets_nobody_into_a_call_who_may_not_ring_all_who_are_in_it(
    house: House,
) -> None:
    await house.open()
    sid = (await house.calls(house.ann, [house.bert], mode="advanced")).json()["call_sid"]
    refused = await house.does(house.eve, sid, "join")
    assert f"{house.eve} ring {house.ann}" in assert_problem(refused, 403, "forbidden")["detail"]
    assert states(await house.running.call(sid)).keys() == {house.ann, house.bert}
    assert (await house.does("lobby", sid, "join")).status_code == 200
    # Who has a place in it comes back as ever; and a server lets in whom it likes.
    assert (await house.does("lobby", sid, "quit")).status_code == 200
    assert (await house.does("lobby", sid, "join")).status_code == 200
    assert (await house.running.do(sid, "join", identity=house.eve)).status_code == 200
