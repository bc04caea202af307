"""What goes over the wire to a backend, and what each of its answers comes to."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.channel import DeliveryFailed, DeliveryRefused
from bellwire.push.channels.webhook.channel import CONNECTIONS, LIFE_S, WebhookChannel
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId
from tests.push.clock import Clock
from tests.push.webhook_receiver import (
    OTHER_SECRET,
    SECRET,
    Answer,
    Backend,
    backend,
    certificate,
    drip,
    hang,
    raw,
    status,
    target,
)

BODY = '{"type":"call.received","timestamp":"2026-11-21T08:23:11.738Z","data":{"to":"client:Zoë"}}'
Sending = Callable[..., AbstractAsyncContextManager[WebhookChannel]]


def delivery(app: str = "billing", event_id: str = "CA-1") -> Delivery:
    return Delivery(event_id, DeviceId(""), "webhook", BODY, 0, app=app)


@pytest.fixture
async def receiver() -> AsyncIterator[Backend]:
    async with backend() as here:
        yield here


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(UTC))


@pytest.fixture
def sending(tmp_path: Path, clock: Clock) -> Sending:
    """A channel to targets, each given by its URL or its settings."""

    @asynccontextmanager
    async def open_channel(**targets: str | WebhookTarget) -> AsyncIterator[WebhookChannel]:
        settings = {
            name: target(tmp_path, given) if isinstance(given, str) else given
            for name, given in targets.items()
        }
        async with aclosing(WebhookChannel(settings, now=clock.now)) as channel:
            yield channel

    return open_channel


async def test_an_event_arrives_as_standard_webhooks_wants_it(
    receiver: Backend, sending: Sending, clock: Clock
) -> None:
    url = receiver.url.replace("http://", "http://user:pa%20ss@") + "?tenant=7"
    async with sending(billing=url) as channel:
        assert await channel.send(delivery(), LIFE_S) == "answered 200"
    came = await receiver.next()
    assert came.line == "POST /hook?tenant=7 HTTP/1.1"
    assert came.body == BODY.encode()
    assert came.verified()["data"] == {"to": "client:Zoë"}
    assert came.headers == {
        "host": receiver.url.split("/")[2],
        "content-type": "application/json",
        "content-length": str(len(BODY.encode())),
        "user-agent": f"Bellwire/{version('bellwire')}",
        "authorization": "Basic dXNlcjpwYSBzcw==",
        "webhook-id": "CA-1",
        "webhook-timestamp": str(int(clock.now().timestamp())),
        "webhook-signature": came.headers["webhook-signature"],
    }


async def test_an_event_arrives_over_https_where_the_certificate_is_good(
    tmp_path: Path, sending: Sending
) -> None:
    ca_file, tls = certificate(tmp_path, ["localhost"])
    async with backend(tls=tls) as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        trusting, other = target(tmp_path, url, ca_file=ca_file), target(tmp_path, url)
        by_address = target(tmp_path, receiver.url, ca_file=ca_file)
        async with sending(billing=trusting, stranger=other, wrong=by_address) as channel:
            await channel.send(delivery(), LIFE_S)
            assert (await receiver.next()).verified()["type"] == "call.received"
            for name in ("stranger", "wrong"):
                with pytest.raises(DeliveryFailed, match="CERTIFICATE_VERIFY_FAILED"):
                    await channel.send(delivery(name), LIFE_S)
        assert receiver.came.empty()


async def test_while_secrets_are_changed_an_event_is_signed_with_each(
    tmp_path: Path, receiver: Backend, sending: Sending
) -> None:
    both = target(tmp_path, receiver.url, SECRET, "", OTHER_SECRET)
    async with sending(billing=both) as channel:
        await channel.send(delivery(), LIFE_S)
    came = await receiver.next()
    assert came.verified(SECRET) == came.verified(OTHER_SECRET) == came.event
    assert len(came.headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(WebhookVerificationError):
        came.verified("whsec_" + "A" * 32)


async def test_each_attempt_has_the_same_id_and_body_and_a_time_and_signature_of_its_own(
    receiver: Backend, sending: Sending, clock: Clock
) -> None:
    receiver.answers = [status(500)]
    async with sending(billing=receiver.url) as channel:
        with pytest.raises(DeliveryFailed):
            await channel.send(delivery(), LIFE_S)
        clock.advance(3600)
        await channel.send(delivery(), LIFE_S - 3600)
    first, second = await receiver.next_few(2)
    assert (first.id, first.body) == (second.id, second.body)
    times = [int(came.headers["webhook-timestamp"]) for came in (first, second)]
    assert times[1] - times[0] == 3600
    for came, at in zip((first, second), times, strict=True):
        signature = Webhook(SECRET).sign(came.id, datetime.fromtimestamp(at, UTC), BODY)
        assert came.headers["webhook-signature"] == signature


@pytest.mark.parametrize("answer", [status(200), status(201, body=b"{}"), status(204)])
async def test_any_2xx_takes_the_event_and_leaves_the_connection_for_the_next(
    receiver: Backend, sending: Sending, answer: Answer
) -> None:
    receiver.answer = answer
    async with sending(billing=receiver.url) as channel:
        for _ in range(3):
            await channel.send(delivery(), LIFE_S)
        last = channel.last["billing"]
    assert (last.taken, last.result[:10]) == (True, "answered 2")
    assert receiver.connections == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(302, "Location: /elsewhere"), "answered 302, a redirect, which is not followed"),
        (status(307, "Location: /elsewhere"), "answered 307, a redirect, which is not followed"),
        (status(400), "answered 400"),
        (status(404), "answered 404"),
        (status(500), "answered 500"),
        (raw(), "RemoteProtocolError"),
        (raw(b"HTTP/1.1 2"), "RemoteProtocolError"),
        (raw(b"\x00\x01 nonsense\r\n\r\n"), "RemoteProtocolError"),
        (raw(b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 200_000), "RemoteProtocolError"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
async def test_an_event_that_is_not_taken_is_to_be_tried_again(
    receiver: Backend, sending: Sending, answer: Answer, words: str
) -> None:
    receiver.answers = [answer]
    async with sending(billing=receiver.url) as channel:
        with pytest.raises(DeliveryFailed, match=words) as failed:
            await channel.send(delivery(), LIFE_S)
        assert failed.value.retry_after_s == pytest.approx(5, rel=0.1)
        assert "billing" in str(failed.value)
        assert not channel.last["billing"].taken
        await channel.send(delivery(), LIFE_S)
    assert [came.line for came in await receiver.next_few(2)] == ["POST /hook HTTP/1.1"] * 2
    assert receiver.came.empty()


async def test_a_backend_that_is_down_is_tried_again(sending: Sending) -> None:
    async with backend() as receiver:
        url = receiver.url
    async with sending(billing=url, nowhere="http://no-such-host.invalid/") as channel:
        with pytest.raises(DeliveryFailed, match=r"Connect call failed|refused"):
            await channel.send(delivery(), LIFE_S)
        with pytest.raises(DeliveryFailed, match="gaierror"):
            await channel.send(delivery("nowhere"), LIFE_S)


async def test_410_says_that_the_event_is_wanted_no_more(
    receiver: Backend, sending: Sending
) -> None:
    receiver.answer = status(410)
    async with sending(billing=receiver.url) as channel:
        with pytest.raises(DeliveryRefused, match="answered 410"):
            await channel.send(delivery(), LIFE_S)


async def test_a_target_that_the_settings_no_longer_hold_gets_nothing(sending: Sending) -> None:
    async with sending() as channel:
        with pytest.raises(DeliveryRefused, match="no webhook billing"):
            await channel.send(delivery(), LIFE_S)


@pytest.mark.parametrize(
    ("code", "after", "wait_s"),
    [
        (429, "120", 120),
        (503, "120", 120),
        (503, "in 90 s", 90),
        (503, "1", 5),
        (503, "9" * 30, LIFE_S),
        (503, "soon", 5),
        (503, "-5", 5),
        (500, "120", 5),
    ],
)
async def test_the_next_attempt_is_not_before_the_backend_says(
    receiver: Backend, sending: Sending, clock: Clock, code: int, after: str, wait_s: float
) -> None:
    if after == "in 90 s":
        after = format_datetime(clock.now() + timedelta(seconds=90), usegmt=True)
    receiver.answer = status(code, f"Retry-After: {after}")
    async with sending(billing=receiver.url) as channel:
        with pytest.raises(DeliveryFailed) as failed:
            await channel.send(delivery(), LIFE_S)
    assert failed.value.retry_after_s == pytest.approx(wait_s, rel=0.1, abs=1)


async def test_the_longer_an_event_is_owed_the_longer_it_waits_but_never_past_its_end(
    receiver: Backend, sending: Sending
) -> None:
    receiver.answer = status(500)
    waits: list[float] = []
    async with sending(billing=receiver.url) as channel:
        left_s = LIFE_S
        while left_s > 0:
            with pytest.raises(DeliveryFailed) as failed:
                await channel.send(delivery(), left_s)
            assert failed.value.retry_after_s is not None
            waits.append(failed.value.retry_after_s)
            left_s -= waits[-1]
    assert sum(waits) == pytest.approx(LIFE_S)
    assert 12 <= len(waits) <= 20
    assert waits[0] < 6
    assert sum(waits[:4]) < 180  # a restart of the backend costs minutes
    assert max(waits) <= 12 * 3600 * 1.1


async def test_a_backend_that_hangs_delays_no_other_and_holds_few_connections(
    receiver: Backend, sending: Sending
) -> None:
    async with backend() as hanging:
        hanging.answer = hang
        async with sending(billing=receiver.url, hanging=hanging.url) as channel:
            async with asyncio.TaskGroup() as tasks:
                stuck = [
                    tasks.create_task(failing(channel, delivery("hanging", f"CA-{n}"), 3.0))
                    for n in range(3 * CONNECTIONS)
                ]
                await hanging.next_few(CONNECTIONS)
                for _ in range(5):
                    await channel.send(delivery(), LIFE_S)
                assert not all(task.done() for task in stuck)  # none of them was waited for
            reasons = sorted({task.result() for task in stuck})
            assert len(reasons) == 2
            assert "all in use" in reasons[0]
            assert "no answer within 3.0 s" in reasons[1]
            assert hanging.open_at_once == CONNECTIONS
            # It has come back, and no connection was lost over it.
            hanging.answer = status(200)
            async with asyncio.TaskGroup() as tasks:
                for n in range(3 * CONNECTIONS):
                    tasks.create_task(channel.send(delivery("hanging", f"CA-{n}"), LIFE_S))


async def failing(channel: WebhookChannel, sent: Delivery, left_s: float) -> str:
    with pytest.raises(DeliveryFailed) as failed:
        await channel.send(sent, left_s)
    return str(failed.value)


async def test_an_attempt_that_is_cancelled_gives_its_connection_back(
    receiver: Backend, sending: Sending
) -> None:
    receiver.answer = hang
    async with sending(billing=receiver.url) as channel:
        stuck = [asyncio.create_task(channel.send(delivery(), LIFE_S)) for _ in range(CONNECTIONS)]
        await receiver.next_few(CONNECTIONS)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert all(task.cancelled() for task in stuck)
        receiver.answer = status(200)
        await channel.send(delivery(), LIFE_S)


@pytest.mark.parametrize("answer", [drip, status(200, body=b"x" * 2_000_000)])
async def test_a_body_that_is_long_or_slow_is_not_waited_for(
    receiver: Backend, sending: Sending, answer: Answer
) -> None:
    receiver.answers = [answer]
    async with sending(billing=receiver.url) as channel:
        assert await channel.send(delivery(), LIFE_S) == "answered 200"
        await channel.send(delivery(), LIFE_S)
    assert receiver.connections == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "https://"}, "webhooks.billing.url"),
        ({"url": "https:///hook"}, "webhooks.billing.url"),
        ({"url": "https://backend.example:0/"}, "webhooks.billing.url"),
        ({"url": "https://backend.example:99999/"}, "webhooks.billing.url"),
        ({"url": "https://back end.example/"}, "webhooks.billing.url"),
        ({"url": "http://backend.example/"}, "http:// is for private networks only"),
        ({"url": "https://10.1.2.3/"}, "webhooks.billing.allow_private_network"),
        ({"url": "https://[::1]/"}, "webhooks.billing.allow_private_network"),
        ({"url": "http://8.8.8.8/", "allow_private_network": True}, "use https://"),
        ({"secret_file": "missing"}, "webhooks.billing.secret_file.*No such file"),
        ({"secret_file": "empty"}, "must hold 1 to 8 secrets"),
        ({"secret_file": "many"}, "must hold 1 to 8 secrets"),
        ({"secret_file": "bare"}, "line 1 of .*openssl rand"),
        ({"secret_file": "no base64"}, "line 2 of .*openssl rand"),
        ({"secret_file": "weak"}, "line 1 of .*24 to 64 bytes"),
        ({"secret_file": "binary"}, "line 1 of .*openssl rand"),
        ({"ca_file": "empty"}, "webhooks.billing.ca_file"),
        ({"ca_file": "missing"}, "webhooks.billing.ca_file"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_setting_that_cannot_be_is_named_and_no_secret_is_shown(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    files = {
        "good": SECRET.encode(),
        "empty": b"",
        "many": b"\n".join([SECRET.encode()] * 9),
        "bare": SECRET.removeprefix("whsec_").encode(),
        "no base64": f"{SECRET}\nwhsec_{'!' * 32}".encode(),
        "weak": b"whsec_c2VjcmV0",
        "binary": b"\xff\xfe\x00",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    given = {"url": "https://backend.example/", "secret_file": "good", **settings}
    paths = {name: tmp_path / given[name] for name in ("secret_file", "ca_file") if name in given}
    broken = WebhookTarget.model_validate({**given, **paths})
    with pytest.raises(InvalidInput, match=said) as refused:
        WebhookChannel({"billing": broken}, now=lambda: datetime.now(UTC))
    for secret in (SECRET.removeprefix("whsec_"), "c2VjcmV0"):
        assert secret not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 65])
def test_a_name_that_cannot_stand_in_a_path_is_refused(tmp_path: Path, name: str) -> None:
    settings = {name: target(tmp_path, "http://127.0.0.1/")}
    with pytest.raises(InvalidInput, match="a name is 1 to 64"):
        WebhookChannel(settings, now=lambda: datetime.now(UTC))
