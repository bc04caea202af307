"""Requests: good bodies are understood, bad ones refused with the place that is wrong."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.twi_params import MAX_PARAMETERS
from bellwire.signaling.wire.media import MEDIA_SDP_MAX_LENGTH, MediaOffer, parse_media
from bellwire.signaling.wire.operations import (
    DEFAULT_TIMEOUT_S,
    EXTENDED_DATA_MAX_LENGTH,
    MEDIA_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    CancelRequest,
    FeedbackIssue,
    FeedbackRequest,
    GroupReference,
    InviteMoreRequest,
    InviteRequest,
    MessageRequest,
    OperationRequest,
    RejectionStatus,
    RejectRequest,
)
from bellwire.signaling.wire.requests import (
    MAX_GROUP_MEMBERS,
    DeviceRequest,
    GroupRequest,
    TokenRequest,
)

KX = "KX0123456789abcdef0123456789abcdef"
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
        (InviteRequest, {"to": [f"u{i}" for i in range(101)]}, "to"),
        (CancelRequest, {"to": []}, "to"),
        (CancelRequest, {"to": ["bob", "client:bob"]}, "to"),
        (CancelRequest, {"to": [f"u{i}" for i in range(101)]}, "to"),
        (CancelRequest, {"to": "bob"}, "to"),
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
        (RejectRequest, {"status": "canceled"}, "status"),
        (InviteMoreRequest, {}, "to"),
        (InviteMoreRequest, {"to": []}, "to"),
        (InviteMoreRequest, {"to": "bob"}, "to"),
        (InviteMoreRequest, {"to": {"group": "house"}}, "to"),
        (InviteMoreRequest, {"to": ["b b"]}, "to"),
        (InviteMoreRequest, {"to": ["bob", "client:bob"]}, "to"),
        (InviteMoreRequest, {"to": [f"u{i}" for i in range(11)]}, "to"),
        (InviteMoreRequest, {"to": ["bob"], "timeout": 0.5}, "timeout"),
        (InviteMoreRequest, {"to": ["bob"], "timeout": 601}, "timeout"),
        (InviteMoreRequest, {"to": ["bob"], "timeout": float("nan")}, "timeout"),
        (InviteMoreRequest, {"to": ["bob"], "identity": "b b"}, "identity"),
        (InviteMoreRequest, {"to": ["bob"], "device_id": "a/b"}, "device_id"),
        (InviteMoreRequest, {"to": ["bob"], "mode": "advanced"}, "mode"),
        (MessageRequest, {}, "content"),
        (MessageRequest, {"content": "x" * (MESSAGE_LIMIT_BYTES - 1)}, "content"),
        (MessageRequest, {"content": "\N{BELL}" * 1025}, "content"),
        (MessageRequest, {"content": 1, "content_type": "text/plain"}, "content_type"),
        (MessageRequest, {"content": 1, "message_type": ""}, "message_type"),
        (MessageRequest, {"content": 1, "message_type": "x" * 65}, "message_type"),
        (MessageRequest, {"content": 1, "voice_event_sid": "KX12"}, "voice_event_sid"),
        (MessageRequest, {"content": 1, "voice_event_sid": KX + "\n"}, "voice_event_sid"),
        (MessageRequest, {"content": 1, "voice_event_sid": KX.upper()}, "voice_event_sid"),
        (MessageRequest, {"content": 1, "to": []}, "to"),
        (MessageRequest, {"content": 1, "to": ["b b"]}, "to"),
        (MessageRequest, {"content": 1, "to": [f"u{i}" for i in range(102)]}, "to"),
        (MessageRequest, {"content": 1, "from": "alice"}, "from"),
        (FeedbackRequest, {"score": 0}, "score"),
        (FeedbackRequest, {"score": 6}, "score"),
        (FeedbackRequest, {"score": 4.5}, "score"),
        (FeedbackRequest, {"score": 4, "issue": "smell"}, "issue"),
        (FeedbackRequest, {"score": 4, "identity": ""}, "identity"),
        (GroupRequest, {}, "members"),
        (GroupRequest, {"members": []}, "members"),
        (GroupRequest, {"members": ["bob", "client:bob"]}, "members"),
        (GroupRequest, {"members": ["b b"]}, "members"),
        (GroupRequest, {"members": [f"u{i}" for i in range(MAX_GROUP_MEMBERS + 1)]}, "members"),
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
    # Of a list or a choice of forms, the complaint stands under the member.
    assert named
    assert all(one == place or one.startswith(f"{place}.") for one in named), named


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
    assert read(RejectRequest, {}).status is RejectionStatus.REJECTED


def test_rejection_may_say_cancelled_as_the_caller_does_to_cancel() -> None:
    assert read(RejectRequest, {"status": "cancelled"}).status is RejectionStatus.CANCELLED
    assert {*RejectStatus} < {*RejectionStatus}
    assert read(RejectRequest, {"status": "busy"}).status is RejectionStatus.BUSY


def test_same_kind_of_channel_may_stand_once_for_each_app() -> None:
    channels = [{"kind": "apns", "app": app, "token": "ab" * 32} for app in ("a", "b")]
    assert len(read(DeviceRequest, {"identity": "bob", "channels": channels}).channels) == 2


def test_shortest_invite_of_more_rings_as_long_as_a_first_one() -> None:
    more = read(InviteMoreRequest, {"to": ["client:bob", "carol"]})
    assert (more.to, more.timeout) == (["bob", "carol"], DEFAULT_TIMEOUT_S)
    assert (more.identity, more.device_id) == (None, None)


def test_server_names_on_whose_behalf_it_invites_more() -> None:
    body = {"to": ["bob"], "timeout": 5, "identity": "client:alice", "device_id": "phone"}
    more = read(InviteMoreRequest, body)
    assert (more.identity, more.device_id, more.timeout) == ("alice", "phone", 5)


def test_message_without_more_goes_to_all_others_as_user_defined_json() -> None:
    message = read(MessageRequest, {"content": {"open": True}})
    assert message.content == {"open": True}
    assert (message.to, message.voice_event_sid, message.identity) == (None, None, None)
    assert (message.content_type, message.message_type) == (
        "application/json",
        "user-defined-message",
    )


def test_full_message_is_understood() -> None:
    body = {
        "content": [1, None, {"a": "b"}],
        "content_type": "application/json",
        "message_type": "webrtc",
        "to": ["client:bob"],
        "voice_event_sid": KX,
        "identity": "alice",
        "device_id": "phone",
    }
    message = read(MessageRequest, body)
    assert (message.content, message.to) == ([1, None, {"a": "b"}], ["bob"])
    assert (message.message_type, message.voice_event_sid) == ("webrtc", KX)
    assert (message.identity, message.device_id) == ("alice", "phone")


@pytest.mark.parametrize("content", ["", 0, False, [], {}, 1.5, "x", [None]])
def test_any_json_may_be_a_message(content: object) -> None:
    message = read(MessageRequest, {"content": content})
    assert json.dumps(message.content) == json.dumps(content)


@pytest.mark.parametrize(
    "content", ["x" * (MESSAGE_LIMIT_BYTES - 2), "\N{BELL}" * 1023], ids=["letters", "bells"]
)
def test_message_is_bound_by_its_size_as_json_in_bytes(content: str) -> None:
    assert read(MessageRequest, {"content": content}).content == content
    with pytest.raises(ValidationError, match=rf"409\d bytes.*{MESSAGE_LIMIT_BYTES}|410\d bytes"):
        read(MessageRequest, {"content": content + "\N{BELL}"})


@pytest.mark.parametrize("issue", FeedbackIssue)
@pytest.mark.parametrize("score", [None, 1, 5])
def test_feedback_is_a_score_or_none_and_perhaps_an_issue(
    score: int | None, issue: FeedbackIssue
) -> None:
    feedback = read(FeedbackRequest, {"score": score, "issue": issue.value})
    assert (feedback.score, feedback.issue) == (score, issue)
    assert read(FeedbackRequest, {"score": score}).issue is None


def test_who_declines_to_give_feedback_says_nothing() -> None:
    assert read(FeedbackRequest, {}).score is None


def test_issues_are_named_as_the_sdks_name_them() -> None:
    assert {issue.value for issue in FeedbackIssue} == {
        "dropped-call", "audio-latency", "one-way-audio", "choppy-audio", "noisy-call", "echo",
    }  # fmt: skip


def test_group_keeps_the_order_of_its_members() -> None:
    assert read(GroupRequest, {"members": ["client:zoe", "bob"]}).members == ["zoe", "bob"]
    members = [f"u{number}" for number in range(MAX_GROUP_MEMBERS)]
    assert read(GroupRequest, {"members": members}).members == members


def nested(depth: int) -> object:
    return [] if depth == 1 else [nested(depth - 1)]


@pytest.mark.parametrize(
    "content", [None, float("nan"), [float("inf")], "\ud800", nested(33), {"a": nested(32)}]
)
def test_content_that_could_not_travel_is_no_message(content: object) -> None:
    with pytest.raises(ValidationError):
        MessageRequest.model_validate({"content": content})


def test_content_may_be_nested_as_deep_as_is_said() -> None:
    assert MessageRequest.model_validate({"content": nested(32)})


# Each of its characters is two in JSON.
WORST_SDP = "\r\n" * (MEDIA_SDP_MAX_LENGTH // 2)


def test_longest_session_description_is_said_as_media_and_not_otherwise() -> None:
    offer = MediaOffer(session="s" * 64, device_id="d" * 64, to_device="e" * 64, sdp=WORST_SDP)
    content = offer.model_dump(mode="json")
    said = MessageRequest(message_type="media", content=content, to=["bob"])
    assert parse_media(said.content) == offer
    with pytest.raises(ValidationError, match=f"over the limit of {MESSAGE_LIMIT_BYTES}"):
        MessageRequest(content=content, to=["bob"])
    with pytest.raises(ValidationError, match=f"over the limit of {MEDIA_LIMIT_BYTES}"):
        MessageRequest(message_type="media", content={"sdp": WORST_SDP + "\n" * 600}, to=["bob"])
