"""A webhook reaches no network that it may not: whatever its name, DNS or the backend says."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed
from bellwire.push.channels.webhook.channel import LIFE_S, WebhookChannel
from bellwire.push.channels.webhook.ssrf_guard import is_public
from bellwire.push.store.rows.outbox import Delivery
from bellwire.signaling.identifiers import DeviceId
from tests.conftest import PATIENCE_S
from tests.push.webhook_receiver import Backend, backend, certificate, status, target

Sending = Callable[..., AbstractAsyncContextManager[WebhookChannel]]


class Dns:
    """A name server: answers with addresses one set after the other, the last one for ever."""

    def __init__(self, *answers: str) -> None:
        self.answers = [answer.split() for answer in answers]
        self.asked = 0

    def __call__(self, _host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [(0, 0, 0, "", (address, port)) for address in answer]


@asynccontextmanager
async def sending(
    look_up: Callable[..., Any] = socket.getaddrinfo, **targets: WebhookTarget
) -> AsyncIterator[WebhookChannel]:
    channel = WebhookChannel(targets, now=lambda: datetime.now(UTC), look_up=look_up)
    async with aclosing(channel):
        yield channel


async def send(channel: WebhookChannel, name: str, left_s: float = LIFE_S) -> None:
    await channel.send(Delivery("CA-1", DeviceId(""), "webhook", "{}", 0, app=name), left_s)


def at_port_of(receiver: Backend, host: str, scheme: str = "https") -> str:
    return f"{scheme}://{host}:{receiver.url.rsplit(':', 1)[1]}"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("172.15.255.255", True),
        ("172.32.0.1", True),
        ("2606:4700::1111", True),
        ("2a00:1450:4001:80b::200e", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing listens on it
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("168.63.129.16", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("172.31.255.255", False),
        ("192.0.0.192", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("203.0.113.9", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:8.8.8.8", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:db8::1", False),
        ("2002:a00:1::1", False),
        ("3fff::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_an_address_is_public_or_is_not(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) is public


@pytest.mark.parametrize(
    "host", ["localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"]
)
async def test_a_name_that_leads_to_a_private_network_is_refused_unless_allowed(
    tmp_path: Path, host: str
) -> None:
    async with backend() as receiver:
        url = at_port_of(receiver, host)
        if host.startswith("["):
            url = url.replace(host, "mapped.test")
            look_up: Callable[..., Any] = Dns(host.strip("[]"))
        else:
            look_up = socket.getaddrinfo
        refused = target(tmp_path, url, allow_private_network=False)
        allowed = target(tmp_path, url.replace("https", "http"))
        async with sending(look_up, refused=refused, allowed=allowed) as channel:
            with pytest.raises(
                ChannelAtFault, match=r"a private network; .*webhooks\.refused\.allow_private"
            ):
                await send(channel, "refused")
            assert receiver.connections == 0
            await send(channel, "allowed")
            assert receiver.connections == 1


async def test_a_redirect_into_a_private_network_is_not_followed(tmp_path: Path) -> None:
    async with backend() as receiver, backend() as inner:
        receiver.answer = status(302, f"Location: {inner.url}")
        async with sending(billing=target(tmp_path, receiver.url)) as channel:
            with pytest.raises(DeliveryFailed, match="answered 302"):
                await send(channel, "billing")
        assert (receiver.connections, inner.connections) == (1, 0)


async def test_the_connection_goes_to_the_very_address_that_was_judged(tmp_path: Path) -> None:
    """DNS that answers one thing to who judges and another to who connects has no hold here."""
    async with backend() as receiver:
        dns = Dns("127.0.0.1", "127.0.0.2")
        url = at_port_of(receiver, "backend.test", "http")
        async with sending(dns, billing=target(tmp_path, url)) as channel:
            await send(channel, "billing")
            assert (dns.asked, receiver.connections) == (1, 1)
            await send(channel, "billing")  # over the same connection
            assert dns.asked == 1
        came = await receiver.next()
        assert came.headers["host"] == url.split("/")[2]


async def test_each_new_connection_is_judged_anew(tmp_path: Path) -> None:
    async with backend() as receiver:
        receiver.answer = status(200, "Connection: close")
        dns = Dns("127.0.0.1", "8.8.8.8")
        url = at_port_of(receiver, "backend.test", "http")
        async with sending(dns, billing=target(tmp_path, url)) as channel:
            await send(channel, "billing")
            with pytest.raises(
                ChannelAtFault, match=r"8\.8\.8\.8: http:// is for private networks"
            ):
                await send(channel, "billing")
        assert (dns.asked, receiver.connections) == (2, 1)


async def test_of_a_hosts_addresses_only_those_allowed_are_tried_until_one_answers(
    tmp_path: Path,
) -> None:
    async with backend("127.0.0.3") as receiver:
        dns = Dns("8.8.8.8 127.0.0.2 127.0.0.3")
        url = at_port_of(receiver, "backend.test", "http")
        async with sending(dns, billing=target(tmp_path, url)) as channel:
            await send(channel, "billing")
        assert receiver.connections == 1


async def test_tls_verifies_the_name_though_the_connection_is_to_an_address(tmp_path: Path) -> None:
    ca_file, tls = certificate(tmp_path, ["backend.test"])
    async with backend(tls=tls) as receiver:
        good = target(tmp_path, at_port_of(receiver, "backend.test"), ca_file=ca_file)
        bad = target(tmp_path, at_port_of(receiver, "other.test"), ca_file=ca_file)
        async with sending(Dns("127.0.0.1"), good=good, bad=bad) as channel:
            await send(channel, "good")
            with pytest.raises(DeliveryFailed, match=r"not valid for 'other\.test'"):
                await send(channel, "bad")
        assert receiver.came.qsize() == 1


async def test_a_name_server_that_hangs_holds_one_thread_and_delays_no_other_target(
    tmp_path: Path,
) -> None:
    answered, asked = threading.Event(), []

    def look_up(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        if host == "hanging.test":
            answered.wait(PATIENCE_S)
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    try:
        async with backend() as receiver:
            targets = {
                name: target(tmp_path, at_port_of(receiver, f"{name}.test", "http"))
                for name in ("hanging", "billing")
            }
            async with sending(look_up, **targets) as channel:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(5):
                        tasks.create_task(fails_in_time(channel, "hanging"))
                    await asyncio.sleep(0)
                    await send(channel, "billing")
                await fails_in_time(channel, "hanging")
                assert asked.count("hanging.test") == 1
                answered.set()
                await send(channel, "hanging")
    finally:
        answered.set()


async def fails_in_time(channel: WebhookChannel, name: str) -> None:
    with pytest.raises(DeliveryFailed, match=r"no answer within 0\.3 s"):
        await send(channel, name, 0.3)


@pytest.mark.parametrize("host", ["a" * 70 + ".test", "..test"])
async def test_a_name_that_is_none_is_tried_again_like_one_that_is_not_known(
    tmp_path: Path, host: str
) -> None:
    async with sending(odd=target(tmp_path, f"https://{host}/")) as channel:
        with pytest.raises(DeliveryFailed):
            await send(channel, "odd")
