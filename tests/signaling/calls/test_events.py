"""Events as they travel: every one comes back from its document, under the names of the spec."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError
from pydantic_core import to_json

from bellwire.signaling.calls.calls import CallType, Mode, RejectStatus, UserState
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallCreated,
    CallEnded,
    CallEvent,
    CallMessage,
    CallReceived,
    CallTimeout,
    CallUserStateChanged,
    CancelReason,
    ErrorInvitee,
    TriedInvitee,
    event_document,
    parse_event,
    rfc3339,
)
from bellwire.signaling.wire.station import Presence, parse_presence, presence_document

SID = "CA0123456789abcdef0123456789abcdef"
AT = datetime(2026, 11, 21, 8, 0, 0, 250_000, tzinfo=UTC)
HEAD: dict[str, Any] = {"id": f"{SID}-1", "call_sid": SID, "at": AT}
MESSAGE: dict[str, Any] = {
    "message_type": "user-defined-message",
    "content_type": "application/json",
    "voice_event_sid": "KX0123456789abcdef0123456789abcdef",
}

EXAMPLES: list[CallEvent] = [
    CallCreated(
        **HEAD,
        invitees=(TriedInvitee(identity="bob", channels=("mqtt", "apns")),),
        error_invitees=(ErrorInvitee(identity="zoe", reason="no_device"),),
    ),
    CallReceived(
        **HEAD,
        from_="client:alice",
        to="client:bob",
        custom_parameters={"z": "1", "a": "", "Tür": "\N{BELL}"},
        expires_at=AT + timedelta(seconds=60),
        mode=Mode.ADVANCED,
        call_type=CallType.VIDEO,
        extended_data="x",
        title="Door",
        content="Alice",
        payload="{}",
    ),
    CallReceived(**HEAD, to="client:bob", custom_parameters={}, expires_at=AT),
    CallUserStateChanged(
        **HEAD, identity="bob", state=UserState.REJECTED, reject_status=RejectStatus.BUSY
    ),
    CallUserStateChanged(**HEAD, identity="bob", state=UserState.QUIT, extended_data="bye"),
    CallCancelled(**HEAD, reason="answered_elsewhere"),
    CallCancelled(**HEAD, extended_data="sorry"),
    CallTimeout(**HEAD),
    CallEnded(**HEAD),
    CallMessage(**HEAD, **MESSAGE, from_="client:alice", content={"candidate": ["a", None, 1.5]}),
    CallMessage(**HEAD, **MESSAGE, content="ring the other bell \N{BELL}"),
]

MOMENTS = st.datetimes(
    min_value=datetime(2000, 1, 1),
    timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-9, minutes=-30))),
).map(lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000))


def test_examples_hold_every_kind_of_event() -> None:
    assert {type(event) for event in EXAMPLES} == set(get_args(CallEvent))


def test_events_are_named_as_the_specification_names_them() -> None:
    assert {event.event for event in EXAMPLES} == {
        "call.created",
        "call.received",
        "call.user_state_changed",
        "call.cancelled",
        "call.timeout",
        "call.ended",
        "call.message",
    }


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.event)
def test_event_comes_back_from_its_document(event: CallEvent) -> None:
    document = event_document(event)
    assert parse_event(document) == event
    assert parse_event(document.encode()) == event
    assert type(parse_event(document)) is type(event)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.event)
def test_document_has_the_members_that_every_event_has(event: CallEvent) -> None:
    document = json.loads(event_document(event))
    assert document["event"] == event.event
    assert document["id"] == f"{SID}-1"
    assert document["call_sid"] == SID
    assert document["at"] == "2026-11-21T08:00:00.250Z"
    assert None not in document.values()


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.event)
def test_member_that_a_newer_relay_adds_is_ignored(event: CallEvent) -> None:
    document = json.dumps({**json.loads(event_document(event)), "mood": "blue"})
    assert parse_event(document) == event


@pytest.mark.parametrize("state", UserState)
def test_every_state_of_a_user_travels(state: UserState) -> None:
    event = CallUserStateChanged(**HEAD, identity="bob", state=state)
    assert json.loads(event_document(event))["state"] == state.value
    assert parse_event(event_document(event)) == event


@given(
    st.builds(
        CallReceived,
        id=st.just("x-1"),
        call_sid=st.just(SID),
        at=MOMENTS,
        from_=st.none() | st.text(),
        to=st.text(),
        custom_parameters=st.dictionaries(st.text(), st.text(), max_size=5),
        expires_at=MOMENTS,
        extended_data=st.text(),
        title=st.none() | st.text(),
        content=st.none() | st.text(),
        payload=st.none() | st.text(),
    )
)
def test_any_invite_comes_back_from_its_document(invite: CallReceived) -> None:
    back = parse_event(event_document(invite))
    assert back == invite
    assert isinstance(back, CallReceived)
    assert list(back.custom_parameters) == list(invite.custom_parameters)


@given(MOMENTS, st.text(), st.none() | st.text())
def test_document_is_what_pydantic_writes_of_the_members_however_often_it_is_asked_for(
    at: datetime, text: str, title: str | None
) -> None:
    invite = CallReceived(
        id=f"{SID}-1",
        call_sid=SID,
        at=at,
        from_=text,
        to="client:bob",
        custom_parameters={"z": text},
        expires_at=at + timedelta(seconds=60),
        title=title,
    )
    plain = invite.model_dump(by_alias=True, exclude_none=True)
    for name in ("at", "expires_at"):
        moment = plain[name].astimezone(UTC)
        plain[name] = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
    assert [event_document(invite) for _ in "12"] == [to_json(plain).decode()] * 2


def test_document_of_a_changed_copy_says_what_was_changed_and_that_of_the_original_stays() -> None:
    for deep in (False, True):
        invite = CallReceived(**HEAD, to="client:bob", custom_parameters={}, expires_at=AT)
        before = event_document(invite)
        signed = invite.model_copy(update={"title": "Door"}, deep=deep)
        assert json.loads(event_document(signed)) == {**json.loads(before), "title": "Door"}
        assert event_document(invite) == before


def test_event_whose_document_was_asked_for_equals_one_whose_was_not() -> None:
    asked, other = CallEnded(**HEAD), CallEnded(**HEAD)
    event_document(asked)
    assert asked == other
    assert asked.model_dump() == other.model_dump()


def test_hour_that_a_clock_shows_twice_is_written_as_two_moments() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    summer, winter = (datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1))
    assert rfc3339(summer) == "2026-10-25T00:30:00.000Z"
    assert rfc3339(winter) == "2026-10-25T01:30:00.000Z"


def test_invite_writes_the_caller_as_from_and_leaves_it_out_where_nobody_calls() -> None:
    with_caller, without = (json.loads(event_document(e)) for e in EXAMPLES[1:3])
    assert with_caller["from"] == "client:alice"
    assert "from_" not in with_caller
    assert "from" not in without


def test_message_says_what_and_from_whom_and_leaves_from_out_where_a_server_speaks() -> None:
    by_alice, by_a_server = (json.loads(event_document(event)) for event in EXAMPLES[-2:])
    assert by_alice == {
        "event": "call.message",
        "id": f"{SID}-1",
        "call_sid": SID,
        "at": "2026-11-21T08:00:00.250Z",
        "from": "client:alice",
        "message_type": "user-defined-message",
        "content_type": "application/json",
        "content": {"candidate": ["a", None, 1.5]},
        "voice_event_sid": "KX0123456789abcdef0123456789abcdef",
    }
    assert not {"from", "from_"} & set(by_a_server)


JSON = st.recursive(
    # At the top null is left out: the document would lose it.
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner | st.none(), max_size=3)
        | st.dictionaries(st.text(), inner | st.none(), max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_message_comes_back_from_its_document(content: JsonValue) -> None:
    message = CallMessage(**HEAD, **MESSAGE, content=content)
    back = parse_event(event_document(message))
    assert back == message
    assert isinstance(back, CallMessage)
    assert json.dumps(back.content) == json.dumps(content)


def test_state_that_a_newer_peer_sends_is_read_as_unknown() -> None:
    document = json.loads(event_document(EXAMPLES[4]))
    event = parse_event(json.dumps({**document, "state": "Daydreaming"}))
    assert isinstance(event, CallUserStateChanged)
    assert event.state is UserState.UNKNOWN


@pytest.mark.parametrize("reason", get_args(CancelReason))
def test_cancellation_says_why(reason: CancelReason) -> None:
    event = CallCancelled(**HEAD, reason=reason)
    assert json.loads(event_document(event))["reason"] == reason
    assert parse_event(event_document(event)) == event


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"event": "call.sneezed"}, "call.sneezed"),
        ({"event": None}, "event"),
        ({"call_sid": "CA12"}, "call_sid"),
        ({"call_sid": None}, "call_sid"),
        ({"at": "yesterday"}, "at"),
        ({"id": None}, "id"),
        ({"reason": "tired"}, "reason"),
    ],
)
def test_document_that_is_no_event_is_refused_with_the_place(
    change: dict[str, object], named: str
) -> None:
    document = json.dumps({**json.loads(event_document(EXAMPLES[5])), **change})
    with pytest.raises(ValidationError, match=named):
        parse_event(document)


@pytest.mark.parametrize("document", [b"", b"[]", b"nope", b"\xff", b"{" * 10_000])
def test_bytes_that_are_no_document_are_refused(document: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_event(document)


def test_moment_without_a_zone_is_refused_as_nobody_knows_when_it_is() -> None:
    document = json.loads(event_document(EXAMPLES[2]))
    with pytest.raises(ValidationError, match="expires_at"):
        parse_event(json.dumps({**document, "expires_at": "2026-11-21T08:00:00"}))


def test_moment_is_written_in_utc_with_milliseconds() -> None:
    noon_in_berlin = datetime(2026, 11, 21, 12, 0, 0, 1_999, timezone(timedelta(hours=1)))
    assert rfc3339(noon_in_berlin) == "2026-11-21T11:00:00.001Z"


@pytest.mark.parametrize(
    "presence", [Presence(online=True, software="0.1.0"), Presence(online=False)]
)
def test_presence_of_a_device_comes_back_from_its_document(presence: Presence) -> None:
    assert parse_presence(presence_document(presence)) == presence
    assert None not in json.loads(presence_document(presence)).values()


@pytest.mark.parametrize("document", [b"", b"{}", b"online", b'{"online": "perhaps"}'])
def test_document_that_says_nothing_of_presence_is_refused(document: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_presence(document)
