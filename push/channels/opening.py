"""Opens the push channels that the settings name, each a long-lived thing with a `run` of its own."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from config.relay import RelaySettings
from push.auth import AccessTokens
from push.channels.channel import Channel
from push.channels.push_payload import PushPayload
from push.metrics import Metrics


class PushChannel(Channel, Protocol):
    """A channel that reaches devices through somebody else's push service."""

    async def run(self) -> None:
        """Holds its connections and credentials ready until cancelled; without it nothing is sent."""
        ...


async def open_push_channels(
    settings: RelaySettings,
    tokens: AccessTokens,
    metrics: Metrics,
    *,
    now: Callable[[], datetime],
) -> dict[str, PushChannel]:
    """The push channels of the settings' apps, by kind.

    Raises:
        InvalidInput: credentials are missing, cannot be read, or are none.
    """
    account_sid = settings.account_sid or _account_sid(settings.issuer)
    payload = PushPayload(account_sid, tokens.connect_token)
    # Key files are read, and what is not needed is not even imported: firebase-admin takes long.
    return await asyncio.to_thread(_open, settings, payload, metrics, now)


def _open(
    settings: RelaySettings, payload: PushPayload, metrics: Metrics, now: Callable[[], datetime]
) -> dict[str, PushChannel]:
    channels: dict[str, PushChannel] = {}
    if settings.apns:
        from push.channels.apns import ApnsChannel

        channels["apns"] = ApnsChannel(settings.apns, payload, metrics, now=now)
    if settings.fcm:
        from push.channels.fcm import FcmChannel

        channels["fcm"] = FcmChannel(settings.fcm, payload, metrics, now=now)
    return channels


def _account_sid(issuer: str) -> str:
    """`twi_account_sid` where none is set: the same for all relays of one issuer."""
    return f"AC{hashlib.sha256(issuer.encode()).hexdigest()[:32]}"
