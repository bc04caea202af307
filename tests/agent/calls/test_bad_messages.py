"""What reaches the call topic and makes no sense: it is logged and ignored, and the agent works on."""

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from bellwire.agent.calls.call import CallStatus
from bellwire.signaling.calls.events import event_document
from tests.agent.desk import Desk
from tests.agent.scripted_relay import fresh_sid, invite

pytestmark = pytest.mark.asyncio(loop_scope="module")


def spoiled(**changes: Any) -> bytes:  # noqa: ANN401 - JSON
    """An invite with something wrong in it; None takes a member out."""
    document = json.loads(event_document(invite(fresh_sid()))) | changes
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


NONSENSE: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"ring, please",
    "half a document": spoiled()[:60],
    "no object": b"[1, 2]",
    "null": b"null",
    "no UTF-8": b'{"event": "call.received", "id": "\xff\xfe"}',
    "binary": bytes(range(256)),
    "deeply nested": b"[" * 20_000 + b"]" * 20_000,
    "unknown event": spoiled(event="call.transferred"),
    "no event": spoiled(event=None),
    "no SID": spoiled(call_sid=None),
    "a SID that is none": spoiled(call_sid="CA123"),
    "a SID with a topic in it": spoiled(call_sid="CA/../#"),
    "no id": spoiled(id=None),
    "no deadline": spoiled(expires_at=None),
    "a deadline without time zone": spoiled(expires_at="2030-01-01T00:00:00"),
    "a deadline beyond all years": spoiled(expires_at="99999-01-01T00:00:00Z"),
    "parameters that are no strings": spoiled(custom_parameters={"a": 1}),
    "parameters that are a list": spoiled(custom_parameters=["a"]),
    "an unpaired surrogate": spoiled(title="\ud800"),
    "75 kB of nothing, all that the broker passes": b"x" * 75_000,
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_is_logged_and_the_next_invite_rings(desk: Desk, what: str) -> None:
    sid = fresh_sid()
    with capture_logs() as logs:
        await desk.relay.say_raw(NONSENSE[what])
        await desk.relay.say(invite(sid))
        await desk.until(sid, CallStatus.PENDING)
    said = [line for line in logs if line["event"] == "event not understood"]
    assert [line["log_level"] for line in said] == ["error"]
    assert desk.rings == 1


async def test_an_event_of_a_newer_relay_is_understood_as_far_as_it_is_known(desk: Desk) -> None:
    await desk.relay.say_raw(spoiled(mood="friendly", mode="advanced", payload=None))
    await desk.station.ringer(active=True)


async def test_nonsense_does_not_stop_the_ringing(desk: Desk) -> None:
    await desk.ring()
    for nonsense in NONSENSE.values():
        await desk.relay.say_raw(nonsense)
    await desk.has_taken_all()
    assert desk.station.fingers.is_ringing
    assert desk.rings == 1


async def test_the_longest_parameters_that_fit_ring(desk: Desk) -> None:
    parameters = {f"p{number}": "é" * 200 for number in range(160)}
    sid = fresh_sid()
    await desk.relay.say(invite(sid, custom_parameters=parameters))
    assert (await desk.until(sid, CallStatus.PENDING)).custom_parameters == parameters


async def test_a_message_with_a_secret_in_it_is_not_repeated_in_the_log(desk: Desk) -> None:
    with capture_logs() as logs:
        await desk.relay.say_raw(b'{"event": "call.received", "password": "hunter2"}')
        await desk.has_taken_all()
    assert [line for line in logs if line["event"] == "event not understood"]
    assert "hunter2" not in repr(logs)
