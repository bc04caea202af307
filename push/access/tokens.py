"""Signs and verifies access tokens (EdDSA JWTs), and says who is asking: an API key, an identity, a device.
The same keys sign who calls, for the devices that are called."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm
from pydantic import ValidationError

from bellwire.push.access.revocation import ShownToken
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.access import SigningKeyRow, add_signing_key, signing_key_rows
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.calls.events import CallerToken, CallReceived
from bellwire.signaling.errors import Forbidden, Unauthenticated
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.tokens import AUDIENCE, CALLER_AUDIENCE, AccessTokenClaims, Jwk, Scope
from bellwire.signaling.wire.answers import KeySetAnswer

_ALGORITHM = "EdDSA"
_CONNECT_TOKEN_EXTRA_S = 3600
_RELOAD_EVERY = timedelta(seconds=1)
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. A server (`identity` None) may act for anybody; a token or device only for its own
    identity, and a token made for one device only as that."""

    identity: Identity | None = None
    device: DeviceId | None = None
    until: datetime | None = None
    """When the access token or API key that was shown expires."""
    call_sid: CallSid | None = None
    """The one call that a connect token is for."""
    token: ShownToken | None = None
    """The access token that was shown."""
    key_hash: str | None = None
    """Which API key was shown."""
    scopes: frozenset[Scope] = frozenset({Scope.ADMIN})
    """What that API key may do."""

    def may_reach(self, call_sid: str | None) -> None:
        """Lets a connect token reach its own call only; None: something that is no call.

        Raises:
            Forbidden: it asks for more.
        """
        if self.call_sid is not None and call_sid != self.call_sid:
            raise Forbidden(f"this connect token is for the call {self.call_sid} only")

    def must_have(self, scope: Scope) -> None:
        """Lets a server do what its API key's scopes open; what an access token may do, they do not say.

        Raises:
            Forbidden: the key lacks the scope.
        """
        if self.is_server and not scope.is_among(self.scopes):
            held = ", ".join(f"`{held}`" for held in sorted(self.scopes)) or "none"
            raise Forbidden(
                f"this needs an API key with the scope `{scope}`, and this one has {held}:"
                f" make one with `bellwire keys add NAME --scope {scope}`"
            )

    @property
    def is_server(self) -> bool:
        """Whether an API key was shown."""
        return self.identity is None

    def acting_as(
        self, identity: str | None, device: str | None
    ) -> tuple[Identity, DeviceId | None]:
        """The identity and device that an operation is done as.

        Raises:
            Forbidden: a token asks for another identity or device than its own, or a server names none.
        """
        if self.identity is None:
            if identity is None:
                raise Forbidden("with an API key, say as whom: give `identity`")
            return Identity(identity), None if device is None else DeviceId(device)
        if identity not in (None, self.identity):
            raise Forbidden(f"this token is for {self.identity}, not for {identity}")
        if self.device is not None and device not in (None, self.device):
            raise Forbidden(f"this token is for the device {self.device}, not for {device}")
        chosen = self.device or (None if device is None else DeviceId(device))
        return self.identity, chosen

    @property
    def attestation(self) -> Attestation:
        """How sure it is that what is done in an identity's name is done by that identity itself. It is a
        server's word only also on a stream that was opened with an API key."""
        by_server = self.is_server or self.key_hash is not None
        return Attestation.PARTIAL if by_server else Attestation.FULL

    @property
    def name(self) -> str:
        """Whose Idempotency-Keys these are."""
        return "server" if self.identity is None else f"identity:{self.identity}"


class Reloaded:
    """Looks into the database again for a key that is not known, since another relay may have made
    it; not more than once in a while, so that guessing costs the database nothing."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._last: datetime | None = None

    def due(self) -> bool:
        """Whether to look again now."""
        now = self._now()
        if self._last is not None and now - self._last < _RELOAD_EVERY:
            return False
        self._last = now
        return True


class AccessTokens:
    """Signs and checks access tokens.

    Args:
        database: Holds the keys.
        keys: The newest first: that one signs, all verify.
        issuer: The `iss` of the tokens.
        now: Tells the time.
        revision: Tells the newest change of keys and revocations that this relay knows: what comes later
            may end the token.
    """

    def __init__(
        self,
        database: Database,
        keys: list[SigningKeyRow],
        issuer: str,
        now: Callable[[], datetime],
        revision: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._database = database
        self._revision = revision
        self._issuer = issuer
        self._now = now
        self._reloaded = Reloaded(now)
        # Of its own: whoever asks for the keys must not keep a token's new key from being looked for.
        self._read_again = Reloaded(now)
        self._signing_kid = keys[0].kid
        self._signing_key = _load(keys[0].private_key)
        self._public = _public_keys(keys)
        self._verified: dict[bytes, Actor] = {}
        """Tokens, by their hash, whose signature was found good: to verify one takes longer than to refuse
        a request."""

    def connect_token(
        self, identity: Identity, device: DeviceId, call_sid: CallSid, until: datetime
    ) -> str:
        """A token with which a device that was woken by a push answers that one call, and takes part
        in it for an hour after the invite's end."""
        ttl_s = (until - self._now()).total_seconds() + _CONNECT_TOKEN_EXTRA_S
        return self.issue(identity, device, max(1, int(ttl_s)), call_sid)[0]

    def issue(
        self,
        identity: Identity,
        device: DeviceId | None,
        ttl_s: int,
        call_sid: CallSid | None = None,
    ) -> tuple[str, datetime]:
        """A token and when it expires."""
        issued = self._now()
        expires = int((issued + timedelta(seconds=ttl_s)).timestamp())
        claims: dict[str, str | int] = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": identity,
            "iat": int(issued.timestamp()),
            "exp": expires,
            "jti": secrets.token_hex(16),
        }
        if (revision := self._revision()) is not None:
            claims["rev"] = revision
        if device is not None:
            claims["device_id"] = device
        if call_sid is not None:
            claims["call_sid"] = call_sid
        return self._signed(claims), datetime.fromtimestamp(expires, tz=issued.tzinfo)

    def _signed(self, claims: dict[str, str | int]) -> str:
        headers = {"kid": self._signing_kid}
        return jwt.encode(claims, self._signing_key, algorithm=_ALGORITHM, headers=headers)

    def signed_invite(self, invite: CallReceived) -> CallReceived:
        """An invite with the relay's word on who calls, where somebody does. The same invite is signed
        the same however often it is sent, since Ed25519 adds nothing by chance (RFC 8032)."""
        if invite.caller_info is None or invite.from_ is None:
            return invite
        claims: dict[str, str | int] = {
            "iss": self._issuer,
            "aud": CALLER_AUDIENCE,
            "call_sid": invite.call_sid,
            "orig": invite.from_,
            "dest": invite.to,
            "attest": invite.caller_info.attestation.value,
            "iat": int(invite.at.timestamp()),
            "exp": int(invite.expires_at.timestamp()),
        }
        info = CallerToken(attestation=invite.caller_info.attestation, token=self._signed(claims))
        return invite.model_copy(update={"caller_info": info})

    async def check(self, token: str) -> Actor:
        """Whom a token stands for. Whether it was revoked, `Access` knows.

        Raises:
            Unauthenticated: it is forged, expired, or not for this relay. Which, its text says.
        """
        actor = self.verified(token)
        if actor is not None:
            return actor
        claims = await self.read(token)
        if claims.exp <= self._now().timestamp():
            raise Unauthenticated("the access token has expired: ask your backend for a new one")
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified[_hash(token)] = actor = Actor(
            Identity(claims.sub),
            None if claims.device_id is None else DeviceId(claims.device_id),
            datetime.fromtimestamp(claims.exp, UTC),
            None if claims.call_sid is None else CallSid(claims.call_sid),
            ShownToken(claims.jti, claims.iat * 1000, claims.exp * 1000, claims.rev),
        )
        return actor

    def verified(self, token: str) -> Actor | None:
        """Whom a token stands for that `check` has found good lately; None where it must look again.
        Whether it was revoked since, `Access` knows."""
        shown = _hash(token)
        actor = self._verified.get(shown)
        if actor is not None and actor.until is not None and actor.until <= self._now():
            del self._verified[shown]
            return None
        return actor

    async def read(self, token: str) -> AccessTokenClaims:
        """What a token of this relay claims, be it expired.

        Raises:
            Unauthenticated: it is forged, or not for this relay.
        """
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid", ""))
            payload = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=AUDIENCE,
                issuer=self._issuer,
                # Times are checked by `check`, against the relay's own idea of time.
                options={"verify_exp": False, "verify_iat": False, "require": ["exp", "sub"]},
            )
            return AccessTokenClaims.model_validate(payload)
        except (jwt.InvalidTokenError, KeyError, TypeError, ValidationError) as error:
            raise Unauthenticated("the access token was not issued by this relay") from error

    async def _key(self, kid: str) -> Ed25519PublicKey:
        if kid not in self._public and self._reloaded.due():
            await self._read_keys()
        return self._public[kid]

    async def _read_keys(self) -> None:
        self._public = _public_keys(await self._database.read(signing_key_rows))
        self._verified.clear()  # a key may be gone

    async def key_set(self) -> KeySetAnswer:
        """The public keys, with those that another relay may have made since."""
        if self._read_again.due():
            await self._read_keys()
        return KeySetAnswer(
            keys=tuple(
                Jwk(kid=kid, x=OKPAlgorithm.to_jwk(key, as_dict=True)["x"])
                for kid, key in self._public.items()
            )
        )


async def open_access_tokens(
    database: Database,
    issuer: str,
    now: Callable[[], datetime],
    revision: Callable[[], int | None] = lambda: None,
) -> AccessTokens:
    """The access tokens of a database; makes a signing key where there is none."""
    keys = await database.read(signing_key_rows)
    if not keys:
        made = new_signing_key()
        await database.write(lambda c: add_signing_key(c, made, to_ms(now())))
        keys = await database.read(signing_key_rows)
    return AccessTokens(database, keys, issuer, now, revision)


def new_signing_key() -> SigningKeyRow:
    """A key that nobody has seen yet."""
    private = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return SigningKeyRow(kid=secrets.token_hex(8), private_key=private.decode())


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _public_keys(keys: list[SigningKeyRow]) -> dict[str, Ed25519PublicKey]:
    return {key.kid: _load(key.private_key).public_key() for key in keys}


def _load(pem: str) -> Ed25519PrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("a signing key must be an Ed25519 key")
    return key
