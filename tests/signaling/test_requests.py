"""Requests: good bodies are understood, bad ones refused with the place that is wrong."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from signaling.calls import RejectStatus
from signaling.params import MAX_PARAMETERS
from signaling.requests import (
    DEFAULT_TIMEOUT_S,
    EXTENDED_DATA_MAX_LENGTH,
    DeviceAccept,
    DeviceCancel,
    DeviceInvite,
    DeviceQuit,
    DeviceReceived,
    DeviceReject,
    DeviceRequest,
    DeviceShow,
    GroupReference,
    InviteRequest,
    OperationRequest,
    RejectRequest,
    TokenRequest,
    parse_device_operation,
)

SID = "CA0123456789abcdef0123456789abcdef"
TOO_LONG = "x" * (EXTENDED_DATA_MAX_LENGTH + 1)


def read(model: type[BaseModel], body: object) -> Any:  # noqa: ANN401 - whichever model it is
    return model.model_validate_json(json.dumps(body))


def places(refused: ValidationError) -> set[str]:
    """The members of the body that the refusal names, as `push.title`."""
    return {
        ".".join(str(part) for part in error["loc"]) for error in refused.errors(include_url=False)
    }


def test_shortest_invite_has_the_defaults_of_the_specification() -> None:
    invite = read(InviteRequest, {"to": ["bob"]})
    assert invite.to == ["bob"]
    assert invite.timeout == DEFAULT_TIMEOUT_S == 60
    assert (invite.mode, invite.call_type, invite.from_) == ("common", "audio", None)
    assert (invite.custom_parameters, invite.extended_data) == ({}, "")
    assert invite.check_not_received is False
    assert (invite.push.title, invite.push.content, invite.push.payload) == (None, None, None)


def test_full_invite_is_understood() -> None:
    invite = read(
        InviteRequest,
        {
            "from": "client:alice",
            "to": ["client:bob", "carol"],
            "mode": "advanced",
            "call_type": "video",
            "timeout": 1.5,
            "custom_parameters": {"z": "1", "a": ""},
            "push": {"title": "Door", "content": "Alice", "payload": "{}"},
            "extended_data": "x",
            "check_not_received": True,
        },
    )
    assert (invite.from_, invite.to) == ("alice", ["bob", "carol"])
    assert (invite.mode, invite.call_type, invite.timeout) == ("advanced", "video", 1.5)
    assert list(invite.custom_parameters.items()) == [("z", "1"), ("a", "")]
    assert invite.push.title == "Door"
    assert invite.check_not_received is True


def test_invite_may_name_a_group() -> None:
    assert read(InviteRequest, {"to": {"group": "house.2"}}).to == GroupReference(group="house.2")


@pytest.mark.parametrize("timeout", [1, 600])
def test_shortest_and_longest_timeout_are_taken(timeout: int) -> None:
    assert read(InviteRequest, {"to": ["bob"], "timeout": timeout}).timeout == timeout


@pytest.mark.parametrize(
    ("model", "body", "place"),
    [
        (InviteRequest, {}, "to"),
        (InviteRequest, {"to": []}, "to"),
        (InviteRequest, {"to": "bob"}, "to"),
        (InviteRequest, {"to": None}, "to"),
        (InviteRequest, {"to": ["b b"]}, "to"),
        (InviteRequest, {"to": [""]}, "to"),
        (InviteRequest, {"to": [7]}, "to"),
        (InviteRequest, {"to": ["bob", "bob"]}, "to"),
        (InviteRequest, {"to": ["bob", "client:bob"]}, "to"),
        (InviteRequest, {"to": [f"u{i}" for i in range(11)]}, "to"),
        (InviteRequest, {"to": {"group": "a/b"}}, "to"),
        (InviteRequest, {"to": {"group": ""}}, "to"),
        (InviteRequest, {"to": {"group": "a\n"}}, "to"),
        (InviteRequest, {"to": {"group": "g", "x": 1}}, "to"),
        (InviteRequest, {"to": ["bob"], "from": ""}, "from"),
        (InviteRequest, {"to": ["bob"], "from": "al ice"}, "from"),
        (InviteRequest, {"to": ["bob"], "mode": "loud"}, "mode"),
        (InviteRequest, {"to": ["bob"], "call_type": "fax"}, "call_type"),
        (InviteRequest, {"to": ["bob"], "timeout": 0.5}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": 601}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": -1}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": float("nan")}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": float("inf")}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": "soon"}, "timeout"),
        (InviteRequest, {"to": ["bob"], "timeout": None}, "timeout"),
        (InviteRequest, {"to": ["bob"], "custom_parameters": {"a b": ""}}, "custom_parameters"),
        (InviteRequest, {"to": ["bob"], "custom_parameters": {"": ""}}, "custom_parameters"),
        (InviteRequest, {"to": ["bob"], "custom_parameters": {"a": 1}}, "custom_parameters.a"),
        (InviteRequest, {"to": ["bob"], "custom_parameters": ["a"]}, "custom_parameters"),
        (
            InviteRequest,
            {"to": ["bob"], "custom_parameters": {f"n{i}": "" for i in range(MAX_PARAMETERS + 1)}},
            "custom_parameters",
        ),
        (InviteRequest, {"to": ["bob"], "push": {"title": "x" * 257}}, "push.title"),
        (InviteRequest, {"to": ["bob"], "push": {"titel": "x"}}, "push.titel"),
        (InviteRequest, {"to": ["bob"], "extended_data": TOO_LONG}, "extended_data"),
        (InviteRequest, {"to": ["bob"], "extended_data": {"a": 1}}, "extended_data"),
        (InviteRequest, {"to": ["bob"], "colour": "red"}, "colour"),
        (OperationRequest, {"identity": "b b"}, "identity"),
        (OperationRequest, {"device_id": "a/b"}, "device_id"),
        (OperationRequest, {"device_id": "+"}, "device_id"),
        (OperationRequest, {"extended_data": TOO_LONG}, "extended_data"),
        (OperationRequest, {"status": "busy"}, "status"),
        (RejectRequest, {"status": "cancelled"}, "status"),
        (TokenRequest, {}, "identity"),
        (TokenRequest, {"identity": "bob", "ttl": 0}, "ttl"),
        (TokenRequest, {"identity": "bob", "ttl": 86_401}, "ttl"),
        (TokenRequest, {"identity": "bob", "device_id": "#"}, "device_id"),
        (DeviceRequest, {}, "identity"),
        (DeviceRequest, {"identity": "bob", "channels": [{"kind": "pigeon"}]}, "channels.0.kind"),
        (DeviceRequest, {"identity": "bob", "channels": [{}]}, "channels.0.kind"),
        (DeviceRequest, {"identity": "bob", "channels": [{"kind": "mqtt"}] * 2}, "channels"),
        (
            DeviceRequest,
            {"identity": "bob", "channels": [{"kind": "apns", "environment": "test"}]},
            "channels.0.environment",
        ),
    ],
)
def test_bad_body_is_refused_with_the_place_that_is_wrong(
    model: type[BaseModel], body: object, place: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        read(model, body)
    named = places(refused.value)
    # Of a choice of forms (`to`), each form's own complaint stands under the member.
    assert all(one == place or (place == "to" and one.startswith("to.")) for one in named), named


def test_caller_cannot_invite_itself_and_is_told_so() -> None:
    with pytest.raises(ValidationError, match="alice cannot call itself"):
        read(InviteRequest, {"from": "client:alice", "to": ["bob", "alice"]})


def test_caller_is_named_from_and_by_no_other_name_on_the_wire() -> None:
    with pytest.raises(ValidationError, match="from_"):
        read(InviteRequest, {"from_": "alice", "to": ["bob"]})


def test_bad_parameter_name_is_shown_in_the_refusal() -> None:
    with pytest.raises(ValidationError, match="first name"):
        read(InviteRequest, {"to": ["bob"], "custom_parameters": {"first name": "x"}})


def test_rejection_without_a_status_is_a_plain_one() -> None:
    assert read(RejectRequest, {}).status is RejectStatus.REJECTED
    assert read(RejectRequest, {"status": "busy"}).status is RejectStatus.BUSY


def test_same_kind_of_channel_may_stand_once_for_each_app() -> None:
    channels = [{"kind": "apns", "app": "a"}, {"kind": "apns", "app": "b"}]
    assert len(read(DeviceRequest, {"identity": "bob", "channels": channels}).channels) == 2


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"operation": "invite", "to": ["bob"]}, DeviceInvite(operation="invite", to=["bob"])),
        ({"operation": "received"}, DeviceReceived(operation="received", call_sid=SID)),
        (
            {"operation": "accept", "extended_data": "x"},
            DeviceAccept(operation="accept", call_sid=SID, extended_data="x"),
        ),
        (
            {"operation": "reject", "status": "busy"},
            DeviceReject(operation="reject", call_sid=SID, status=RejectStatus.BUSY),
        ),
        ({"operation": "cancel"}, DeviceCancel(operation="cancel", call_sid=SID)),
        ({"operation": "quit"}, DeviceQuit(operation="quit", call_sid=SID)),
        ({"operation": "show"}, DeviceShow(operation="show", call_sid=SID)),
    ],
)
def test_operation_of_a_device_is_understood(
    document: dict[str, object], expected: BaseModel
) -> None:
    if document["operation"] != "invite":
        document = {**document, "call_sid": SID}
    parsed = parse_device_operation(json.dumps(document).encode())
    assert type(parsed) is type(expected)
    assert parsed == expected


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
