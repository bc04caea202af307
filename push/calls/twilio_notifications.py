"""Twilio in front: its Client Call Notification Webhook, forwarded to the devices of who is called.

Twilio signs each request; its `twi_*` keys go out unchanged, through the outbox, so that a
notification which was answered with 200 is delivered by whichever relay is alive.
https://www.twilio.com/docs/voice/sdks/call-notification-webhook
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import structlog
from sqlalchemy import Connection, exists, or_, select

from bellwire.push.backend.signature import sign
from bellwire.push.calls.rate_limits import Caller, RateLimits
from bellwire.push.channels.payload import CANCEL, apns_payload, fcm_data
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import DeviceRow, devices_of
from bellwire.push.store.rows.outbox import Delivery, owe
from bellwire.push.store.tables import delivery_results, outbox, to_ms
from bellwire.signaling.errors import Forbidden, InvalidInput, NotFound, TooLarge
from bellwire.signaling.identifiers import CallSid, Identity, parse_call_sid, parse_identity

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 16 * 1024
MAX_KEYS = 64

_KEY = re.compile(r"twi_[a-z0-9_]{1,60}")
_KINDS = ("apns", "fcm")
_LIFE_S = 60
_LONGEST_LIFE_S = 600
_NAME_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Notification:
    """What Twilio tells: its `twi_*` keys, whom they are for, and how long they matter."""

    keys: Mapping[str, str]
    identity: Identity
    call_sid: CallSid
    event_id: str
    life_s: int

    @property
    def is_cancel(self) -> bool:
        """Whether it ends a ringing: that is never too often."""
        return self.keys["twi_message_type"] == CANCEL


@dataclass(frozen=True, slots=True)
class Forwarded:
    """How many channels a notification goes out on; none where it is `repeated`: it has before."""

    deliveries: int
    repeated: bool = False


class TwilioNotifications:
    """Forwards notifications.

    Args:
        auth_token: What Twilio signs with; None where none is configured.
        kinds: The kinds of channels that the relay has.
        rate_limits: How often devices and apps may be rung.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        kinds: Collection[str],
        auth_token: str | None,
        rate_limits: RateLimits,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._kinds = frozenset(_KINDS).intersection(kinds)
        self._auth_token = auth_token
        self._rate_limits = rate_limits
        self._now = now

    async def forward(self, url: str, signature: str | None, body: bytes) -> Forwarded:
        """Has a notification delivered; one that Twilio sends again is not delivered again.

        Args:
            url: As Twilio has asked for it, with its query.
            signature: The header `X-Twilio-Signature`.
            body: The request's body.

        Raises:
            Forbidden: it was not signed by Twilio for this relay, or the relay has no auth token.
            InvalidInput: it is no such notification.
            TooLarge: its body is, or a push would be.
            NotFound: who is called has no device with a push channel.
            TooManyRequests: an app or a device of who is called is rung too often.
        """
        if self._auth_token is None:
            raise Forbidden(
                "this relay takes no notifications of Twilio's: set twilio_auth_token_file"
            )
        check_signature(self._auth_token, url, signature, body)
        notification = parse_notification(body)
        deliveries = await self._database.write(partial(self._owe, notification=notification))
        if deliveries is None:
            return Forwarded(0, repeated=True)
        self._outbox.dispatch(deliveries)
        log.info(
            "twilio notification forwarded",
            call_sid=notification.call_sid,
            identity=notification.identity,
            deliveries=len(deliveries),
        )
        return Forwarded(len(deliveries))

    def _owe(self, connection: Connection, notification: Notification) -> list[Delivery] | None:
        if _is_known(connection, notification.event_id):
            return None
        devices = list(self._pushed_to(devices_of(connection, [notification.identity])))
        if not devices:
            raise NotFound(f"{notification.identity} has no device with an apns or fcm channel")
        expires_at_ms = to_ms(self._now()) + notification.life_s * 1000
        # As identities are named elsewhere; a telephone number stays what it is.
        caller = Caller(notification.keys.get("twi_from", "")[:_NAME_LIMIT].removeprefix("client:"))
        with self._rate_limits.taken([] if notification.is_cancel else devices, caller):
            deliveries = list(_deliveries(notification, devices, expires_at_ms))
            owe(connection, deliveries, self._outbox.leased_until_ms)
        return deliveries

    def _pushed_to(self, devices: Iterable[DeviceRow]) -> Iterator[DeviceRow]:
        """The devices that can be pushed to, with these of their channels alone."""
        for device in devices:
            channels = tuple(c for c in device.channels if c.kind in self._kinds)
            if channels:
                yield replace(device, channels=channels)


def _deliveries(
    notification: Notification, devices: Iterable[DeviceRow], expires_at_ms: int
) -> Iterator[Delivery]:
    for device in devices:
        for channel in device.channels:
            yield Delivery(
                notification.event_id,
                device.device_id,
                channel.kind,
                _payload(channel.kind, notification.keys),
                expires_at_ms,
                notification.call_sid,
                channel.app,
                channel.environment,
                channel.token,
            )


def read_auth_token(path: Path) -> str:
    """The auth token in a file. It blocks.

    Raises:
        InvalidInput: the file cannot be read, or is empty.
    """
    try:
        token = path.read_text().strip()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise InvalidInput(f"twilio_auth_token_file, {path}, cannot be read: {reason}") from None
    if not token:
        raise InvalidInput(f"twilio_auth_token_file, {path}, is empty")
    return token


def check_signature(auth_token: str, url: str, signature: str | None, body: bytes) -> None:
    """Checks that Twilio has signed a request with a JSON body: HMAC-SHA1 of the URL, whose parameter
    `bodySHA256` stands for the body (https://www.twilio.com/docs/usage/security).

    Raises:
        Forbidden: it has not.
    """
    shown = (signature or "").strip().encode()
    try:
        digest = parse_qs(urlsplit(url).query).get("bodySHA256", [""])[0].lower()
        variants = _with_and_without_port(url)
    except ValueError:  # no URL, by the header Host
        variants, digest = (), ""
    # All are compared, each in constant time: Twilio signs the URL with its port or without.
    signed = [
        hmac.compare_digest(sign(auth_token, variant).encode(), shown) for variant in variants
    ]
    is_body = hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), digest.encode())
    if not (any(signed) and is_body):
        raise Forbidden(
            "the request's X-Twilio-Signature is not right: check twilio_auth_token_file, and that"
            " public_url is the relay's URL as Twilio is told it"
        )


def parse_notification(body: bytes) -> Notification:
    """The notification in a request's body. Members of other names than Twilio's keys are left out.

    Raises:
        TooLarge: the body is over 16 KiB.
        InvalidInput: it is no object of strings, lacks `twi_to` or `twi_call_sid`, or one of its
            keys is not what it must be; names it.
    """
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(
            f"a notification of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}",
            size=len(body),
            limit=MAX_BODY_BYTES,
        )
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("a notification must be JSON") from error
    if not isinstance(document, dict) or len(document) > MAX_KEYS:
        raise InvalidInput(f"a notification must be an object of at most {MAX_KEYS} keys")
    keys = {name: _text(name, value) for name, value in document.items() if _KEY.fullmatch(name)}
    for needed in ("twi_to", "twi_call_sid", "twi_message_type"):
        if not keys.get(needed):
            raise InvalidInput(f"a notification needs {needed}")
    call_sid = parse_call_sid(keys["twi_call_sid"])
    return Notification(
        keys, parse_identity(keys["twi_to"]), call_sid, _event_id(keys), _life_s(keys)
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{name} is not valid Unicode") from error
    return value


def _event_id(keys: Mapping[str, str]) -> str:
    """The same for each time that Twilio sends a notification."""
    message = keys.get("twi_message_id")
    what = [message] if message else [keys["twi_call_sid"], keys["twi_message_type"]]
    return "twilio-" + hashlib.sha256("\n".join([keys["twi_to"], *what]).encode()).hexdigest()


def _life_s(keys: Mapping[str, str]) -> int:
    text = keys.get("twi_answer_timeout", "")
    if not text:
        return _LIFE_S
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise InvalidInput("twi_answer_timeout must be a number of seconds")
    return min(_LONGEST_LIFE_S, int(text[:9]))


def _payload(kind: str, keys: Mapping[str, str]) -> str:
    write = fcm_data if kind == "fcm" else apns_payload
    return write(keys, "Twilio's notification", "twi_params")


def _is_known(connection: Connection, event_id: str) -> bool:
    """Whether a notification is being delivered, or has been."""
    known = select(
        or_(
            exists().where(outbox.c.event_id == event_id),
            exists().where(delivery_results.c.event_id == event_id),
        )
    )
    return bool(connection.execute(known).scalar_one())


def _with_and_without_port(url: str) -> tuple[str, ...]:
    parts = urlsplit(url)
    host, colon, port = parts.netloc.rpartition(":")
    if colon and port.isdigit():
        return url, urlunsplit(parts._replace(netloc=host))
    port = "443" if parts.scheme == "https" else "80"
    return url, urlunsplit(parts._replace(netloc=f"{parts.netloc}:{port}"))
