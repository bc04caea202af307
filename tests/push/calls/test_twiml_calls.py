"""TwiML in: the documents that a backend answers Twilio's voice webhook with, written by Twilio's own
library and posted to a relay, ring as they do there; what we do not do is refused by name."""

from typing import Any

import httpx
import pytest
from twilio.twiml.voice_response import Client, Dial, VoiceResponse

from tests.push.support import Running, assert_problem, fresh, listening, states

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPECIAL = {
    "unicode": "Zoë 日本 \U0001f514",
    "markup": "<b>&\"'</b>]]>",
    "query": "a=b&c=d%20+#?",
    "white-space": " two\n lines\tand\r\nmore ",
    "empty": "",
}


async def post(running: Running, document: VoiceResponse | str, **headers: str) -> httpx.Response:
    return await running.http.post(
        "/v1/calls",
        content=str(document).encode(),
        headers={"Content-Type": "application/xml", **headers},
    )


async def made(running: Running, document: VoiceResponse | str) -> dict[str, Any]:
    """The call that a document makes."""
    answer = await post(running, document)
    assert answer.status_code == 201, answer.text
    call: dict[str, Any] = answer.json()
    return call


def dialing(**attributes: Any) -> tuple[VoiceResponse, Dial]:  # noqa: ANN401 - TwiML's
    response = VoiceResponse()
    return response, response.dial(**attributes)


def client_of(dial: Dial, identity: str, **parameters: str) -> Client:
    client = dial.client()
    client.identity(identity)
    for name, value in parameters.items():
        client.parameter(name=name, value=value)
    return client


async def test_client_with_parameters_rings_with_them_exactly(running: Running) -> None:
    bob, alice = fresh("bob"), fresh("alice")
    response, dial = dialing(caller_id=f"client:{alice}", timeout=600, answer_on_bridge=True)
    client_of(dial, bob, **SPECIAL)
    async with listening(running, bob) as at_bob:
        call = await made(running, response)
        invite = await at_bob.until("call.received", call["call_sid"])
    assert call["custom_parameters"] == invite["custom_parameters"] == SPECIAL
    assert list(invite["custom_parameters"]) == list(SPECIAL)
    assert (invite["from"], invite["to"]) == (f"client:{alice}", f"client:{bob}")
    assert (call["from"], call["mode"], call["call_type"]) == (alice, "common", "audio")
    assert states(call)[bob] == "Inviting"


async def test_short_form_rings(running: Running) -> None:
    bob = fresh("bob")
    response, dial = dialing(timeout=600)
    dial.client(bob)
    async with listening(running, bob) as at_bob:
        call = await made(running, response)
        invite = await at_bob.until("call.received", call["call_sid"])
    assert "from" not in invite
    assert invite["custom_parameters"] == {}


async def test_caller_may_be_a_number(running: Running) -> None:
    bob = fresh("bob")
    response, dial = dialing(caller_id="+4930123456", timeout=600)
    dial.client(bob)
    async with listening(running, bob) as at_bob:
        call = await made(running, response)
        invite = await at_bob.until("call.received", call["call_sid"])
    assert invite["from"] == "+4930123456"


async def test_several_clients_ring_and_each_has_its_own_parameters(running: Running) -> None:
    bob, carol, zoe = fresh("bob"), fresh("carol"), fresh("zoë")
    response, dial = dialing(timeout=600)
    client_of(dial, bob, door="front", floor="1")
    client_of(dial, carol, door="front", floor="2")
    client_of(dial, zoe, door="front")
    async with (
        listening(running, fresh("device"), bob) as at_bob,
        listening(running, fresh("device"), carol) as at_carol,
        listening(running, fresh("device"), zoe) as at_zoe,
    ):
        call = await made(running, response)
        rung = [
            (await device.until("call.received", call["call_sid"]))["custom_parameters"]
            for device in (at_bob, at_carol, at_zoe)
        ]
    assert rung == [
        {"door": "front", "floor": "1"},
        {"door": "front", "floor": "2"},
        {"door": "front"},
    ]
    assert call["custom_parameters"] == {"door": "front"}
    assert set(states(call)) == {bob, carol, zoe}


async def test_client_that_has_no_device_is_named_and_the_others_ring(running: Running) -> None:
    bob, nobody = fresh("bob"), fresh("nobody")
    response, dial = dialing()
    dial.client(bob)
    dial.client(nobody)
    async with listening(running, bob) as at_bob:
        call = await made(running, response)
        await at_bob.until("call.received", call["call_sid"])
    assert [invitee["identity"] for invitee in call["error_invitees"]] == [nobody]


async def test_document_sent_again_under_its_key_rings_once(running: Running) -> None:
    bob, key = fresh("bob"), fresh("key")
    response, dial = dialing(timeout=600)
    client_of(dial, bob, a="1")
    await running.register(bob)
    answers = [await post(running, response, **{"Idempotency-Key": key}) for _ in range(2)]
    assert answers[0].json()["call_sid"] == answers[1].json()["call_sid"]
    assert answers[1].headers["Idempotent-Replayed"] == "true"


def with_dial(**attributes: Any) -> VoiceResponse:  # noqa: ANN401 - TwiML's
    response, dial = dialing(**attributes)
    dial.client("bob")
    return response


def with_client(**attributes: Any) -> VoiceResponse:  # noqa: ANN401 - TwiML's
    response, dial = dialing()
    dial.client("bob", **attributes)
    return response


def with_noun(noun: str, *arguments: str) -> VoiceResponse:
    response, dial = dialing()
    getattr(dial, noun)(*arguments)
    return response


def with_verb(verb: str, *arguments: str) -> VoiceResponse:
    response, dial = dialing()
    dial.client("bob")
    getattr(response, verb)(*arguments)
    return response


def with_parameter(name: str) -> VoiceResponse:
    response, dial = dialing()
    client = dial.client("bob")
    client.parameter(name=name, value="1")
    return response


REFUSED = [
    *(
        (with_dial(**{attribute: value}), f"'{named}'")
        for attribute, value, named in (
            ("hangup_on_star", True, "hangupOnStar"),
            ("trim", "trim-silence", "trim"),
            ("record", "record-from-answer", "record"),
            ("recording_status_callback", "/r", "recordingStatusCallback"),
            ("recording_track", "both", "recordingTrack"),
            ("ring_tone", "de", "ringTone"),
            ("sequential", True, "sequential"),
            ("refer_url", "/refer", "referUrl"),
            ("events", "a", "events"),
        )
    ),
    *(
        (with_client(**{attribute: value}), f"'{named}'")
        for attribute, value, named in (
            ("url", "/screen", "url"),
            ("method", "GET", "method"),
            ("client_notification_url", "https://a.example", "clientNotificationUrl"),
        )
    ),
    *(
        (with_noun(noun, *arguments), f"<{named}>")
        for noun, arguments, named in (
            ("number", ("+4930123456",), "Number"),
            ("sip", ("sip:bob@example.org",), "Sip"),
            ("conference", ("room",), "Conference"),
            ("queue", ("waiting",), "Queue"),
            ("sim", ("DE1",), "Sim"),
        )
    ),
    *(
        (with_verb(verb, *arguments), f"<{named}>")
        for verb, arguments, named in (
            ("say", ("Nobody is there",), "Say"),
            ("play", ("/busy.mp3",), "Play"),
            ("gather", (), "Gather"),
            ("record", (), "Record"),
            ("enqueue", ("waiting",), "Enqueue"),
            ("hangup", (), "Hangup"),
            ("pause", (), "Pause"),
            ("redirect", ("/next",), "Redirect"),
            ("reject", (), "Reject"),
            ("connect", (), "Connect"),
            ("start", (), "Start"),
            ("dial", (), "one <Dial>, not 2"),
        )
    ),
    (VoiceResponse(), "one <Dial>"),
    # This relay has neither a voice URL, which they could be relative to, nor anything to sign with.
    (with_dial(action="/over"), "action must be an http(s) URL"),
    (with_dial(action="https://backend.example/over"), "twilio_auth_token_file"),
    (with_client(status_callback="/s"), "statusCallback must be an http(s) URL"),
    (with_client(status_callback="https://backend.example/s"), "twilio_auth_token_file"),
    (with_dial(time_limit=0), "timeLimit"),
    (with_dial(timeout=601), "timeout"),
    (with_dial(timeout=0), "timeout"),
    (with_dial(caller_id="two words"), "two words"),
    (with_parameter("a b"), "a b"),
    (with_parameter("ä"), "ä"),
]


@pytest.mark.parametrize(("document", "named"), REFUSED, ids=[named for _, named in REFUSED])
async def test_what_twilio_can_say_and_we_do_not_do_is_refused_by_name(
    running: Running, document: VoiceResponse, named: str
) -> None:
    problem = assert_problem(await post(running, document), 422, "invalid-input")
    assert named.strip("<>") in problem["detail"]


async def test_number_as_text_of_the_dial_is_refused(running: Running) -> None:
    response = VoiceResponse()
    response.dial("+4930123456")
    problem = assert_problem(await post(running, response), 422, "invalid-input")
    assert "<Dial>" in problem["detail"]


async def test_refused_document_changes_nothing(running: Running) -> None:
    await running.register(fresh("bob"))
    before = running.tables()
    for document, _ in REFUSED[::5]:
        await post(running, document)
    assert running.tables() == before
