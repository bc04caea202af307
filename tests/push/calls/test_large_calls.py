"""Calls of more than ten, in common mode: who may be invited, and what the caller is told of them."""

import json
from datetime import UTC, datetime

import pytest

from bellwire.push.channels.mqtt import LIMIT_BYTES
from bellwire.signaling.calls.commands import Invitee, NewCall
from bellwire.signaling.calls.events import CallCreated, document_within, parse_event
from bellwire.signaling.calls.rules import create_call
from bellwire.signaling.identifiers import CallSid, Identity
from tests.push.streams import streaming
from tests.push.support import Running, assert_problem, fresh, listening

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"BELLWIRE_MAX_INVITEES": "100", "BELLWIRE_DEVICE_INVITES_PER_S": "1000"}


async def crowd(running: Running, count: int) -> list[str]:
    suffix = fresh("").replace("-", "")
    names = [f"{'of-a-long-name-' * 3}{number}-{suffix}" for number in range(count)]
    for name in names:
        await running.register(name)
    return names


async def test_a_hundred_are_invited_and_the_caller_is_told_how_many_where_the_list_is_too_long(
    running: Running,
) -> None:
    alice, stream, bob = fresh("alice"), fresh("stream"), fresh("bob")
    async with (
        listening(running, alice) as at_alice,
        streaming(running, stream, alice) as at_stream,
        listening(running, bob) as at_bob,
    ):
        to = [bob, *await crowd(running, 99)]
        sid = await running.called(*to, **{"from": alice})
        created = await at_alice.until("call.created", sid)
        assert (created["invitees"], created["error_invitees"]) == ([], [])
        assert (created["invitees_count"], created["error_invitees_count"]) == (100, 0)
        # A stream carries more, and the whole list.
        whole = await at_stream.until("call.created", sid)
        assert [one["identity"] for one in whole["invitees"]] == to
        assert "invitees_count" not in whole
        assert len((await running.call(sid))["users"]) == 101
        # Of a hundred who ring, each hears of itself alone, and the caller of all.
        for one in to[1:4]:
            assert (await running.do(sid, "reject", identity=one)).is_success
            changed = await at_alice.until("call.user_state_changed", sid)
            assert (changed["identity"], changed["state"]) == (one, "Rejected")
        await running.do(sid, "received", identity=bob)
        changed = await at_bob.until("call.user_state_changed", sid)
        assert (changed["identity"], changed["state"]) == (bob, "Received")
        await running.do(sid, "accept", identity=bob)
        await running.do(sid, "reject", identity=to[4])
        while (changed := await at_bob.until("call.user_state_changed", sid))["identity"] == bob:
            pass
        assert (changed["identity"], changed["state"]) == (to[4], "Rejected")
        cancelled = await running.do(sid, "cancel", to=to[5:])
        assert cancelled.json()["error_invitees"] == []
        assert (await running.do(sid, "end")).is_success


async def test_no_more_may_be_invited_than_the_relay_is_told(running: Running) -> None:
    to = await crowd(running, 101)
    answer = await running.http.put("/v1/groups/all-of-them", json={"members": to})
    assert answer.is_success, answer.text
    invite = {"to": {"group": "all-of-them"}}
    problem = assert_problem(
        await running.http.post("/v1/calls", json=invite), 422, "invalid-input"
    )
    assert "at most 100 invitees, not 101" in problem["detail"]


async def test_event_in_counts_is_read_by_who_knows_lists_alone() -> None:
    names = [Identity(f"{'of-a-long-name-' * 3}{number}") for number in range(100)]
    new = NewCall(
        CallSid("CA" + "0" * 32),
        Identity("alice"),
        tuple(Invitee(name, ("mqtt",)) for name in names),
        datetime(2026, 11, 21, tzinfo=UTC),
        60,
        unreachable=((Identity("nobody"), "unknown"),),
        max_invitees=100,
    )
    (created,) = (n.event for n in create_call(new).notices if isinstance(n.event, CallCreated))
    assert len(created.document.encode()) > LIMIT_BYTES
    shortened = document_within(created, LIMIT_BYTES)
    assert len(shortened.encode()) < 1000
    read = parse_event(shortened)
    assert isinstance(read, CallCreated)
    assert (read.invitees, read.error_invitees) == ((), ())
    assert (read.invitees_count, read.error_invitees_count) == (100, 1)
    assert (read.id, read.at) == (created.id, created.at)
    assert json.loads(document_within(created, 10**6)) == json.loads(created.document)
