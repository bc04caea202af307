"""What the relay answers: a call as it stands, in both modes, with the members clients rely on."""

import json

import pytest
from pydantic import BaseModel

from bellwire.signaling.calls.calls import Call, Mode, Unreachable, UserState
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.answers import CallAnswer, CallListAnswer, DeviceResponse, Problem
from tests.signaling.calls_in_play import (
    SID,
    accept,
    advanced,
    after,
    end,
    expire,
    in_state,
    invite,
    join,
    quit_,
    reject,
    ringing,
    states,
)

RELIED_ON = {
    "call_sid", "state", "mode", "call_type", "from", "custom_parameters", "created_at",
    "expires_at", "users", "error_invitees",
}  # fmt: skip

CALLS: dict[str, Call] = {
    "ringing": ringing("bob"),
    "nobody calls": ringing("bob", caller=None),
    "open": after(ringing("bob", "carol"), accept("bob", "tablet"), reject("carol", data="no")),
    "not yet received": after(ringing("bob", check_s=5), expire(5)),
    "advanced": after(advanced("bob"), invite("alice", "zoe"), join("dave", "desk")),
    "quit": after(advanced("bob"), accept("bob"), quit_("bob", data="bye")),
    "ended": after(advanced("bob"), accept("bob"), end("bob")),
}


def members(model: BaseModel) -> set[str]:
    return set(model.model_dump(mode="json", by_alias=True))


def shown(call: Call) -> dict[str, object]:
    """The call as a client reads it."""
    document = json.loads(DeviceResponse(status=200, call=CallAnswer.of(call)).document())["call"]
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("name", CALLS)
def test_answer_shows_a_call_with_the_members_clients_rely_on(name: str) -> None:
    call = CALLS[name]
    answer = CallAnswer.of(call)
    assert members(answer) >= RELIED_ON
    document = shown(call)
    assert (document["call_sid"], document["state"], document["mode"]) == (
        SID,
        call.state.value,
        call.mode.value,
    )
    assert document["from"] == call.caller
    users = document["users"]
    assert isinstance(users, list)
    assert {user["identity"]: user["state"] for user in users} == states(call)
    assert [user["identity"] for user in users] == [user.identity for user in call.users]
    for user, shown_user in zip(call.users, users, strict=True):
        assert set(shown_user) >= {"identity", "state", "extended_data", "main_device"}
        assert shown_user["main_device"] == user.main_device
        assert shown_user["extended_data"] == user.extended_data


@pytest.mark.parametrize("name", CALLS)
def test_answer_to_a_device_comes_back_from_its_document(name: str) -> None:
    response = DeviceResponse(status=200, call=CallAnswer.of(CALLS[name]))
    assert DeviceResponse.model_validate_json(response.document()) == response


def test_answer_gives_its_moments_in_utc_with_milliseconds() -> None:
    document = shown(ringing("bob"))
    assert document["created_at"] == "2026-11-21T08:00:00.000Z"
    assert document["expires_at"] == "2026-11-21T08:01:00.000Z"


@pytest.mark.parametrize("state", UserState)
@pytest.mark.parametrize("mode", Mode)
def test_answer_names_every_state_of_a_user_as_the_specification_does(
    mode: Mode, state: UserState
) -> None:
    call = in_state(ringing("bob", mode=mode), "bob", state.value)
    assert json.dumps(shown(call)["users"]).count(f'"state": "{state.value}"') >= 1
    assert CallAnswer.model_validate(shown(call)).users[-1].state is state


def test_answer_lists_who_could_not_be_invited_from_the_start_and_later() -> None:
    errors: tuple[tuple[Identity, Unreachable], ...] = (
        (Identity("zoe"), "no_device"),
        (Identity("yan"), "unknown"),
    )
    call = after(advanced("bob"), invite("alice", "carol", unreachable=errors))
    assert shown(call)["error_invitees"] == [
        {"identity": "zoe", "reason": "no_device"},
        {"identity": "yan", "reason": "unknown"},
    ]


def test_who_could_not_be_invited_first_but_is_now_is_no_longer_listed() -> None:
    zoe = Identity("zoe")
    call = after(advanced("bob"), invite("alice", "carol", unreachable=((zoe, "no_device"),)))
    assert shown(after(call, invite("alice", "zoe")))["error_invitees"] == []


def test_list_comes_back_from_its_document_newest_first_with_the_cursor() -> None:
    calls = tuple(CallAnswer.of(call) for call in CALLS.values())
    answer = CallListAnswer(calls=calls, next=17)
    assert CallListAnswer.model_validate_json(answer.model_dump_json(by_alias=True)) == answer
    response = DeviceResponse(status=200, calls=calls, next=17)
    assert DeviceResponse.model_validate_json(response.document()) == response


def test_member_that_a_newer_relay_adds_is_ignored() -> None:
    document = {**shown(ringing("bob")), "mood": "blue"}
    assert CallAnswer.model_validate(document) == CallAnswer.of(ringing("bob"))


def test_problem_keeps_what_a_refusal_adds_to_it() -> None:
    problem = Problem.model_validate(
        {
            "type": "about:blank",
            "title": "The state does not allow this operation",
            "status": 409,
            "detail": "bob is Rejected and cannot join now",
            "code": 31403,
            "operation": "join",
            "state": "Rejected",
            "error_invitees": [],
        }
    )
    response = DeviceResponse(status=409, problem=problem)
    document = json.loads(response.document())
    assert document["problem"]["operation"] == "join"
    assert document["problem"]["error_invitees"] == []
    assert document["call"] is None
    assert "keys" not in document
