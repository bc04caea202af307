"""`/v1/calls` of a real relay: what it answers, and what reaches the devices."""

import asyncio
import re
from datetime import datetime

import pytest

from tests.push.support import (
    Running,
    assert_problem,
    fresh,
    listening,
    on_both_stores_in_full,
    states,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]

CALL_FIELDS = {
    "call_sid",
    "state",
    "mode",
    "call_type",
    "from",
    "custom_parameters",
    "created_at",
    "expires_at",
    "users",
    "error_invitees",
}
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"BELLWIRE_DEVICE_INVITES_PER_S": "1000"}  # one test calls somebody a hundred times


async def test_a_call_made_by_json_has_exactly_the_shape_that_clients_rely_on(
    running: Running,
) -> None:
    alice, bob, nobody, silent = map(fresh, ("alice", "bob", "nobody", "silent"))
    await running.register(bob)
    await running.http.put(f"/v1/devices/{silent}", json={"identity": silent, "channels": []})
    answer = await running.http.post(
        "/v1/calls",
        json={
            "from": alice,
            "to": [bob, nobody, f"client:{silent}"],
            "call_type": "video",
            "timeout": 30,
            "custom_parameters": {"z": "ä b&=%+#", "a": "", "z2": "1"},
            "extended_data": "x" * 100,
        },
    )
    assert answer.status_code == 201
    call = answer.json()
    assert call.keys() >= CALL_FIELDS
    assert re.fullmatch("CA[0-9a-f]{32}", call["call_sid"])
    assert (call["state"], call["mode"], call["call_type"]) == ("ringing", "common", "video")
    assert call["from"] == alice
    assert list(call["custom_parameters"].items()) == [("z", "ä b&=%+#"), ("a", ""), ("z2", "1")]
    assert RFC_3339.fullmatch(call["created_at"]) and RFC_3339.fullmatch(call["expires_at"])
    life = datetime.fromisoformat(call["expires_at"]) - datetime.fromisoformat(call["created_at"])
    assert life.total_seconds() == 30
    for user in call["users"]:
        assert user.keys() >= {"identity", "state", "extended_data", "main_device"}
    assert states(call) == {alice: "Accepted", bob: "Inviting"}
    assert call["error_invitees"] == [
        {"identity": nobody, "reason": "unknown"},
        {"identity": silent, "reason": "no_device"},
    ]
    assert await running.call(call["call_sid"]) == call
    await running.do(call["call_sid"], "cancel")


async def test_a_call_made_by_twiml_gives_each_client_its_own_parameters(running: Running) -> None:
    alice, bob, carol = map(fresh, ("alice", "bob", "carol"))
    async with listening(running, bob) as at_bob, listening(running, carol) as at_carol:
        answer = await running.http.post(
            "/v1/calls",
            content=f"""<?xml version="1.0" encoding="UTF-8"?>
              <Response><Dial callerId="client:{alice}" timeout="20" answerOnBridge="true">
                <Client><Identity>{bob}</Identity>
                  <Parameter name="door" value="front &amp; ü"/><Parameter name="all" value="1"/>
                </Client>
                <Client>{carol}<Parameter name="all" value="1"/></Client>
              </Dial></Response>""".encode(),
            headers={"Content-Type": "text/xml; charset=utf-8"},
        )
        assert answer.status_code == 201, answer.text
        call = answer.json()
        assert call["from"] == alice
        assert call["custom_parameters"] == {"all": "1"}
        to_bob = await at_bob.until("call.received")
        to_carol = await at_carol.until("call.received")
        assert to_bob["custom_parameters"] == {"door": "front & ü", "all": "1"}
        assert to_carol["custom_parameters"] == {"all": "1"}
        assert (to_bob["from"], to_bob["to"]) == (f"client:{alice}", f"client:{bob}")
        assert to_bob["expires_at"] == call["expires_at"]
        assert to_carol["call_sid"] == call["call_sid"]
        await running.do(call["call_sid"], "cancel")


async def test_listing_pages_from_the_newest_to_the_end_and_shows_a_token_only_its_own(
    running: Running,
) -> None:
    bob, carol = fresh("bob"), fresh("carol")
    await running.register(bob)
    await running.register(carol)
    made = [await running.called(bob) for _ in range(5)]
    others = [await running.called(carol) for _ in range(2)]
    as_bob = await running.token(bob)
    newest_first = made[::-1]

    for asking, query in ((as_bob, ""), ({}, f"&identity={bob}")):
        pages, cursor = [], 0
        while True:
            answer = await running.http.get(
                f"/v1/calls?count=2&next={cursor}{query}", headers=asking
            )
            page = answer.json()
            assert page.keys() >= {"calls", "next"}
            pages.append([call["call_sid"] for call in page["calls"]])
            if (cursor := page["next"]) == 0:
                break
        assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]

    whole = (await running.http.get("/v1/calls?count=5", headers=as_bob)).json()
    assert (len(whole["calls"]), whole["next"]) == (5, 0)
    of_all = (await running.http.get("/v1/calls?count=7")).json()
    assert [call["call_sid"] for call in of_all["calls"]] == [*others[::-1], *newest_first]
    empty = await running.http.get("/v1/calls", headers=await running.token(fresh("dave")))
    assert empty.json() == {"calls": [], "next": 0}
    assert_problem(await running.http.get(f"/v1/calls?identity={carol}", headers=as_bob), 403)


async def test_a_count_over_100_counts_as_100(running: Running) -> None:
    bob = fresh("bob")
    await running.register(bob)
    await asyncio.gather(*(running.called(bob) for _ in range(101)))
    page = (await running.http.get(f"/v1/calls?identity={bob}&count=1000")).json()
    assert len(page["calls"]) == 100
    rest = (await running.http.get(f"/v1/calls?identity={bob}&next={page['next']}")).json()
    assert (len(rest["calls"]), rest["next"]) == (1, 0)
    for count in ("0", "-1", "x"):
        assert_problem(await running.http.get(f"/v1/calls?count={count}"), 422)
