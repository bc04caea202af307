"""A relay with a voice URL: whom a call of an app or device rings, the backend says, in TwiML that Twilio's
library has written; where it says nothing good, nothing rings, and who called is told why, in time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from twilio.twiml.voice_response import VoiceResponse

from tests.push.streams import reading, register_for_stream
from tests.push.support import (
    Device,
    Running,
    assert_problem,
    fresh,
    listening,
    on_both_stores_in_full,
    states,
)
from tests.push.twiml_backend import AUTH_TOKEN, TwimlBackend, twiml, twiml_backend
from tests.push.ways import OverConnection, OverHttp, Way
from tests.push.webhook_receiver import (
    Answer,
    Backend,
    backend,
    drip,
    hang,
    raw,
    status,
    target,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), on_both_stores_in_full]

TIMEOUT_S = 1.0
ACCOUNT = "AC" + "5" * 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there() -> AsyncIterator[TwimlBackend]:
    async with twiml_backend() as here:
        yield here
        assert not here.faults, "each request was signed as Twilio's library has it"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hook() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture(scope="module")
def settings(
    there: TwimlBackend, hook: Backend, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("secrets")
    token = folder / "auth-token"
    token.write_text(AUTH_TOKEN)
    told = target(folder, hook.url, events=["call.message", "backend.answer_refused"])
    return {
        "BELLWIRE_VOICE_URL": f"{there.url}/voice",
        "BELLWIRE_VOICE_URL_TIMEOUT_S": str(TIMEOUT_S),
        "BELLWIRE_VOICE_URL_ALLOW_PRIVATE_NETWORK": "true",
        "BELLWIRE_TWILIO_AUTH_TOKEN_FILE": str(token),
        "BELLWIRE_ACCOUNT_SID": ACCOUNT,
        "BELLWIRE_WEBHOOKS": json.dumps({"told": json.loads(told.model_dump_json())}),
        # The backend decides: what the policy says of apps does not keep it from anything.
        "BELLWIRE_POLICY": json.dumps({"default": "deny"}),
    }


def dialing(*clients: str, **attributes: Any) -> Answer:  # noqa: ANN401 - TwiML's
    response = VoiceResponse()
    dial = response.dial(**attributes)
    for client in clients:
        dial.client(client)
    return twiml(response)


@asynccontextmanager
async def caller_over(kind: str, running: Running, name: str) -> AsyncIterator[Way]:
    """Somebody who calls by a token of theirs, over MQTT, or over a stream."""
    async with AsyncExitStack() as stack:
        if kind == "http":
            await running.register(name)
            yield OverHttp(running, name, name)
        elif kind == "mqtt":
            device = await stack.enter_async_context(listening(running, name))
            yield OverConnection(device, name)
        else:
            await register_for_stream(running, name)
            stream = await stack.enter_async_context(reading(running, name))
            yield OverConnection(stream, name)


@pytest.mark.parametrize("kind", ["http", "mqtt", "websocket"])
async def test_call_of_an_app_rings_whom_the_backends_twiml_names(
    running: Running, there: TwimlBackend, kind: str
) -> None:
    alice, bob, asked_for = fresh("alice"), fresh("bob"), fresh("support")
    response = VoiceResponse()
    client = response.dial(answer_on_bridge=True).client()
    client.identity(bob)
    client.parameter(name="greeting", value="Grüß Gott & guten Tag")
    there.voice[asked_for] = twiml(response)
    async with listening(running, bob) as at_bob, caller_over(kind, running, alice) as caller:
        code, call = await caller.ask(
            "invite",
            to=[asked_for],
            custom_parameters={
                "room": "Küche 2",
                "CallSid": "CAforged",
                "from": "client:eve",
                "DialCallStatus": "completed",
                "empty": "",
            },
        )
        assert code == 201, call
        invite = await at_bob.until("call.received", call["call_sid"])
        (asked,) = there.voice_of(asked_for)
        await running.end_calls_of(alice)
    assert asked.method == "POST"
    assert asked.parameters == {
        "CallSid": call["call_sid"],  # the call keeps the SID that was asked with
        "AccountSid": ACCOUNT,
        "From": f"client:{alice}",
        "Caller": f"client:{alice}",
        "To": asked_for,
        "Called": asked_for,
        "Direction": "inbound",
        "CallStatus": "ringing",
        "ApiVersion": "2010-04-01",
        "room": "Küche 2",
        "empty": "",
    }
    assert states(call) == {alice: "Accepted", bob: "Inviting"}
    assert (invite["from"], invite["to"]) == (f"client:{alice}", f"client:{bob}")
    assert invite["custom_parameters"] == {"greeting": "Grüß Gott & guten Tag"}
    assert invite["caller_info"]["attestation"] == "A"
    assert _seconds(call["created_at"], call["expires_at"]) == 30, "as Twilio's"


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


async def test_caller_id_is_shown_with_the_backends_word_for_it(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = dialing(bob, caller_id="+4930123456", timeout=20)
    async with listening(running, bob) as at_bob, caller_over("http", running, alice) as caller:
        code, call = await caller.ask("invite", to=[bob])
        invite = await at_bob.until("call.received", call["call_sid"])
        await running.end_calls_of(alice)
    assert (code, call["from"], invite["from"]) == (201, alice, "+4930123456")
    assert invite["caller_info"]["attestation"] == "B"
    assert _seconds(call["created_at"], call["expires_at"]) == 20


async def test_call_of_a_server_is_not_asked_about(running: Running, there: TwimlBackend) -> None:
    bob = fresh("bob")
    async with listening(running, bob) as at_bob:
        sid = await running.called(bob)
        await at_bob.until("call.received", sid)
        await running.do(sid, "end")
    assert not there.voice_of(bob)


SAY = "<Response><Say>hello</Say></Response>"
BROKEN: dict[str, Answer] = {
    "500": status(500),
    "404": status(404),
    "no body": status(200),
    "204": status(204),
    "no TwiML": status(200, "Content-Type: application/json", body=b'{"ring": "bob"}'),
    "a verb that needs a media server": twiml(SAY),
    "Dial and Say": twiml("<Response><Dial><Client>x</Client></Dial><Say>bye</Say></Response>"),
    "a number": twiml("<Response><Dial><Number>+4930</Number></Dial></Response>"),
    "an entity": twiml('<!DOCTYPE Response [<!ENTITY a "b">]><Response>&a;</Response>'),
    "the caller": dialing("ME"),
    "somebody twice": twiml(
        "<Response><Dial><Client>x</Client><Client>x</Client></Dial></Response>"
    ),
    "64 KiB and a byte": status(200, body=b" " * 65_537),
    "without an end": raw(b"HTTP/1.1 200 OK\r\n\r\n", b"<" * 70_000, then_close=False),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "a closed door": raw(),
    "in a circle": status(307, "Location: /voice"),
    "to a file": status(302, "Location: file:///etc/passwd"),
    "to the cloud's metadata": status(302, "Location: https://169.254.169.254/latest/meta-data"),
    "to what is no URL": status(302, "Location: http://[::1"),
    "to plain HTTP elsewhere": status(302, "Location: http://backend.example/voice"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_answer_that_is_no_good_rings_nobody_and_is_31502(
    running: Running, there: TwimlBackend, what: str
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = dialing(alice) if what == "the caller" else BROKEN[what]
    async with listening(running, bob) as at_bob, caller_over("http", running, alice) as caller:
        code, problem = await caller.ask("invite", to=[bob])
        asked = there.voice_of(bob)[-1]
        assert (code, problem["code"]) == (502, 31502), problem
        assert problem["type"] == "/problems/bad-gateway"
        await nothing_rang(running, at_bob, asked.parameters["CallSid"])


async def nothing_rang(running: Running, at: Device, sid: str) -> None:
    """Nothing of a call has come to a device, and there is no such call."""
    assert (await running.http.get(f"/v1/calls/{sid}")).status_code == 404
    await at.ask({"operation": "list"})  # all that was sent before has come before its answer
    assert not at.events


async def test_redirect_into_a_private_network_is_not_followed(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    async with backend() as inside, listening(running, bob) as at_bob:
        for host in (inside.url, inside.url.replace("http://", "https://")):
            there.voice[bob] = status(307, f"Location: {host}")
            async with caller_over("http", running, alice) as caller:
                code, problem = await caller.ask("invite", to=[bob])
            assert (code, problem["code"]) == (502, 31502)
            await nothing_rang(running, at_bob, there.voice_of(bob)[-1].parameters["CallSid"])
        assert inside.connections == 0


@pytest.mark.parametrize("code", [302, 307])
async def test_redirect_at_the_voice_urls_own_host_is_followed_and_signed_anew(
    running: Running, there: TwimlBackend, code: int
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = status(code, f"Location: /moved-{bob}?by={code}")
    there.elsewhere[f"/moved-{bob}"] = dialing(bob)
    await running.register(bob)
    async with caller_over("http", running, alice) as caller:
        answer, call = await caller.ask("invite", to=[bob])
        await running.end_calls_of(alice)
    assert answer == 201
    (moved,) = there.of(f"/moved-{bob}", call["call_sid"])
    assert moved.method == ("GET" if code == 302 else "POST")
    assert (moved.parameters["by"], moved.parameters["From"]) == (str(code), f"client:{alice}")


@pytest.mark.parametrize("kind", ["http", "mqtt", "websocket"])
@pytest.mark.parametrize("silence", [hang, drip], ids=["silent", "dripping"])
async def test_backend_that_does_not_answer_in_time_is_31504(
    running: Running, there: TwimlBackend, kind: str, silence: Answer
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = silence
    async with listening(running, bob) as at_bob, caller_over(kind, running, alice) as caller:
        started = time.monotonic()
        code, problem = await caller.ask("invite", to=[bob])
        took_s = time.monotonic() - started
        assert (code, problem["code"]) == (504, 31504)
        assert problem["type"] == "/problems/gateway-timeout"
        assert TIMEOUT_S * 0.9 < took_s < TIMEOUT_S + 3
        await nothing_rang(running, at_bob, there.voice_of(bob)[-1].parameters["CallSid"])


@pytest.mark.parametrize("kind", ["http", "mqtt", "websocket"])
@pytest.mark.parametrize("reason", ["rejected", "busy"])
async def test_reject_is_31600_with_its_reason(
    running: Running, there: TwimlBackend, kind: str, reason: str
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    response = VoiceResponse()
    response.reject(reason=reason)
    there.voice[bob] = twiml(response)
    async with listening(running, bob) as at_bob, caller_over(kind, running, alice) as caller:
        code, problem = await caller.ask("invite", to=[bob])
        assert (code, problem["code"], problem["reason"]) == (403, 31600, reason)
        assert problem["type"] == "/problems/call-rejected"
        await nothing_rang(running, at_bob, there.voice_of(bob)[-1].parameters["CallSid"])


async def test_hangup_is_31487(running: Running, there: TwimlBackend) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    response = VoiceResponse()
    response.hangup()
    there.voice[bob] = twiml(response)
    async with caller_over("http", running, alice) as caller:
        code, problem = await caller.ask("invite", to=[bob])
    assert (code, problem["code"], problem["type"]) == (409, 31487, "/problems/hung-up")


async def test_device_that_asks_again_while_the_backend_thinks_makes_one_call(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob, key = fresh("alice"), fresh("bob"), fresh("key")
    may_answer, asked_once = asyncio.Event(), asyncio.Event()
    dial = dialing(bob)

    async def thinking(*request: Any) -> None:  # noqa: ANN401 - as `Answer`
        asked_once.set()
        await may_answer.wait()
        await dial(*request)

    there.voice[bob] = thinking
    await running.register(bob)
    async with caller_over("http", running, alice) as caller:
        asked = [
            asyncio.create_task(caller.ask("invite", to=[bob], idempotency_key=key))
            for _ in range(3)
        ]
        await asked_once.wait()
        may_answer.set()
        answers = await asyncio.gather(*asked)
        again = await caller.ask("invite", to=[bob], idempotency_key=key)
        other = await caller.ask("invite", to=[alice + "-x"], idempotency_key=key)
        await running.end_calls_of(alice)
    assert {code for code, _ in (*answers, again)} == {201}
    assert len({call["call_sid"] for _, call in (*answers, again)}) == 1
    assert len(there.voice_of(bob)) == 1
    assert other[0] == 409


async def test_first_to_answer_has_the_call_and_the_others_stop_ringing(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    there.voice["all"] = dialing(bob, carol)
    async with (
        listening(running, bob) as at_bob,
        listening(running, carol) as at_carol,
        caller_over("http", running, alice) as caller,
    ):
        _, call = await caller.ask("invite", to=["all"])
        sid = call["call_sid"]
        await at_bob.until("call.received", sid)
        await at_carol.ask({"operation": "accept", "call_sid": sid})
        await at_bob.until("call.cancelled", sid)
        assert states(await running.call(sid)) == {
            alice: "Accepted",
            bob: "Canceled",
            carol: "Accepted",
        }
        await running.end_calls_of(alice)


async def test_dial_is_told_of_from_its_beginning_to_its_end(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    response = VoiceResponse()
    dial = response.dial(action="/over?shop=7", method="GET")
    client = dial.client(
        status_callback="status",
        status_callback_event="initiated ringing answered completed",
    )
    client.identity(bob)
    there.voice[bob] = twiml(response)
    async with listening(running, bob) as at_bob, caller_over("http", running, alice) as caller:
        _, call = await caller.ask("invite", to=[bob])
        sid = call["call_sid"]
        await at_bob.until("call.received", sid)
        for operation in ("received", "accept"):
            assert (await at_bob.ask({"operation": operation, "call_sid": sid}))["status"] == 200
        assert not there.of("/over", sid)
        await at_bob.ask({"operation": "quit", "call_sid": sid})
        (over,) = await there.told("/over", sid)
        told = await there.told("/status", sid, 4)
    told.sort(key=lambda one: int(one.parameters["SequenceNumber"]))
    assert [one.parameters["CallStatus"] for one in told] == [
        "initiated",
        "ringing",
        "in-progress",
        "completed",
    ]
    for one in told:
        parameters = one.parameters
        assert parameters["ParentCallSid"] == sid
        assert (parameters["From"], parameters["To"]) == (f"client:{alice}", f"client:{bob}")
        assert (parameters["Direction"], parameters["AccountSid"]) == ("outbound-dial", ACCOUNT)
        assert parameters["CallbackSource"] == "call-progress-events"
        assert parameters["Timestamp"].endswith(" +0000")
        assert one.headers["i-twilio-idempotency-token"]
    assert [one.parameters.get("CallDuration") for one in told] == [None, None, None, "0"]
    assert over.method == "GET"
    assert over.parameters == {
        "shop": "7",
        "CallSid": sid,
        "AccountSid": ACCOUNT,
        "ApiVersion": "2010-04-01",
        "From": f"client:{alice}",
        "Caller": f"client:{alice}",
        "To": bob,
        "Called": bob,
        "Direction": "inbound",
        "CallStatus": "completed",
        "DialCallSid": sid,
        "DialCallStatus": "completed",
        "DialBridged": "true",
        "DialCallDuration": "0",
    }


async def test_action_is_asked_too_where_nobody_could_be_rung(
    running: Running, there: TwimlBackend
) -> None:
    alice, nobody = fresh("alice"), fresh("nobody")
    there.voice[nobody] = dialing(nobody, action="/over")
    async with caller_over("http", running, alice) as caller:
        code, problem = await caller.ask("invite", to=[nobody])
    assert (code, problem["code"]) == (404, 31604)
    sid = there.voice_of(nobody)[0].parameters["CallSid"]
    (over,) = await there.told("/over", sid)
    assert over.parameters["DialCallStatus"] == "failed"


async def test_action_that_answers_with_more_is_refused_and_told_to_webhooks(
    running: Running, there: TwimlBackend, hook: Backend
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = dialing(bob, action=f"/more-{bob}?secret=1")
    there.elsewhere[f"/more-{bob}"] = twiml(SAY)
    await running.register(bob)
    async with caller_over("http", running, alice) as caller:
        _, call = await caller.ask("invite", to=[bob])
        await caller.ask("cancel", call["call_sid"])
    (over,) = await there.told(f"/more-{bob}", call["call_sid"])
    assert over.parameters["DialCallStatus"] == "canceled"
    while (event := (await hook.next()).event)["type"] != "backend.answer_refused":
        pass
    assert event["data"]["call_sid"] == call["call_sid"]
    assert "<Say>" in event["data"]["reason"]
    assert event["data"]["url"] == f"{there.url}/more-{bob}"
    metrics = (await running.http.get("/metrics")).text
    assert 'bellwire_refused_total{reason="action-answer"} 1.0' in metrics


async def test_time_limit_ends_the_call(running: Running, there: TwimlBackend) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = dialing(bob, time_limit=1, action="/over")
    async with listening(running, bob) as at_bob, caller_over("http", running, alice) as caller:
        _, call = await caller.ask("invite", to=[bob])
        sid = call["call_sid"]
        await at_bob.ask({"operation": "accept", "call_sid": sid})
        await at_bob.until("call.ended", sid)
        (over,) = await there.told("/over", sid)
    assert over.parameters["DialCallStatus"] == "completed"
    assert over.parameters["DialCallDuration"] == "1"


async def test_app_cannot_have_the_relay_ask_urls_of_its_own(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    document = f'<Response><Dial action="/over"><Client>{bob}</Client></Dial></Response>'
    answer = await running.http.post(
        "/v1/calls",
        content=document,
        headers=await running.token(alice) | {"Content-Type": "text/xml"},
    )
    assert_problem(answer, 403, "forbidden")
    assert not there.voice_of(bob)


async def test_backend_is_asked_about_the_twiml_of_an_app_too(
    running: Running, there: TwimlBackend
) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    there.voice[bob] = dialing(carol)
    await running.register(carol)
    answer = await running.http.post(
        "/v1/calls",
        content=f'<Response><Dial timeLimit="5"><Client>{bob}</Client></Dial></Response>',
        headers=await running.token(alice) | {"Content-Type": "text/xml"},
    )
    assert answer.status_code == 201, answer.text
    assert states(answer.json()) == {alice: "Accepted", carol: "Inviting"}
    assert len(there.voice_of(bob)) == 1
    await running.end_calls_of(alice)


async def test_server_that_posts_twiml_is_told_of_it_too(
    running: Running, there: TwimlBackend
) -> None:
    bob = fresh("bob")
    response = VoiceResponse()
    dial = response.dial(caller_id="client:porter", action="/over")
    dial.client(bob, status_callback="/status", status_callback_event="completed")
    async with listening(running, bob) as at_bob:
        answer = await running.http.post(
            "/v1/calls", content=str(response), headers={"Content-Type": "text/xml"}
        )
        assert answer.status_code == 201, answer.text
        sid = answer.json()["call_sid"]
        await at_bob.ask({"operation": "reject", "call_sid": sid})
        (over,) = await there.told("/over", sid)
        (done,) = await there.told("/status", sid)
    assert (over.parameters["DialCallStatus"], done.parameters["CallStatus"]) == ("busy", "busy")
    assert (over.parameters["Direction"], over.parameters["From"]) == (
        "outbound-api",
        "client:porter",
    )


@pytest.mark.parametrize("kind", ["http", "mqtt", "websocket"])
async def test_message_to_the_backend_goes_to_the_webhook_alone(
    running: Running, there: TwimlBackend, hook: Backend, kind: str
) -> None:
    alice, bob = fresh("alice"), fresh("bob")
    there.voice[bob] = dialing(bob)
    async with listening(running, bob) as at_bob, caller_over(kind, running, alice) as caller:
        _, call = await caller.ask("invite", to=[bob])
        sid = call["call_sid"]
        code, _ = await caller.ask("message", sid, to=["backend"], content={"note": kind})
        assert code == 200
        while (event := (await hook.next()).event)["data"].get("call_sid") != sid:
            pass
        assert event["type"] == "call.message"
        assert (event["data"]["content"], event["data"]["from"]) == (
            {"note": kind},
            f"client:{alice}",
        )
        assert (event["data"]["to_backend"], event["data"]["recipients"]) == (True, [])
        await at_bob.ask({"operation": "list"})
        assert not at_bob.seen("call.message")
        await running.end_calls_of(alice)


async def test_message_of_the_backend_reaches_one_some_or_all(running: Running) -> None:
    alice, bob, carol = fresh("alice"), fresh("bob"), fresh("carol")
    async with AsyncExitStack() as stack:
        at = {
            name: await stack.enter_async_context(listening(running, name))
            for name in (alice, bob, carol)
        }
        sid = await running.called(bob, carol, **{"from": alice})
        for to in ([bob], [bob, carol], None):
            sent = {"content": len(to or "all")} | ({} if to is None else {"to": to})
            answer = await running.http.post(f"/v1/calls/{sid}/messages", json=sent)
            assert answer.status_code == 200, answer.text
            for name in to or at:
                message = await at[name].until("call.message", sid)
                assert (message["content"], message.get("from")) == (len(to or "all"), None)
        assert [at[name].seen("call.message") for name in (alice, bob, carol)] == [1, 3, 2]
        await running.do(sid, "end")
