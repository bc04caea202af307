"""The voice URL's own bounds: how many wait for a backend at once, and where a request may go."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bellwire.push.backend.requests import (
    AnswerTooLong,
    BackendAtFault,
    BackendRequests,
    OwnHost,
)
from bellwire.push.backend.voice_url import AT_ONCE, AT_ONCE_OF_ONE, VoiceUrl
from bellwire.push.channels.webhook.ssrf_guard import LookUp
from bellwire.signaling.calls.dials import Callback, CallbackMethod
from bellwire.signaling.errors import (
    GatewayTimeout,
    InvalidInput,
    TooManyRequests,
    Unavailable,
)
from bellwire.signaling.identifiers import Identity, new_call_sid
from bellwire.signaling.twiml import TwimlHangup
from tests.push.twiml_backend import AUTH_TOKEN, TWILIO
from tests.push.webhook_receiver import Backend, backend, hang, status

SID = new_call_sid(1, bytes(10))
HANGUP = status(200, body=b"<Response><Hangup/></Response>")


@pytest.fixture
async def there() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@asynccontextmanager
async def requests_to(
    url: str | None, *, private: bool = True, look_up: LookUp | None = None
) -> AsyncIterator[BackendRequests]:
    own = None if url is None else OwnHost(url, private)
    made = BackendRequests(AUTH_TOKEN, own, **({} if look_up is None else {"look_up": look_up}))
    try:
        yield made
    finally:
        await made.aclose()


def voice_url(requests: BackendRequests, url: str, counted: Counter[str]) -> VoiceUrl:
    return VoiceUrl(
        requests,
        Callback(url),
        timeout_s=1.0,
        account_sid="AC" + "0" * 32,
        count=lambda result: counted.update([result]),
    )


async def test_slow_backend_holds_up_few_callers_and_few_of_one(there: Backend) -> None:
    there.answer = hang
    counted: Counter[str] = Counter()
    async with requests_to(there.url) as requests, asyncio.TaskGroup() as tasks:
        asking = voice_url(requests, there.url, counted)

        async def refused(caller: str) -> type[Exception]:
            try:
                await asking.ask(SID, Identity(caller), "bob", {})
            except (GatewayTimeout, TooManyRequests, Unavailable) as error:
                return type(error)
            raise AssertionError

        flood = [tasks.create_task(refused("alice")) for _ in range(20)]
        others = [tasks.create_task(refused(f"caller-{n}")) for n in range(AT_ONCE)]
    outcomes = Counter(task.result() for task in flood)
    assert outcomes == {GatewayTimeout: AT_ONCE_OF_ONE, TooManyRequests: 20 - AT_ONCE_OF_ONE}
    outcomes = Counter(task.result() for task in others)
    assert outcomes == {GatewayTimeout: AT_ONCE - AT_ONCE_OF_ONE, Unavailable: AT_ONCE_OF_ONE}
    assert counted == {"silent": AT_ONCE, "busy": 20}
    there.answer = HANGUP
    async with requests_to(there.url) as requests:
        asking = voice_url(requests, there.url, counted)
        assert await asking.ask(SID, Identity("alice"), "bob", {}) == TwimlHangup()


async def test_place_is_free_again_for_the_next_call(there: Backend) -> None:
    there.answer = HANGUP
    async with requests_to(there.url) as requests:
        asking = voice_url(requests, there.url, Counter())
        for _ in range(3 * AT_ONCE_OF_ONE):
            await asking.ask(SID, Identity("alice"), "bob", {})


def at(*addresses: str) -> LookUp:
    def look_up(*_: object, **__: object) -> Iterable[tuple[Any, ...]]:
        return [(None, None, None, "", (address, 0)) for address in addresses]

    return look_up


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://10.0.0.7/status", "10.0.0.7"),
        ("https://metadata.example/status", "169.254.169.254"),
        ("https://localhost/status", "127.0.0.1"),
        ("https://six.example/status", "::1"),
        ("https://mapped.example/status", "::ffff:10.0.0.7"),
    ],
)
async def test_callback_does_not_go_into_a_private_network(url: str, address: str) -> None:
    for own in (None, "https://backend.example/voice"):
        async with requests_to(own, look_up=at(address)) as requests:
            with pytest.raises(BackendAtFault, match="private network"):
                await requests.ask(Callback(url), {}, limit_s=5)


async def test_callback_without_tls_goes_to_the_voice_urls_own_host_alone(there: Backend) -> None:
    async with requests_to(there.url) as requests:
        answer = await requests.ask(Callback(there.url + "?status"), {"a": "1"}, limit_s=5)
        assert answer.taken
        for elsewhere in (there.url.replace("127.0.0.1", "localhost"), "http://backend.example/"):
            with pytest.raises(BackendAtFault, match="own host only"):
                await requests.ask(Callback(elsewhere), {}, limit_s=5)


@pytest.mark.parametrize(
    "url",
    ["http://backend.example/voice", "https://127.0.0.1/voice", "https://[::1]/", "https://a b/"],
)
def test_voice_url_that_may_not_be_asked_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(InvalidInput, match="voice_url"):
        BackendRequests(AUTH_TOKEN, OwnHost(url))


@pytest.mark.parametrize("method", list(CallbackMethod))
async def test_any_parameters_are_signed_as_twilios_library_checks_them(
    there: Backend, method: CallbackMethod
) -> None:
    parameters = {"b": "ä &=%+#", "a": "", "B": "日本 \U0001f514", "c.d": "1\n2"}
    url = there.url + "?tenant=1&x=%20#part"
    async with requests_to(there.url) as requests:
        await requests.ask(Callback(url, method), parameters, limit_s=5, request_id="once")
    came = await there.next()
    target = came.line.split(" ")[1]
    whole = f"http://{came.headers['host']}{target}"
    form = parameters if method is CallbackMethod.POST else {}
    assert TWILIO.validate(whole, form, came.headers["x-twilio-signature"])
    assert not TWILIO.validate(whole, {**form, "a": "forged"}, came.headers["x-twilio-signature"])
    assert came.headers["i-twilio-idempotency-token"] == "once"
    assert came.line.startswith(f"{method} /hook?tenant=1&x=%20")


async def test_credentials_in_the_url_are_sent_and_not_signed(there: Backend) -> None:
    url = there.url.replace("://", "://user:pass@")
    async with requests_to(url) as requests:
        await requests.ask(Callback(url), {}, limit_s=5)
    came = await there.next()
    assert came.headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert TWILIO.validate(there.url, {}, came.headers["x-twilio-signature"])


async def test_answer_of_64_kib_is_read_and_no_more(there: Backend) -> None:
    async with requests_to(there.url) as requests:
        there.answer = status(200, body=b" " * 65_536)
        answer = await requests.ask(Callback(there.url), {}, limit_s=5)
        assert len(answer.body) == 65_536
        there.answer = status(200, body=b" " * 65_537)
        with pytest.raises(AnswerTooLong):
            await requests.ask(Callback(there.url), {}, limit_s=5)


async def test_failure_that_is_told_at_length_is_a_failure(there: Backend) -> None:
    async with requests_to(there.url) as requests:
        there.answer = status(502, body=b"<p>Bad gateway</p>" * 10_000)
        answer = await requests.ask(Callback(there.url), {}, limit_s=5)
    assert (answer.status, answer.taken) == (502, False), "an action is asked again then"


@pytest.mark.parametrize(
    "location", ["ftp://user:pass@b.example/x", "https://user:pass@b.example:0"]
)
async def test_what_says_that_a_url_is_none_holds_no_parameters_and_no_password(
    there: Backend, location: str
) -> None:
    there.answer = status(302, f"Location: {location}")
    async with requests_to(there.url) as requests:
        with pytest.raises(BackendAtFault) as refused:
            await requests.ask(Callback(there.url), {"pin": "4711"}, limit_s=5)
    assert "b.example" in str(refused.value)
    assert "4711" not in str(refused.value)
    assert "pass" not in str(refused.value)
