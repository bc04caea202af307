"""Copies of calls and users: what `signaling.calls.calls.replace` makes is what dataclasses would make."""

import dataclasses

import pytest
from pydantic import TypeAdapter

from bellwire.signaling.calls.calls import Call, CallState, User, UserState, replace
from tests.signaling.calls_in_play import ringing


def test_copy_of_a_call_is_the_one_that_dataclasses_make_and_its_document_too() -> None:
    call = ringing("bob")
    changed = replace(call, state=CallState.OPEN, events=7)
    assert changed == dataclasses.replace(call, state=CallState.OPEN, events=7)
    documents = TypeAdapter(Call)
    assert documents.validate_json(documents.dump_json(changed)) == changed
    assert call == ringing("bob")


def test_copy_of_a_user_is_the_one_that_dataclasses_make_and_as_fixed_as_it() -> None:
    user = ringing("bob").users[-1]
    changed = replace(user, state=UserState.RECEIVED)
    assert type(changed) is User
    assert changed == dataclasses.replace(user, state=UserState.RECEIVED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.state = UserState.QUIT  # type: ignore[misc]
