"""Every JSON example is a document that the code itself would read and write."""

import contextlib
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bellwire.config.fleet.layer import Layer
from bellwire.signaling.calls.events import parse_event
from bellwire.signaling.wire.answers import (
    CallAnswer,
    CallDeliveriesAnswer,
    DeviceAnswer,
    DeviceResponse,
    GroupAnswer,
    IceServersAnswer,
    NewApiKeyAnswer,
    Problem,
    RevokedTokensAnswer,
    TokenAnswer,
)
from bellwire.signaling.wire.operations import parse_device_operation
from bellwire.signaling.wire.station import Presence
from bellwire.signaling.wire.stream import (
    StreamHeartbeat,
    StreamOpened,
    StreamResponse,
    event_with_cursor,
    parse_stream_request,
)
from tests.docs.documents import Block, all_blocks

EXAMPLES = all_blocks("json")
ANSWERS: dict[frozenset[str], type[BaseModel]] = {
    frozenset({"call_sid", "users"}): CallAnswer,
    frozenset({"call_sid", "deliveries"}): CallDeliveriesAnswer,
    frozenset({"device_id", "channels"}): DeviceAnswer,
    frozenset({"token", "expires_at"}): TokenAnswer,
    frozenset({"identity", "device_id", "jti"}): RevokedTokensAnswer,
    frozenset({"name", "scopes", "key"}): NewApiKeyAnswer,
    frozenset({"name", "members"}): GroupAnswer,
    frozenset({"status", "call", "problem"}): DeviceResponse,
    frozenset({"type", "status", "detail"}): Problem,
    frozenset({"online"}): Presence,
    frozenset({"ice_servers", "ttl"}): IceServersAnswer,
    frozenset({"revision", "settings"}): Layer,
}
STREAM: dict[str, type[BaseModel]] = {
    "stream.opened": StreamOpened,
    "stream.heartbeat": StreamHeartbeat,
    "stream.response": StreamResponse,
}


def read(text: str) -> BaseModel:
    """The example as the model of its kind."""
    document = json.loads(text)
    if document.get("event") in STREAM:
        return STREAM[document["event"]].model_validate_json(text)
    if "event" in document:
        return parse_event(text)
    if "operation" in document and "type" not in document:
        return parse_device_operation(parse_stream_request(text).document)
    (model,) = (model for keys, model in ANSWERS.items() if keys <= document.keys())
    return model.model_validate_json(text)


def is_part_of(shown: Any, whole: Any) -> bool:  # noqa: ANN401 - JSON
    """Whether all that is shown stands in the whole, with the same values."""
    if isinstance(shown, dict):
        return isinstance(whole, dict) and all(
            key in whole and is_part_of(value, whole[key]) for key, value in shown.items()
        )
    if isinstance(shown, list):
        return len(shown) == len(whole) and all(map(is_part_of, shown, whole))
    return bool(shown == whole)


def written_again(text: str) -> str:
    """The example as the code writes it, once it has read it."""
    document = json.loads(text)
    if "ack" in document:
        return json.dumps({"ack": parse_stream_request(text).ack})
    again = read(text).model_dump_json(by_alias=True)
    if "operation" in document and "request_id" in document:
        request_id = parse_stream_request(text).request_id
        return json.dumps({"request_id": request_id, **json.loads(again)})
    if "cursor" in document and document["event"] not in STREAM:
        return event_with_cursor(again, document["cursor"])
    return again


def is_true(text: str) -> bool:
    """Whether a document is read, and written again as it was."""
    return is_part_of(json.loads(text), json.loads(written_again(text)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: block.place)
def test_example_is_read_and_written_again_as_it_is_shown(example: Block) -> None:
    assert is_true(example.text)


def test_examples_show_events_requests_and_answers() -> None:
    kinds = {type(read(e.text)).__name__ for e in EXAMPLES if '"ack"' not in e.text}
    assert {"CallReceived", "DeviceInvite", "CallAnswer", "Problem", "DeviceResponse"} <= kinds
    assert {model.__name__ for model in STREAM.values()} <= kinds


@pytest.mark.parametrize("change", ["to", "expires_at", "event", "mode", "invented"])
def test_example_with_a_wrong_field_is_found(change: str) -> None:
    right, *_ = (e.text for e in EXAMPLES if '"call.received"' in e.text)
    document = json.loads(right)
    document[change] = 7
    with contextlib.suppress(ValidationError):
        assert not is_true(json.dumps(document))
