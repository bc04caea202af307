"""Devices in the relay: registered, given access to the broker, removed.

Of one that has not come yet the broker retains that, until its own presence takes the place, so that who
reads presence by one wildcard sees every device there is. It is written where a device gets its access,
and where it is missing by :mod:`push.devices.presence_watch`.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.session import NotConnected
from bellwire.push.access.revocation import Access
from bellwire.push.channels.websocket import StreamReaders
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.devices import (
    ChannelRow,
    DeviceRow,
    all_devices,
    delete_device,
    find_device,
    put_device,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.errors import InvalidInput, NotFound
from bellwire.signaling.identifiers import DeviceId, Identity, mqtt_client_id
from bellwire.signaling.topics import presence_topic
from bellwire.signaling.wire.answers import BrokerAccess, ChannelAnswer, DeviceAnswer
from bellwire.signaling.wire.requests import PUSH_KINDS, ChannelRequest, DeviceRequest
from bellwire.signaling.wire.station import Presence, presence_document

log = structlog.get_logger(__name__)


class Publishing(Protocol):
    """What this needs of a session."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See `Session.publish`."""


class Devices:
    """The devices of a relay. The broker is changed before the table, so that what is cut short is
    made good by asking again. Who reads the stream of a device that has changed is woken to see."""

    def __init__(
        self,
        database: Database,
        provisioner: DynamicSecurity,
        broker_url: str,
        kinds: Collection[str],
        apps: Mapping[str, Collection[str]],
        streams: StreamReaders,
        access: Access,
        *,
        session: Publishing,
        now: Callable[[], datetime],
    ) -> None:
        self._access = access
        self._database = database
        self._session = session
        self._provisioner = provisioner
        self.broker_url = broker_url
        self._kinds = kinds
        self._apps = apps
        self._streams = streams
        self._now = now

    async def put(self, device_id: DeviceId, request: DeviceRequest) -> tuple[DeviceAnswer, bool]:
        """Registers a device, and whether it is new. A broker password is made where the device
        first gets the MQTT channel, or where it is asked for, and shown in this answer only.

        Raises:
            InvalidInput: a kind of channel that this relay does not serve.
            Unavailable: the broker did not take the credentials.
        """
        for channel in request.channels:
            if channel.kind not in self._kinds:
                raise InvalidInput(
                    f"channel kind {channel.kind} is not served here, only {', '.join(self._kinds)}"
                )
            if channel.kind in PUSH_KINDS and channel.app not in self._apps[channel.kind]:
                raise InvalidInput(
                    f"the app {channel.app} is not among the relay's {channel.kind} apps:"
                    f" {', '.join(sorted(self._apps[channel.kind]))}"
                )
        row = DeviceRow(
            device_id,
            Identity(request.identity),
            tuple(_channel_row(channel) for channel in request.channels),
        )
        known = await self._database.read(lambda c: find_device(c, device_id))
        access = await self._provision(known, row, rotate=request.rotate_credentials)
        at = self._now()
        await self._database.write(lambda c: put_device(c, row, to_ms(at)))
        self._access.forget_owner(device_id)
        if known is not None and known.identity != row.identity:
            await self._access.look()  # the tokens of before have ended
        if access is not None:
            await retain_registered(self._session, device_id, at)
        self._streams.wake({device_id})
        log.info("device registered", device_id=device_id, identity=row.identity)
        return _answer(row, access), known is None

    async def get(self, device_id: DeviceId) -> DeviceAnswer:
        """A device.

        Raises:
            NotFound: there is none of this id.
        """
        row = await self._database.read(lambda c: find_device(c, device_id))
        if row is None:
            raise NotFound(f"there is no device {device_id}")
        return _answer(row)

    async def identity_of(self, device_id: DeviceId) -> Identity | None:
        """Whose device this is, None where it is not registered."""
        row = await self._database.read(lambda c: find_device(c, device_id))
        return None if row is None else row.identity

    async def all(self) -> list[DeviceAnswer]:
        """All devices, by id."""
        return [_answer(row) for row in await self._database.read(all_devices)]

    async def delete(self, device_id: DeviceId) -> None:
        """Removes a device, its access to the broker, and its access tokens.

        Raises:
            NotFound: there is none of this id.
            Unavailable: the broker did not take it.
        """
        await self.get(device_id)
        await self._provisioner.revoke(device_id)
        await self._database.write(lambda c: delete_device(c, device_id, to_ms(self._now())))
        await self._access.look()
        self._streams.wake({device_id})
        log.info("device removed", device_id=device_id)

    async def _provision(
        self, known: DeviceRow | None, wanted: DeviceRow, *, rotate: bool
    ) -> BrokerAccess | None:
        had = known is not None and _has_mqtt(known)
        if _has_mqtt(wanted) and (rotate or not had):
            password = await self._provisioner.grant(wanted.device_id)
            return BrokerAccess(
                url=self.broker_url,
                username=wanted.device_id,
                password=password,
                client_id=mqtt_client_id(wanted.device_id, password),
            )
        if had and not _has_mqtt(wanted):
            await self._provisioner.revoke(wanted.device_id)
        return None


def _channel_row(channel: ChannelRequest) -> ChannelRow:
    if channel.kind not in PUSH_KINDS:
        return ChannelRow(channel.kind)
    environment, token = None, channel.token or ""
    if channel.kind == "apns":
        environment = channel.environment or "production"
        token = token.lower()  # hex digits: written in either case it is the same one
    return ChannelRow(channel.kind, channel.app or "", environment, token)


def _has_mqtt(device: DeviceRow) -> bool:
    return any(channel.kind == "mqtt" for channel in device.channels)


def _answer(row: DeviceRow, access: BrokerAccess | None = None) -> DeviceAnswer:
    return DeviceAnswer(
        device_id=row.device_id,
        identity=row.identity,
        channels=tuple(
            ChannelAnswer.model_validate(
                {"kind": c.kind, "app": c.app or None, "environment": c.environment}
            )
            for c in row.channels
        ),
        mqtt=access,
    )


async def retain_registered(session: Publishing, device: DeviceId, at: datetime) -> None:
    """Has the broker retain that a device was registered, and has not come since. Where the broker is
    away, the next start of a relay makes it good."""
    presence = Presence(online=False, registered_at=at)
    try:
        await session.publish(presence_topic(device), presence_document(presence), retain=True)
    except NotConnected as error:
        log.warning("not retained that a device is registered", device_id=device, error=str(error))
