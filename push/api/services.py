"""What the routes work with, and who is asking."""

from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from broker.provision import Provisioner
from broker.session import Session
from config.relay import RelaySettings
from push.auth import API_KEY_PREFIX, AccessTokens, Actor, ApiKeys
from push.calls import Calls
from push.channels.webhook import WebhookChannel
from push.connections import Connections
from push.data_disk import DataDisk
from push.devices import Devices
from push.event_stream import EventStream
from push.groups import Groups
from push.ice_servers import IceServers
from push.metrics import Metrics
from push.rooms import Rooms
from push.store.database import Database
from push.twilio_notifications import TwilioNotifications
from push.webhooks import Webhooks
from signaling.errors import Forbidden, Unauthenticated


class Services:
    """The parts of a relay that its HTTP interface needs."""

    def __init__(
        self,
        *,
        settings: RelaySettings,
        database: Database,
        session: Session,
        provisioner: Provisioner,
        calls: Calls,
        groups: Groups,
        devices: Devices,
        connections: Connections,
        event_stream: EventStream,
        api_keys: ApiKeys,
        tokens: AccessTokens,
        metrics: Metrics,
        webhooks: Webhooks,
        webhook_channel: WebhookChannel,
        twilio: TwilioNotifications,
        ice_servers: IceServers,
        rooms: Rooms,
        disk: DataDisk,
    ) -> None:
        self.settings = settings
        self.database = database
        self.session = session
        self.provisioner = provisioner
        self.calls = calls
        self.groups = groups
        self.devices = devices
        self.connections = connections
        self.event_stream = event_stream
        self.api_keys = api_keys
        self.tokens = tokens
        self.metrics = metrics
        self.webhooks = webhooks
        self.webhook_channel = webhook_channel
        self.twilio = twilio
        self.ice_servers = ice_servers
        self.rooms = rooms
        self.disk = disk

    @property
    def writes_to_disk(self) -> bool:
        """Whether this relay needs the disk of its data folder: for SQLite, or a broker of its own."""
        return not self.database.shared or self.settings.broker is None


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="An API key (`DIR/api-key` of the relay), or an access token from `POST /v1/tokens`",
)
_header = APIKeyHeader(
    name="X-API-Key", auto_error=False, scheme_name="api_key", description="An API key"
)


async def services_of(request: Request) -> Services:
    """The relay's parts."""
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(services_of)]


async def authenticate_any(
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> Actor:
    """Who asks, be it with a connect token for whichever call.

    Raises:
        Unauthenticated: no credentials were shown, or no good ones.
    """
    return await authenticate_by(
        services, None, header, None if bearer is None else bearer.credentials
    )


AnyActorDep = Annotated[Actor, Depends(authenticate_any)]


async def authenticate(request: Request, actor: AnyActorDep) -> Actor:
    """Who asks.

    Raises:
        Unauthenticated: no credentials were shown, or no good ones.
        Forbidden: a connect token was shown, and this is not of its call.
    """
    actor.may_reach(request.path_params.get("call_sid"))
    return actor


async def authenticate_by(
    services: Services, authorization: str | None, api_key: str | None, bearer: str | None
) -> Actor:
    """Who asks, by an `Authorization` header, an API key or a bearer's credentials, as they are shown.

    Raises:
        Unauthenticated: none were shown, or no good ones.
    """
    if authorization is not None:
        scheme, _, credentials = authorization.partition(" ")
        bearer = credentials.strip() if scheme.lower() == "bearer" else bearer
    shown = api_key or bearer
    if not shown:
        raise Unauthenticated(
            "show an API key or an access token: `Authorization: Bearer ...`, or `X-API-Key: ...`"
        )
    if api_key is not None or shown.startswith(API_KEY_PREFIX):
        if await services.api_keys.holds(shown):
            return Actor()
        raise Unauthenticated(
            "the API key is not known: it is in the file `api-key` of the relay's data"
        )
    return await services.tokens.check(shown)


ActorDep = Annotated[Actor, Depends(authenticate)]


async def require_server(actor: ActorDep) -> Actor:
    """A server, which shows an API key.

    Raises:
        Forbidden: an access token was shown.
    """
    if not actor.is_server:
        raise Forbidden("this needs an API key, not an access token")
    return actor


ServerDep = Annotated[Actor, Depends(require_server)]
