"""What a device asks over its live connection: every operation is understood, and what is none is
refused with the place that is wrong."""

import json

import pytest
from pydantic import ValidationError

from bellwire.signaling.calls.calls import Mode, RejectStatus
from bellwire.signaling.wire.operations import (
    EXTENDED_DATA_MAX_LENGTH,
    OPERATIONS,
    DeviceAccept,
    DeviceCancel,
    DeviceDoorLockedOut,
    DeviceDoorNotVerified,
    DeviceEnd,
    DeviceFeedback,
    DeviceIceServers,
    DeviceIgnore,
    DeviceInvite,
    DeviceInviteMore,
    DeviceJoin,
    DeviceKeys,
    DeviceList,
    DeviceMessage,
    DeviceOperation,
    DeviceQuit,
    DeviceReceived,
    DeviceReject,
    DeviceRoom,
    DeviceShow,
    FeedbackIssue,
    GroupReference,
    parse_device_operation,
)

SID = "CA0123456789abcdef0123456789abcdef"
KX = "KX0123456789abcdef0123456789abcdef"


def places(refused: ValidationError) -> set[str]:
    """The members of the document that the refusal names, as `quit.call_sid`."""
    return {
        ".".join(str(part) for part in error["loc"]) for error in refused.errors(include_url=False)
    }


UNDERSTOOD: list[tuple[dict[str, object], DeviceOperation]] = [
    ({"operation": "invite", "to": ["bob"]}, DeviceInvite(operation="invite", to=["bob"])),
    (
        {"operation": "invite", "to": {"group": "house"}, "mode": "advanced",
         "check_not_received": True, "idempotency_key": "k"},
        DeviceInvite(operation="invite", to=GroupReference(group="house"), mode=Mode.ADVANCED,
                     check_not_received=True, idempotency_key="k"),
    ),
    ({"operation": "received"}, DeviceReceived(operation="received", call_sid=SID)),
    (
        {"operation": "accept", "extended_data": "x"},
        DeviceAccept(operation="accept", call_sid=SID, extended_data="x"),
    ),
    (
        {"operation": "reject", "status": "busy", "extended_data": "x"},
        DeviceReject(operation="reject", call_sid=SID, status=RejectStatus.BUSY, extended_data="x"),
    ),
    ({"operation": "ignore"}, DeviceIgnore(operation="ignore", call_sid=SID)),
    (
        {"operation": "cancel", "extended_data": "x"},
        DeviceCancel(operation="cancel", call_sid=SID, extended_data="x"),
    ),
    (
        {"operation": "invite_more", "to": ["client:zoe"], "timeout": 5},
        DeviceInviteMore(operation="invite_more", call_sid=SID, to=["zoe"], timeout=5),
    ),
    (
        {"operation": "join", "extended_data": "x"},
        DeviceJoin(operation="join", call_sid=SID, extended_data="x"),
    ),
    (
        {"operation": "quit", "extended_data": "x"},
        DeviceQuit(operation="quit", call_sid=SID, extended_data="x"),
    ),
    (
        {"operation": "end", "extended_data": "x"},
        DeviceEnd(operation="end", call_sid=SID, extended_data="x"),
    ),
    (
        {"operation": "message", "content": {"a": [1, None]}},
        DeviceMessage(operation="message", call_sid=SID, content={"a": [1, None]}),
    ),
    (
        {"operation": "message", "content": "x", "to": ["bob"], "voice_event_sid": KX,
         "message_type": "webrtc"},
        DeviceMessage(operation="message", call_sid=SID, content="x", to=["bob"],
                      voice_event_sid=KX, message_type="webrtc"),
    ),
    (
        {"operation": "feedback", "score": 2, "issue": "echo"},
        DeviceFeedback(operation="feedback", call_sid=SID, score=2, issue=FeedbackIssue.ECHO),
    ),
    ({"operation": "feedback"}, DeviceFeedback(operation="feedback", call_sid=SID)),
    ({"operation": "room", "sdp": "v=0"}, DeviceRoom(operation="room", call_sid=SID, sdp="v=0")),
    ({"operation": "show"}, DeviceShow(operation="show", call_sid=SID)),
    ({"operation": "list", "count": 500}, DeviceList(operation="list", count=500)),
    ({"operation": "list", "next": 7}, DeviceList(operation="list", count=20, next=7)),
    ({"operation": "ice_servers"}, DeviceIceServers(operation="ice_servers")),
    ({"operation": "keys"}, DeviceKeys(operation="keys")),
    (
        {"operation": "door_locked_out", "caller": "client:eve", "doors": ["front"],
         "wrong_codes": 3, "locked_for_s": 300, "lock_out": 2},
        DeviceDoorLockedOut(operation="door_locked_out", call_sid=SID, caller="eve",
                            doors=("front",), wrong_codes=3, locked_for_s=300, lock_out=2),
    ),
    (
        {"operation": "door_not_verified", "caller": "client:eve"},
        DeviceDoorNotVerified(operation="door_not_verified", call_sid=SID, caller="eve"),
    ),
]  # fmt: skip
OF_NO_CALL = ("invite", "list", "ice_servers", "keys")


def test_examples_hold_every_operation_of_a_device() -> None:
    assert {type(expected) for _, expected in UNDERSTOOD} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("document", "expected"),
    UNDERSTOOD,
    ids=[str(document["operation"]) for document, _ in UNDERSTOOD],
)
def test_operation_of_a_device_is_understood(
    document: dict[str, object], expected: DeviceOperation
) -> None:
    if document["operation"] not in OF_NO_CALL:
        document = {**document, "call_sid": SID}
    parsed = parse_device_operation(json.dumps(document).encode())
    assert type(parsed) is type(expected)
    assert parsed == expected


@pytest.mark.parametrize("document", [document for document, _ in UNDERSTOOD])
@pytest.mark.parametrize("member", ["identity", "device_id"])
def test_device_speaks_for_nobody_but_itself(document: dict[str, object], member: str) -> None:
    if document["operation"] not in OF_NO_CALL:
        document = {**document, "call_sid": SID}
    with pytest.raises(ValidationError) as refused:
        parse_device_operation(json.dumps({**document, member: "mallory"}))
    assert {place.rsplit(".", 1)[-1] for place in places(refused.value)} == {member}


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (b"", ""),
        (b"nope", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b"[]", ""),
        (b"null", ""),
        (b"{}", ""),
        (b'{"operation": "dance"}', ""),
        (b'{"operation": "quit"}', "quit.call_sid"),
        (b'{"operation": "quit", "call_sid": "CA12"}', "quit.call_sid"),
        (b'{"operation": "quit", "call_sid": "%s\\n"}' % SID.encode(), "quit.call_sid"),
        (b'{"operation": "quit", "call_sid": "%s", "x": 1}' % SID.encode(), "quit.x"),
        (b'{"operation": "received", "call_sid": "%s", "device_id": "x"}' % SID.encode(),
         "received.device_id"),
        (b'{"operation": "reject", "call_sid": "%s", "status": "asleep"}' % SID.encode(),
         "reject.status"),
        (b'{"operation": "invite"}', "invite.to"),
        (b'{"operation": "feedback", "call_sid": "%s", "score": 6}' % SID.encode(),
         "feedback.score"),
        (b'{"operation": "message", "call_sid": "%s"}' % SID.encode(), "message.content"),
        (b'{"operation": "message", "call_sid": "%s", "content": "%s"}'
         % (SID.encode(), b"x" * 5000), "message.content"),
        (b'{"operation": "message", "call_sid": "%s", "content": 1, "voice_event_sid": "x"}'
         % SID.encode(), "message.voice_event_sid"),
        (b'{"operation": "message", "call_sid": "%s", "content": %s}'
         % (SID.encode(), b"[" * 1000 + b"]" * 1000), ""),
        (b'{"operation": "message", "content": 1}', "message.call_sid"),
        (b'{"operation": "invite_more", "call_sid": "%s", "to": ["a", "a"]}' % SID.encode(),
         "invite_more.to"),
        (b'{"operation": "invite_more", "call_sid": "%s", "to": []}' % SID.encode(),
         "invite_more.to"),
        (b'{"operation": "invite_more", "to": ["a"]}', "invite_more.call_sid"),
        (b'{"operation": "ignore", "call_sid": "%s", "extended_data": "x"}' % SID.encode(),
         "ignore.extended_data"),
        (b'{"operation": "join", "call_sid": "%s", "extended_data": "%s"}'
         % (SID.encode(), b"x" * (EXTENDED_DATA_MAX_LENGTH + 1)), "join.extended_data"),
        (b'{"operation": "end", "call_sid": null}', "end.call_sid"),
        (b'{"operation": "feedback", "call_sid": "%s", "issue": "smell"}' % SID.encode(),
         "feedback.issue"),
        (b'{"operation": "list", "count": 0}', "list.count"),
        (b'{"operation": "list", "next": -1}', "list.next"),
        (b'{"operation": "invite", "to": ["b"], "timeout": 0}', "invite.timeout"),
        (b'{"operation": "invite", "to": ["b"], "idempotency_key": ""}', "invite.idempotency_key"),
    ],
)  # fmt: skip
def test_bad_operation_of_a_device_is_refused_with_the_place_that_is_wrong(
    document: bytes, place: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        parse_device_operation(document)
    assert places(refused.value) == {place}


def test_unknown_operation_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(ValidationError, match=r"'dance'.*'accept'"):
        parse_device_operation(b'{"operation": "dance"}')
