"""How two devices agree on their sound through the relay: documents of `signaling.wire.media`, early and in
the call, to the devices that they are for, however long, and never in a push."""

import asyncio
from typing import Any

import pytest

from bellwire.push.channels.channel import Addressee
from bellwire.push.channels.mqtt import MESSAGE_LIMIT_BYTES as MQTT_LIMIT_BYTES
from bellwire.push.channels.payload import PushPayload
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.events import CallMessage, event_document
from bellwire.signaling.identifiers import IDENTITY_MAX_LENGTH, CallSid, DeviceId, Identity
from bellwire.signaling.wire.media import (
    MEDIA_SDP_MAX_LENGTH,
    MediaAnswer,
    MediaCandidate,
    MediaOffer,
)
from bellwire.signaling.wire.operations import MEDIA_LIMIT_BYTES
from tests.push.clock import START
from tests.push.streams import Stream, streaming
from tests.push.support import Device, Running, fresh, listening

in_module = pytest.mark.asyncio(loop_scope="module")

SDP = "a=x\r\n" * (MEDIA_SDP_MAX_LENGTH // 5)


async def send(
    by: Device | Stream, sid: str, to: str, document: MediaOffer | MediaAnswer | MediaCandidate
) -> dict[str, Any]:
    """A media document as a device sends it; the relay's answer."""
    content = document.model_dump(mode="json", exclude_none=True)
    operation = {"operation": "message", "call_sid": sid, "message_type": "media"}
    return await by.ask({**operation, "to": [to], "content": content})


async def hears(device: Device | Stream, sid: str) -> dict[str, Any]:
    """The content of the next media message."""
    event = await device.until("call.message", sid)
    assert event["message_type"] == "media"
    content: dict[str, Any] = event["content"]
    return content


@in_module
async def test_door_and_desk_agree_before_and_after_the_call_is_accepted(running: Running) -> None:
    lobby, alice = fresh("lobby"), fresh("alice")
    async with (
        listening(running, f"{lobby}-1", lobby) as door,
        listening(running, f"{alice}-desk", alice) as desk,
        streaming(running, f"{alice}-web", alice) as web,
    ):
        invite = {"operation": "invite", "to": [alice], "timeout": 600}
        sid = (await door.ask(invite))["call"]["call_sid"]
        await asyncio.gather(*(d.until("call.received", sid) for d in (desk, web)))

        # Early: a device that rings offers to listen, and the door answers that device.
        early = MediaOffer(session="e1", device_id=desk.name, sdp=SDP, early=True)
        assert (await send(desk, sid, lobby, early))["status"] == 200
        assert await hears(door, sid) == early.model_dump(mode="json", exclude_none=True)
        answer = MediaAnswer(session="e1", to_device=desk.name, sdp=SDP)
        assert (await send(door, sid, alice, answer))["status"] == 200
        for ringing in (desk, web):  # all that ring hear it; the others do not listen
            assert (await hears(ringing, sid))["to_device"] == desk.name

        # Accepted on the web: from now on the desk hears nothing.
        await web.ask({"operation": "accept", "call_sid": sid})
        await desk.until("call.cancelled", sid)
        offer = MediaOffer(session="s1", device_id=door.name, sdp=SDP)
        assert (await send(door, sid, alice, offer))["status"] == 200
        assert await hears(web, sid) == offer.model_dump(mode="json", exclude_none=True)
        answer = MediaAnswer(session="s1", device_id=web.name, to_device=door.name, sdp=SDP)
        assert (await send(web, sid, lobby, answer))["status"] == 200
        assert (await hears(door, sid))["session"] == "s1"
        candidate = MediaCandidate(session="s1", device_id=web.name, candidate="")
        assert (await send(web, sid, lobby, candidate))["status"] == 200
        assert (await hears(door, sid))["candidate"] == ""
        await web.ask({"operation": "quit", "call_sid": sid})
        await door.until("call.ended", sid)
        assert desk.seen("call.message", sid) == 1
        late = await send(door, sid, alice, offer)
        assert (late["status"], late["problem"]["state"]) == (409, "ended")


def test_longest_media_message_fits_its_channel_whoever_says_it() -> None:
    content = "x" * (MEDIA_LIMIT_BYTES - 2)
    sid = "CA" + "0" * 32
    event = CallMessage(
        id=f"{sid}-KX{'0' * 32}",
        call_sid=sid,
        at=START,
        from_=f"client:{chr(0x1F514) * IDENTITY_MAX_LENGTH}",
        message_type="media",
        content_type="application/json",
        content=content,
        voice_event_sid=f"KX{'0' * 32}",
    )
    assert len(event_document(event).encode()) <= MQTT_LIMIT_BYTES


def test_no_message_is_pushed() -> None:
    phone = DeviceRow(DeviceId("phone"), Identity("bob"), (ChannelRow("fcm", "app", None, "t"),))
    sid = CallSid("CA" + "0" * 32)
    event = CallMessage(
        id=f"{sid}-x",
        call_sid=sid,
        at=START,
        message_type="media",
        content_type="application/json",
        content={},
        voice_event_sid="x",
    )
    call = Call(sid, None, (), START, 60)
    payload = PushPayload("AC", lambda *_: "token")
    assert payload.keys(event, Addressee(call, phone, phone.channels[0])) is None
