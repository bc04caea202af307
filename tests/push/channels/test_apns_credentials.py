"""Who an app is to APNs: by a signed token, or by a certificate; what is said of files that are not
what they should be, and of a clock that is wrong."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from bellwire.push.channels.apns.credentials import ProviderToken
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed
from bellwire.signaling.errors import InvalidInput
from tests.push.apns_scene import (
    BUNDLE,
    KEY_ID,
    TEAM_ID,
    TOKEN,
    Apns,
    at_work,
    delivery,
    send_all,
    utc_now,
)
from tests.push.apns_server import (
    Authority,
    Pushed,
    Reply,
    apns_server,
    refusing_certificates,
)

HOUR = timedelta(hours=1)


@pytest.fixture
async def apns(tmp_path: Path) -> AsyncIterator[Apns]:
    authority = Authority(tmp_path)
    async with apns_server(authority) as server:
        here = Apns(server, authority, tmp_path)
        server.answer = server.checking_tokens(here.public_key, KEY_ID, TEAM_ID)
        yield here


class Shifted:
    """A clock that is wrong by this much."""

    def __init__(self, by: timedelta = timedelta()) -> None:
        self.by = by

    def now(self) -> datetime:
        return utc_now() + self.by


async def test_apns_can_verify_who_pushes(apns: Apns) -> None:
    async with apns.running() as channel:
        await send_all(channel, 5)


async def test_a_token_is_used_for_40_minutes_and_never_longer_than_an_hour(apns: Apns) -> None:
    clock = Shifted()
    async with apns.running(now=clock.now) as channel:
        for minutes in (0, 39, 41, 80, 82):
            clock.by = apns.server.clock_ahead = timedelta(minutes=minutes)
            await channel.send(delivery(life_s=6 * 3600), 30)
    tokens = [push.header("authorization") for push in apns.server.pushes]
    assert [tokens.index(token) for token in tokens] == [0, 0, 2, 2, 4]


async def test_an_expired_token_is_made_anew_at_once_and_once_for_all_that_met_it(
    apns: Apns,
) -> None:
    async with apns.running() as channel:
        await channel.send(delivery(), 30)
        old = apns.server.pushes[0].header("authorization")
        apns.server.answer = lambda push: (
            Reply(403, "ExpiredProviderToken") if push.header("authorization") == old else Reply()
        )
        await send_all(channel, 20)
        assert apns.fault() == 0
    tokens = {push.header("authorization") for push in apns.server.pushes}
    assert len(tokens) == 2


@pytest.mark.parametrize(("by", "side"), [(-2 * HOUR, "behind"), (2 * HOUR, "ahead of")])
async def test_a_wrong_clock_is_told_and_does_not_make_token_after_token(
    apns: Apns, by: timedelta, side: str
) -> None:
    clock = Shifted(by)
    async with apns.running(now=clock.now) as channel:
        for _ in range(10):
            with pytest.raises(ChannelAtFault, match=rf"120 min {side} APNs': check the clock"):
                await channel.send(delivery(life_s=6 * 3600), 30)
        assert apns.fault() == 1
        assert len({push.header("authorization") for push in apns.server.pushes}) == 2
        clock.by = timedelta()  # NTP has set it.
        await channel.send(delivery(life_s=6 * 3600), 30)
        assert apns.fault() == 0


async def test_where_apns_does_not_give_its_time_the_clock_is_still_suspected(apns: Apns) -> None:
    apns.server.answer = lambda _: Reply(403, "InvalidProviderToken")
    async with apns.running() as channel:
        with pytest.raises(ChannelAtFault, match="check that this machine's clock is right"):
            await channel.send(delivery(), 30)


async def test_with_a_right_clock_an_invalid_token_is_a_matter_of_keys(apns: Apns) -> None:
    date = utc_now().strftime("%a, %d %b %Y %H:%M:%S GMT")
    apns.server.answer = lambda _: Reply(403, "InvalidProviderToken", {"date": date})
    async with apns.running() as channel:
        with pytest.raises(ChannelAtFault, match=r"clock agrees .* check key_id, team_id"):
            await channel.send(delivery(), 30)


async def test_a_key_that_apns_does_not_know_is_a_fault(apns: Apns, tmp_path: Path) -> None:
    other = Apns(apns.server, apns.authority, tmp_path)  # Another key in the file.
    async with other.running() as channel:
        with pytest.raises(ChannelAtFault, match="403 InvalidProviderToken"):
            await channel.send(delivery(), 30)
        assert other.fault() == 1


def test_a_forced_token_waits_20_minutes_for_the_next() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    provider = ProviderToken(key, KEY_ID, TEAM_ID, lambda: at)
    first = provider.get_header()
    assert provider.renew(first)
    second = provider.get_header()
    assert second != first
    assert provider.renew(first), "it is another already"
    assert provider.get_header() == second
    assert not provider.renew(second)
    at += timedelta(minutes=21)
    assert provider.renew(second)
    claims = jwt.decode(
        provider.get_header().removeprefix("bearer "),
        key.public_key(),
        algorithms=["ES256"],
        options={"verify_iat": False},
    )
    assert claims == {"iss": TEAM_ID, "iat": int(at.timestamp())}


async def test_a_certificate_speaks_for_an_app_without_a_token(tmp_path: Path) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "apple")
    async with apns_server(authority, clients=clients) as server:
        apns = Apns(server, authority, tmp_path)
        app = apns.app(certificate_file=clients.certificate("voip"))
        async with apns.running({BUNDLE: app}) as channel:
            await send_all(channel, 5)
    assert all("authorization" not in dict(push.headers) for push in server.pushes)
    assert {push.header("apns-topic") for push in server.pushes} == {f"{BUNDLE}.voip"}


async def test_a_certificate_that_apns_refuses_is_a_fault_until_the_file_is_replaced(
    tmp_path: Path,
) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "apple")
    file = tmp_path / "app.pem"
    shutil.copy(Authority(tmp_path, "stranger").certificate("refused"), file)
    async with apns_server(authority) as placeholder:
        apns = Apns(placeholder, authority, tmp_path)
    with refusing_certificates(authority, clients) as port:
        app = apns.app(certificate_file=file, server=f"127.0.0.1:{port}")
        channel = apns.channel({BUNDLE: app})
        at_it = at_work(channel)
        await at_it.__aenter__()
        with pytest.raises(ChannelAtFault, match="ALERT"):
            await channel.send(delivery(), 5)
        assert apns.fault() == 1
    shutil.copy(clients.certificate("voip"), file)
    async with apns_server(authority, clients=clients, port=port) as server:
        async with asyncio.timeout(10):
            while not await _is_sent(channel.send(delivery(), 5)):
                pass
        assert (apns.fault(), len(server.pushes)) == (0, 1)
        await at_it.__aexit__(None, None, None)


async def _is_sent(sending: object) -> bool:
    try:
        await sending  # type: ignore[misc]
    except DeliveryFailed:
        await asyncio.sleep(0.02)
        return False
    return True


async def test_a_certificate_that_was_replaced_is_shown_once_the_old_one_is_refused(
    tmp_path: Path,
) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "apple")
    file = tmp_path / "app.pem"
    shutil.copy(clients.certificate("old"), file)
    async with apns_server(authority, clients=clients) as server:
        apns = Apns(server, authority, tmp_path)
        async with apns.running({BUNDLE: apns.app(certificate_file=file)}) as channel:
            (first,) = server.connections
            server.answer = lambda push: (
                Reply(403, "BadCertificate") if push.connection is first else Reply()
            )
            with pytest.raises(ChannelAtFault, match="403 BadCertificate"):
                await channel.send(delivery(), 5)
            assert server.opened == 1
            file.unlink()
            with pytest.raises(ChannelAtFault, match="403 BadCertificate"):
                await channel.send(delivery(), 5)
            shutil.copy(clients.certificate("new-one"), file)
            with pytest.raises(ChannelAtFault):
                await channel.send(delivery(), 5)
            await channel.send(delivery(), 5)
            assert server.opened == 2


async def test_a_goaway_that_names_the_credentials_is_a_fault(apns: Apns) -> None:
    def refuse(push: Pushed) -> None:
        push.connection.goaway(0, "BadCertificateEnvironment")

    apns.server.answer = refuse
    async with apns.running() as channel:
        with pytest.raises(ChannelAtFault, match="BadCertificateEnvironment"):
            await channel.send(delivery(), 5)
        assert apns.fault() == 1


async def test_a_server_that_is_not_trusted_is_not_talked_to(apns: Apns, tmp_path: Path) -> None:
    elsewhere = Authority(tmp_path, "elsewhere")
    channel = apns.channel({BUNDLE: apns.app(ca_file=elsewhere.file)})
    async with at_work(channel):
        with pytest.raises(DeliveryFailed, match="certificate is not trusted"):
            await channel.send(delivery(), 0.8)
    assert apns.server.opened == 0


SECRET = "-----BEGIN PRIVATE KEY-----\nTm90IGEga2V5, dont-show-me\n-----END PRIVATE KEY-----\n"


def rsa_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        ("", "holds no private key"),
        (SECRET, "holds no private key"),
        ("RSA", "another kind than P-256"),
    ],
)
async def test_a_bad_key_file_is_told_by_setting_and_name_never_by_content(
    apns: Apns, tmp_path: Path, content: str | None, complaint: str
) -> None:
    file = tmp_path / "bad.p8"
    if content is not None:
        file.write_text(rsa_key() if content == "RSA" else content)
    with pytest.raises(InvalidInput, match=complaint) as e:
        apns.channel({BUNDLE: apns.app(key_file=file)})
    assert str(e.value).startswith(f"apns.{BUNDLE}.key_file: {file} ")
    assert "dont-show-me" not in str(e.value)
    assert e.value.__suppress_context__ or not isinstance(e.value.__cause__, ValueError)


async def test_a_bad_certificate_file_is_told_by_setting_and_name(
    apns: Apns, tmp_path: Path
) -> None:
    locked = apns.authority.certificate("locked", passphrase=b"secret")
    for file in (tmp_path / "none.pem", apns.key_file, locked):
        with pytest.raises(InvalidInput) as e:
            apns.channel({BUNDLE: apns.app(certificate_file=file)})
        assert str(e.value).startswith(f"apns.{BUNDLE}.certificate_file: {file} ")
    with pytest.raises(InvalidInput, match=f"apns.{BUNDLE}.ca_file: "):
        apns.channel({BUNDLE: apns.app(ca_file=apns.key_file)})


async def test_a_server_setting_is_a_host_and_a_port(apns: Apns) -> None:
    for server in ("apns.example", "apns.example:", ":443", "apns.example:70000"):
        with pytest.raises(InvalidInput, match=f"apns.{BUNDLE}.server"):
            apns.channel({BUNDLE: apns.app(server=server)})


async def test_neither_keys_nor_tokens_are_logged(apns: Apns) -> None:
    with capture_logs() as logs:
        async with apns.running() as channel:
            await channel.send(delivery(), 30)
            apns.server.answer = lambda _: Reply(403, "InvalidProviderToken")
            with pytest.raises(ChannelAtFault) as e:
                await channel.send(delivery(), 30)
            apns.server.connections[0].goaway(0, "Shutdown")
            await apns.server.until(lambda: apns.server.opened == 2)
    token = apns.server.pushes[0].header("authorization").removeprefix("bearer ")
    told = repr(logs) + str(e.value)
    assert token not in told
    assert TOKEN not in told
    assert [log["log_level"] for log in logs].count("error") == 1
