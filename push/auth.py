"""Who is asking: API keys of servers, and access tokens of identities (EdDSA JWTs). And what the same
keys sign of who calls.

An API key is 256 random bits, so its SHA-256 is as good a secret as a slow hash would make it; it
is compared in constant time.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.utils import base64url_encode
from pydantic import ValidationError
from pydantic_core import to_json

from config.private_file import write_private
from push.store.call_rows import to_ms
from push.store.database import Database
from push.store.key_rows import (
    SigningKeyRow,
    add_api_key,
    add_signing_key,
    api_key_hashes,
    signing_key_rows,
)
from signaling.answers import KeySetAnswer
from signaling.calls import Attestation
from signaling.errors import Forbidden, Unauthenticated
from signaling.events import CallerToken, CallReceived
from signaling.identifiers import CallSid, DeviceId, Identity
from signaling.tokens import AUDIENCE, CALLER_AUDIENCE, AccessTokenClaims, Jwk

API_KEY_PREFIX = "bwk_"
_CONNECT_TOKEN_EXTRA_S = 3600
_RELOAD_EVERY = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. A server (`identity` None) may act for anybody; a token or device only for its own
    identity, and a token made for one device only as that."""

    identity: Identity | None = None
    device: DeviceId | None = None
    until: datetime | None = None
    """When the access token that was shown expires."""
    call_sid: CallSid | None = None
    """The one call that a connect token is for."""
    by_server: bool = False
    """Whether a server acts as this identity and device, over a stream that it has opened as them."""

    def may_reach(self, call_sid: str | None) -> None:
        """Lets a connect token reach its own call only; None: something that is no call.

        Raises:
            Forbidden: it asks for more.
        """
        if self.call_sid is not None and call_sid != self.call_sid:
            raise Forbidden(f"this connect token is for the call {self.call_sid} only")

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
        """How sure it is that what is done in an identity's name is done by that identity itself."""
        by_server = self.is_server or self.by_server
        return Attestation.PARTIAL if by_server else Attestation.FULL

    @property
    def name(self) -> str:
        """Whose Idempotency-Keys these are."""
        return "server" if self.identity is None else f"identity:{self.identity}"


class _Reloaded:
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


class ApiKeys:
    """The API keys that this relay takes: those of the database."""

    def __init__(
        self, database: Database, hashes: frozenset[str], now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._hashes = hashes
        self._reloaded = _Reloaded(now)

    async def holds(self, key: str) -> bool:
        """Whether this is one of the keys."""
        if self._knows(key):
            return True
        if not self._reloaded.due():
            return False
        self._hashes = await self._database.read(api_key_hashes)
        return self._knows(key)

    def _knows(self, key: str) -> bool:
        shown = _hash(key)
        known = False
        for kept in self._hashes:
            known |= hmac.compare_digest(kept, shown)
        return known


async def open_api_keys(database: Database, key_file: Path, now: Callable[[], datetime]) -> ApiKeys:
    """The API keys of a database; makes this relay's own at its first start, into `key_file` (mode 600)."""
    hashes = await database.read(api_key_hashes)
    key = _own_key(key_file)
    if _hash(key) not in hashes:
        await database.write(lambda c: add_api_key(c, _hash(key), to_ms(now())))
        hashes |= {_hash(key)}
    return ApiKeys(database, hashes, now)


def _own_key(key_file: Path) -> str:
    if key_file.exists():
        return key_file.read_text().strip()
    key = API_KEY_PREFIX + secrets.token_urlsafe(32)
    write_private(key_file, key + "\n")
    return key


class AccessTokens:
    """Signs and checks access tokens.

    Args:
        database: Holds the keys.
        keys: The newest first: that one signs, all verify.
        issuer: The `iss` of the tokens.
        now: Tells the time.
    """

    def __init__(
        self,
        database: Database,
        keys: list[SigningKeyRow],
        issuer: str,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._now = now
        self._reloaded = _Reloaded(now)
        # Of its own: whoever asks for the keys must not keep a token's new key from being looked for.
        self._read_again = _Reloaded(now)
        self._signing_kid = keys[0].kid
        self._signing_key = _load(keys[0].private_key)
        header = {"alg": "EdDSA", "kid": self._signing_kid, "typ": "JWT"}
        self._header = base64url_encode(to_json(header))
        self._public = _public_keys(keys)

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
        if device is not None:
            claims["device_id"] = device
        if call_sid is not None:
            claims["call_sid"] = call_sid
        return self._signed(claims), datetime.fromtimestamp(expires, tz=issued.tzinfo)

    def _signed(self, claims: dict[str, str | int]) -> str:
        """A JWS in compact form (RFC 7515, 7.1). Every push carries one, and PyJWT takes three times
        as long around the signature as the signature takes."""
        signed = b".".join((self._header, base64url_encode(to_json(claims))))
        return b".".join((signed, base64url_encode(self._signing_key.sign(signed)))).decode()

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
        """Whom a token stands for.

        Raises:
            Unauthenticated: it is forged, expired, or not for this relay. Which, its text says.
        """
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid", ""))
            payload = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                audience=AUDIENCE,
                issuer=self._issuer,
                # Times are checked below, against the relay's own idea of time.
                options={"verify_exp": False, "verify_iat": False, "require": ["exp", "sub"]},
            )
            claims = AccessTokenClaims.model_validate(payload)
        except (jwt.InvalidTokenError, KeyError, TypeError, ValidationError) as error:
            raise Unauthenticated("the access token was not issued by this relay") from error
        if claims.exp <= self._now().timestamp():
            raise Unauthenticated("the access token has expired: ask your backend for a new one")
        return Actor(
            Identity(claims.sub),
            None if claims.device_id is None else DeviceId(claims.device_id),
            datetime.fromtimestamp(claims.exp, UTC),
            None if claims.call_sid is None else CallSid(claims.call_sid),
        )

    async def _key(self, kid: str) -> Ed25519PublicKey:
        if kid not in self._public and self._reloaded.due():
            self._public = _public_keys(await self._database.read(signing_key_rows))
        return self._public[kid]

    async def key_set(self) -> KeySetAnswer:
        """The public keys, with those that another relay may have made since."""
        if self._read_again.due():
            self._public = _public_keys(await self._database.read(signing_key_rows))
        return KeySetAnswer(
            keys=tuple(
                Jwk(kid=kid, x=base64url_encode(key.public_bytes_raw()).decode())
                for kid, key in self._public.items()
            )
        )


async def open_access_tokens(
    database: Database, issuer: str, now: Callable[[], datetime]
) -> AccessTokens:
    """The access tokens of a database; makes a signing key where there is none."""
    keys = await database.read(signing_key_rows)
    if not keys:
        made = new_signing_key()
        await database.write(lambda c: add_signing_key(c, made, to_ms(now())))
        keys = await database.read(signing_key_rows)
    return AccessTokens(database, keys, issuer, now)


def new_signing_key() -> SigningKeyRow:
    """A key that nobody has seen yet."""
    private = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return SigningKeyRow(kid=secrets.token_hex(8), private_key=private.decode())


def _public_keys(keys: list[SigningKeyRow]) -> dict[str, Ed25519PublicKey]:
    return {key.kid: _load(key.private_key).public_key() for key in keys}


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _load(pem: str) -> Ed25519PrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("a signing key must be an Ed25519 key")
    return key
