"""Who calls, as far as the relay has signed it: checked on the device, so that nobody on the way to it
can put another's name on an invite.

The relay's keys are asked for once, and again where a token names a key that is not known yet: so a
new key needs nothing done here. No clock of this device decides: whether the invite is alive is for
`agent.calls.invite.ringing_time_left` to say, which believes the broker, since a Pi has no clock
of its own. The token only has to be of this very invite, its moments included.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from bellwire.agent.calls.record import CallerInfo
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.calls.events import CallReceived
from bellwire.signaling.errors import CallError
from bellwire.signaling.tokens import CALLER_AUDIENCE, CallerClaims
from bellwire.signaling.wire.answers import KeySetAnswer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

log = structlog.get_logger(__name__)

_ASK_AGAIN_AFTER_S = 10.0
"""So that invites with keys that nobody has made cost the relay little."""

FetchKeys = Callable[[], Awaitable[KeySetAnswer]]
"""Asks the relay for its public keys; raises CallError where it does not answer."""


class CallerVerification:
    """Checks what invites say of their callers.

    Args:
        fetch_keys: Asks the relay for its public keys.
        clock: Tells the time, in seconds that only grow; the running loop's unless told.
    """

    def __init__(self, fetch_keys: FetchKeys, *, clock: Callable[[], float] | None = None) -> None:
        self._fetch_keys = fetch_keys
        self._clock = clock
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._asked_at: float | None = None
        self._asking = asyncio.Lock()

    async def prepare(self) -> None:
        """Asks for the keys ahead of the first call, so that it is verified at once."""
        await self._learn_keys("")

    async def verify(self, invite: CallReceived, left: timedelta) -> CallerInfo | None:
        """What is known of an invite's caller: None where the relay says nothing. Of a server's word
        (attestation B), of a token that is not good, and of one whose key the relay does not tell,
        nothing is verified.

        Args:
            invite: As it came.
            left: How long it may still ring, by `ringing_time_left`.
        """
        info = invite.caller_info
        if info is None:
            return None
        reason = await self._doubt(invite, info.token, left)
        if reason:
            log.warning("caller not verified", call_sid=invite.call_sid, reason=reason)
            return CallerInfo(is_verified=False)
        return CallerInfo(is_verified=info.attestation is Attestation.FULL)

    async def _doubt(self, invite: CallReceived, token: str | None, left: timedelta) -> str:
        """Why a token is not the relay's word on this invite, empty where it is."""
        if left <= timedelta(0):
            return "the invite has run out"
        if token is None:
            return "the relay has not signed it"
        # Read when a call first needs them, off the loop: they cost an idle device 10 MB.
        jwt = await asyncio.to_thread(import_module, "jwt")

        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
            if kid not in self._keys:
                await self._learn_keys(kid)
            if kid not in self._keys:
                return f"the relay does not know the key {kid[:64]!r} it is signed with"
            claims = CallerClaims.model_validate(
                jwt.decode(
                    token,
                    self._keys[kid],
                    algorithms=["EdDSA"],
                    audience=CALLER_AUDIENCE,
                    options={"verify_exp": False, "verify_iat": False},
                )
            )
        except (jwt.InvalidTokenError, ValidationError) as error:
            return f"its token is not good: {type(error).__name__}"
        return _difference(invite, claims)

    async def _learn_keys(self, kid: str) -> None:
        async with self._asking:
            now = asyncio.get_running_loop().time() if self._clock is None else self._clock()
            asked_lately = self._asked_at is not None and now - self._asked_at < _ASK_AGAIN_AFTER_S
            if kid in self._keys or asked_lately:
                return
            try:
                answer = await self._fetch_keys()
                self._keys = await asyncio.to_thread(_read_keys, answer)
            except CallError as error:
                log.warning("the relay's keys are not to be had", error=str(error))
            else:
                self._asked_at = now


def _read_keys(answer: KeySetAnswer) -> "dict[str, Ed25519PublicKey]":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from jwt.utils import base64url_decode

    keys = {}
    for key in answer.keys:
        try:
            keys[key.kid] = Ed25519PublicKey.from_public_bytes(base64url_decode(key.x))
        except ValueError:
            log.warning("a key of the relay's is none", kid=key.kid)
    return keys


def _difference(invite: CallReceived, claims: CallerClaims) -> str:
    """In what an invite is not the one that was signed, empty where it is."""
    said = {
        "call_sid": (invite.call_sid, claims.call_sid),
        "from": (invite.from_, claims.orig),
        "to": (invite.to, claims.dest),
        "attestation": (invite.caller_info and invite.caller_info.attestation, claims.attest),
        "at": (int(invite.at.timestamp()), claims.iat),
        "expires_at": (int(invite.expires_at.timestamp()), claims.exp),
    }
    differ = [name for name, (shown, signed) in said.items() if shown != signed]
    return f"it was signed for another {', '.join(differ)}" if differ else ""
