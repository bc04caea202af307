"""The sample code of docs/mobile.md asks what the relay answers, with bodies that it takes, and reads
keys that are there; the requests it shows are ones that the relay's models take."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.calls.events import CallEvent, CancelReason
from bellwire.signaling.wire.answers import CallAnswer, UserAnswer
from bellwire.signaling.wire.operations import OperationRequest, ReceivedRequest, RejectRequest
from bellwire.signaling.wire.requests import DeviceRequest
from bellwire.signaling.wire.stream import STREAM_REPLACED, StreamOpened, parse_stream_request
from docs.push_examples import connect_token, push_keys
from tests.docs.documents import OPENAPI, ROOT, blocks
from tests.docs.test_http_examples import curl

PAGE = ROOT / "docs/mobile.md"
TEXT = PAGE.read_text()
SAMPLES = {block.kind: block.text for block in blocks(PAGE) if block.kind in ("swift", "kotlin")}
ROUTES = OPENAPI["paths"]
BODIES: dict[str, type[BaseModel]] = {
    "received": ReceivedRequest,
    "accept": OperationRequest,
    "quit": OperationRequest,
    "ignore": OperationRequest,
    "reject": RejectRequest,
}
EVENTS = {kind.model_fields["event"].default: kind for kind in get_args(CallEvent)}
STREAM_EVENT = StreamOpened.model_fields["event"].default


@dataclass(frozen=True)
class Asked:
    """A request of a sample: its body None where it has none."""

    method: str
    path: str
    body: dict[str, str] | None


def requests_of(code: str) -> list[Asked]:
    """Each `ask(token, "METHOD", "/v1/...", body)`. What a body takes from a variable is `VALUE`."""
    calls = re.finditer(r'ask\([\w.]+, "([A-Z]+)", "(/v1/[^"]*)"(.*)', code)
    return [Asked(call[1], _route(call[2]), _body(call[3], code)) for call in calls]


def _route(path: str) -> str:
    return re.sub(r"\\\([^)]*\)|\$\{[^}]*\}|\$\w+", "{call_sid}", path)


def _body(rest: str, code: str) -> dict[str, str] | None:
    argument = rest.removeprefix(", ")
    if argument == rest:
        return None
    if name := re.match(r"(\w+)\) \}", argument):
        (argument,) = re.findall(rf"val {name[1]} = (.*)", code)
    pairs = re.findall(r'"(\w+)": ("?\w+"?)', argument)
    pairs += re.findall(r'\.put\("(\w+)", ("?\w+"?)\)', argument)
    return {key: value.strip('"') if '"' in value else "VALUE" for key, value in pairs}


def keys_read(code: str) -> set[str]:
    """What the code reads out of JSON documents and pushes."""
    subscripts = re.findall(r'(?:payload|message|event|call|me|\$0|data)\??\["(\w+)"\]', code)
    getters = re.findall(r'\.(?:get|opt)(?:String|Long|JSONArray)\("(\w+)"', code)
    return {*subscripts, *getters}


def known_keys() -> set[str]:
    models = (CallAnswer, UserAnswer, StreamOpened, *EVENTS.values())
    in_models = {field.alias or name for m in models for name, field in m.model_fields.items()}
    return in_models | set(re.findall(r"^\| `(\w+)`", push_keys(), re.MULTILINE))


def problems(code: str) -> Iterator[str]:
    """What is wrong with a sample."""
    asked = requests_of(code)
    if len(asked) + len(re.findall(r'/v1/events[$"]', code)) != code.count("/v1/"):
        yield "a request was not understood"
    for request in asked:
        route: dict[str, Any] | None = ROUTES.get(request.path, {}).get(request.method.lower())
        if route is None:
            yield f"no route {request.method} {request.path}"
        elif request.body is None and request.method != "GET":
            yield f"{request.path} without a body"
        elif request.body is not None:
            model = BODIES[request.path.rpartition("/")[2]]
            try:
                model.model_validate(request.body)
            except ValidationError as error:
                yield f"{request.path}: {error}"
    yield from (f"no key {key}" for key in keys_read(code) - known_keys())
    names = set(re.findall(r'"((?:call|stream)\.\w+)"', code))
    yield from (f"no event {name}" for name in names - {*EVENTS, STREAM_EVENT})
    reasons = set(re.findall(r'"(\w+_elsewhere)"', code))
    yield from (f"no reason {reason}" for reason in reasons - {*get_args(CancelReason)})
    words = set(re.findall(r'"([A-Z][a-z]\w*)"', code))
    states = words - {"Bellwire", "Unknown", "Calls", "Authorization"}
    yield from (f"no state {state}" for state in states - {*UserState})


@pytest.mark.parametrize("language", ["swift", "kotlin"])
def test_sample_asks_what_the_relay_answers_and_reads_what_it_says(language: str) -> None:
    assert not list(problems(SAMPLES[language]))


@pytest.mark.parametrize("language", ["swift", "kotlin"])
def test_sample_does_all_that_the_guide_asks_of_an_app(language: str) -> None:
    code = SAMPLES[language]
    asked = {(request.method, request.path) for request in requests_of(code)}
    sid = "/v1/calls/{call_sid}"
    assert asked >= {
        ("GET", sid),
        *(("POST", f"{sid}/{name}") for name in ("received", "accept", "reject", "quit")),
    }
    assert "/v1/events" in code
    assert str(STREAM_REPLACED) in code
    assert {"call.cancelled", "call.timeout", "call.ended", STREAM_EVENT} <= set(
        re.findall(r'"((?:call|stream)\.\w+)"', code)
    )
    (received,) = (request for request in requests_of(code) if request.path.endswith("received"))
    channel = {"swift": "apns", "kotlin": "fcm"}[language]
    assert received.body == {"channel": channel, "app": "VALUE"}


def test_swift_sample_reports_every_push_before_anything_else() -> None:
    _, _, method = SAMPLES["swift"].partition("didReceiveIncomingPushWith payload")
    body = method[method.index("{\n") : method.index("\n    }\n")]
    assert "guard" not in body
    assert "return" not in body
    assert "await" not in body
    assert body.index("reportNewIncomingCall") < body.index("completion()")


@pytest.mark.parametrize(
    ("language", "right", "wrong"),
    [
        ("swift", '/accept"', '/acept"'),
        ("swift", '"POST", "/v1/calls/\\(push.sid)/quit"', '"PUT", "/v1/calls/\\(push.sid)/quit"'),
        ("swift", '["status": "rejected"]', '["status": "declined"]'),
        ("swift", '["channel": "apns"', '["chanel": "apns"'),
        ("swift", 'payload["twi_to"]', 'payload["twi_too"]'),
        ("swift", '"call.timeout"', '"call.timed_out"'),
        ("swift", '"answered_elsewhere"', '"anwered_elsewhere"'),
        ("swift", '"NotYetReceived"', '"NotReceived"'),
        ("kotlin", '/reject"', '/refuse"'),
        ("kotlin", 'put("status", "busy")', 'put("reason", "busy")'),
        ("kotlin", 'put("channel", "fcm")', 'put("channel", "gcm")'),
        ("kotlin", 'getJSONArray("users")', 'getJSONArray("user")'),
        ("kotlin", 'data["twi_params"]', 'data["params"]'),
        ("kotlin", '"/v1/calls/${call.sid}")', '"/v1/call/${call.sid}")'),
    ],
)
def test_sample_with_a_mistake_is_found(language: str, right: str, wrong: str) -> None:
    code = SAMPLES[language]
    assert right in code
    assert list(problems(code.replace(right, wrong)))


def test_registrations_of_the_guide_are_ones_that_the_relay_takes() -> None:
    lines = [
        line for block in blocks(PAGE) if block.kind == "console" for line, _ in block.commands()
    ]
    kinds = []
    for line in lines:
        request = curl(line, {"RELAY": "http://relay", "KEY": "bwk_"})
        route = ROUTES[re.sub("devices/.*", "devices/{device_id}", request.url.path)]
        assert request.method.lower() in route
        if request.method == "PUT":
            body = request.content.replace(b"4f2a8c...64 hex digits", b"4f2a8c01" * 8)
            kinds += [channel.kind for channel in DeviceRequest.model_validate_json(body).channels]
    assert kinds == ["apns", "websocket", "fcm", "websocket"]


def test_requests_and_states_of_the_guides_tables_are_there() -> None:
    for method, path in re.findall(r"`(GET|POST|PUT|DELETE) (/v1/[\w/{}]+)`", TEXT):
        known = path.replace("{sid}", "{call_sid}").replace("{id}", "{device_id}")
        assert method.lower() in ROUTES[known], f"{method} {path}"
    _, _, table = TEXT.partition("| its `state` | what to do |")
    states = re.findall(r"`([A-Z]\w+)`", table.partition("\n\n")[0])
    assert set(states) <= set(UserState)
    for body in re.findall(r"`(\{\"channel\".*?\})`", TEXT):
        document = re.sub(r"[A-Z ]{4,}", '"com.example.app"', body)
        assert ReceivedRequest.model_validate_json(document).app == "com.example.app"


def test_acknowledgement_of_the_samples_is_one_that_the_stream_takes() -> None:
    assert r'#"{"ack": \#(number)}"#' in SAMPLES["swift"]
    assert 'JSONObject().put("ack", cursor)' in SAMPLES["kotlin"]
    assert parse_stream_request('{"ack": 7}').ack == 7


def test_connect_token_is_shown_with_the_call_and_the_device_it_is_for() -> None:
    assert {"`call_sid`", "`device_id`", "`sub`", "`exp`"} <= set(
        re.findall("`[a-z_]+`", connect_token())
    )
