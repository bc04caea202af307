"""Who calls, as the device sees it: verified only where the relay has signed this very invite and that
the caller itself made it. The signatures are the relay's own."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bellwire.agent.calls.caller_verification import CallerInfo, CallerVerification
from bellwire.agent.calls.invite import ringing_time_left
from bellwire.push.access.tokens import AccessTokens, new_signing_key
from bellwire.push.store.engine.sqlite import SqliteDatabase
from bellwire.push.store.rows.access import SigningKeyRow
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.calls.events import CallerToken, CallReceived, event_document, parse_event
from bellwire.signaling.errors import CallError
from bellwire.signaling.wire.answers import KeySetAnswer

NOW = datetime(2026, 11, 21, 8, 0, 0, 250_000, tzinfo=UTC)
LEFT = timedelta(seconds=30)
VERIFIED, NOT_VERIFIED = CallerInfo(is_verified=True), CallerInfo(is_verified=False)


class Relay:
    """Signs invites and tells its keys, as often as it is asked."""

    def __init__(self, database: SqliteDatabase, *keys: SigningKeyRow) -> None:
        self._database = database
        self.tokens = AccessTokens(
            database, list(keys) or [new_signing_key()], "bellwire", lambda: NOW
        )
        self.asked = 0
        self.away = False

    def restart_with(self, *keys: SigningKeyRow) -> None:
        self.tokens = AccessTokens(self._database, list(keys), "bellwire", lambda: NOW)

    async def keys(self) -> KeySetAnswer:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise CallError(31408)
        # Not `key_set`, which looks into the database too.
        public = self.tokens._public
        encoded = {
            kid: base64.urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode()
            for kid, key in public.items()
        }
        return KeySetAnswer.model_validate(
            {"keys": [{"kid": kid, "x": x} for kid, x in encoded.items()]}
        )

    def invite(self, attestation: Attestation | None = Attestation.FULL) -> CallReceived:
        """A signed invite as it arrives: through its document."""
        asked = CallReceived(
            id="CA0123456789abcdef0123456789abcdef-1",
            call_sid="CA0123456789abcdef0123456789abcdef",
            at=NOW,
            from_="client:alice",
            to="client:bob",
            custom_parameters={},
            expires_at=NOW + timedelta(seconds=60),
            caller_info=None if attestation is None else CallerToken(attestation=attestation),
        )
        arrived = parse_event(event_document(self.tokens.signed_invite(asked)))
        assert isinstance(arrived, CallReceived)
        return arrived


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def relay(tmp_path: Any) -> Any:  # noqa: ANN401
    database = await asyncio.to_thread(SqliteDatabase, tmp_path / "relay.db")
    yield Relay(database)
    await database.close()


def verification(relay: Relay, clock: Clock | None = None) -> CallerVerification:
    return CallerVerification(relay.keys, clock=clock or Clock())


async def test_a_caller_who_called_itself_is_verified_and_one_a_server_named_is_not(
    relay: Relay,
) -> None:
    check = verification(relay)
    assert await check.verify(relay.invite(Attestation.FULL), LEFT) == VERIFIED
    assert await check.verify(relay.invite(Attestation.PARTIAL), LEFT) == NOT_VERIFIED
    assert await check.verify(relay.invite(None), LEFT) is None
    assert relay.asked == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"from_": "client:mallory"},
        {"from_": None},
        {"to": "client:carol"},
        {"call_sid": "CA" + "f" * 32},
        {"at": NOW + timedelta(seconds=1)},
        {"expires_at": NOW + timedelta(hours=1)},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_a_signature_of_another_invite_verifies_nothing(
    relay: Relay, changed: dict[str, object]
) -> None:
    forged = relay.invite().model_copy(update=changed)
    assert await verification(relay).verify(forged, LEFT) == NOT_VERIFIED


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    header, claims, signature = token.split(".")
    read = [json.loads(base64.urlsafe_b64decode(part + "==")) for part in (header, claims)]
    return read[0], read[1], signature


def _token(header: object, claims: object, signature: str) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, claims)
    ]
    return ".".join([*parts, signature])


def _none(token: str) -> str:
    header, claims, _ = _parts(token)
    return _token({**header, "alg": "none"}, claims, "")


def _hmac(token: str) -> str:
    header, claims, signature = _parts(token)
    return _token({**header, "alg": "HS256"}, claims, signature)


def _raised(token: str) -> str:
    header, claims, signature = _parts(token)
    return _token(header, {**claims, "attest": "A"}, signature)


@pytest.mark.parametrize(
    "forge",
    [
        _none,
        _hmac,
        _raised,
        lambda token: token[:-8] + "AAAAAAAA",
        lambda token: token.rpartition(".")[0] + ".",
        lambda _: "",
        lambda _: "x.y.z",
        lambda _: "x" * 4000,
        lambda _: None,
    ],
    ids=["none", "hmac", "raised", "cut", "unsigned", "empty", "garbage", "long", "absent"],
)
async def test_a_forged_token_verifies_nothing_and_stops_nothing(
    relay: Relay, forge: Callable[[str], str | None]
) -> None:
    signed = relay.invite(Attestation.PARTIAL)
    assert signed.caller_info is not None and signed.caller_info.token is not None
    info = CallerToken(attestation=Attestation.FULL, token=forge(signed.caller_info.token))
    forged = signed.model_copy(update={"caller_info": info})
    assert await verification(relay).verify(forged, LEFT) == NOT_VERIFIED


async def test_an_access_token_is_no_word_on_a_caller(relay: Relay) -> None:
    from bellwire.signaling.identifiers import CallSid, DeviceId, Identity

    invite = relay.invite()
    connect = relay.tokens.connect_token(
        Identity("bob"), DeviceId("bob-1"), CallSid(invite.call_sid), invite.expires_at
    )
    info = CallerToken(attestation=Attestation.FULL, token=connect)
    shown = invite.model_copy(update={"caller_info": info})
    assert await verification(relay).verify(shown, LEFT) == NOT_VERIFIED


@pytest.mark.parametrize("wrong_by", [timedelta(days=-20_000), timedelta(days=3650), timedelta(0)])
async def test_a_wrong_clock_does_not_matter_while_the_broker_says_that_the_invite_lives(
    relay: Relay, wrong_by: timedelta
) -> None:
    invite = relay.invite()
    left = ringing_time_left(NOW + wrong_by, invite.expires_at, 42)
    assert await verification(relay).verify(invite, left) == VERIFIED


async def test_an_invite_that_has_run_out_verifies_nothing(relay: Relay) -> None:
    late = ringing_time_left(NOW + timedelta(hours=1), relay.invite().expires_at, None)
    assert await verification(relay).verify(relay.invite(), late) == NOT_VERIFIED


async def test_a_new_key_of_the_relay_is_learnt_with_the_first_call_it_signs(relay: Relay) -> None:
    clock, old, new = Clock(), new_signing_key(), new_signing_key()
    relay.restart_with(old)
    check = verification(relay, clock)
    await check.prepare()
    assert await check.verify(relay.invite(), LEFT) == VERIFIED
    earlier = relay.invite()
    relay.restart_with(new, old)
    clock.now += 11
    assert await check.verify(relay.invite(), LEFT) == VERIFIED
    assert await check.verify(earlier, LEFT) == VERIFIED
    assert relay.asked == 2
    relay.restart_with(new)  # the old one leaked, and was deleted
    clock.now += 11
    await check.prepare()
    assert await check.verify(earlier, LEFT) == NOT_VERIFIED


async def test_keys_that_nobody_made_are_asked_for_seldom(relay: Relay) -> None:
    clock = Clock()
    check = verification(relay, clock)
    strangers = [Relay(relay._database) for _ in range(20)]
    many = [check.verify(stranger.invite(), LEFT) for stranger in strangers]
    assert await asyncio.gather(*many) == [NOT_VERIFIED] * 20
    assert relay.asked == 1
    assert await check.verify(relay.invite(), LEFT) == VERIFIED
    clock.now += 11
    assert await check.verify(strangers[0].invite(), LEFT) == NOT_VERIFIED
    assert relay.asked == 2


async def test_a_relay_that_does_not_answer_is_asked_again_with_the_next_call(
    relay: Relay,
) -> None:
    check = verification(relay)
    relay.away = True
    assert await check.verify(relay.invite(), LEFT) == NOT_VERIFIED
    relay.away = False
    assert await check.verify(relay.invite(), LEFT) == VERIFIED


async def test_a_key_that_is_none_spoils_no_other(relay: Relay) -> None:
    async def keys() -> KeySetAnswer:
        good = await relay.keys()
        bad = good.keys[0].model_copy(update={"kid": "bad", "x": "!" * 43})
        return KeySetAnswer(keys=(bad, *good.keys))

    fetch: Callable[[], Awaitable[KeySetAnswer]] = keys
    assert await CallerVerification(fetch).verify(relay.invite(), LEFT) == VERIFIED
