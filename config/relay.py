"""Settings of the relay: a TOML file, over it `BELLWIRE_*` variables, over them the command's flags. Most
secrets, such as those of push apps and webhooks, stand in files of their own, which are named here.
"""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from bellwire.config.call_policy import PolicySettings
from bellwire.config.media_servers import JanusUrl, StunUrl, TurnUrl
from bellwire.signaling.calls.calls import DEFAULT_MAX_INVITEES, MAX_INVITEES
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import IdentityField


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApnsApp(_Settings):
    """An iOS app, named by its bundle id: a token key (p8), or a VoIP certificate (PEM with its key)."""

    key_file: Path | None = None
    key_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")] | None = None
    team_id: Annotated[str, Field(pattern=r"^[A-Z0-9]{10}$")] | None = None
    certificate_file: Path | None = None
    connections: Annotated[int, Field(ge=1, le=64, description="per environment")] = 4
    cancel_by_push: Annotated[
        bool, Field(description="push cancels too: each costs the app a CallKit report")
    ] = False
    server: Annotated[
        str | None, Field(description="HOST:PORT in place of Apple's, for tests and proxies")
    ] = None
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> Self:
        key = (self.key_file, self.key_id, self.team_id)
        if self.certificate_file is not None:
            if any(part is not None for part in key):
                raise ValueError("give a key or a certificate, not both")
        elif any(part is None for part in key):
            raise ValueError("give key_file, key_id and team_id, or certificate_file")
        return self


class FcmApp(_Settings):
    """An Android app: a service account's file, or none for the machine's workload identity."""

    credentials_file: Path | None = None
    project_id: str | None = None
    server: Annotated[
        str | None, Field(description="URL in place of Google's, for tests and proxies")
    ] = None
    ca_file: Path | None = None


class WebhookTarget(_Settings):
    """Where a backend is told of events, signed as Standard Webhooks (`whsec_...` in `secret_file`)."""

    url: Annotated[str, Field(pattern=r"^https?://", max_length=2048)]
    secret_file: Path
    events: Annotated[
        frozenset[str] | None, Field(description="names of events; none: every event")
    ] = None
    allow_private_network: bool = False
    ca_file: Path | None = None


LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


def _network(text: str) -> str:
    ip_network(text, strict=False)
    return text


ProxyNetwork = Annotated[str, AfterValidator(_network)]
"""An address, or a network such as `10.0.0.0/8`."""


def _origin(text: str) -> str:
    scheme, _, place = text.partition("://")
    default_port = {"https": ":443", "http": ":80"}[scheme]
    if place != place.lower() or place.endswith(default_port):
        raise ValueError(
            f"a browser names it {scheme}://{place.lower().removesuffix(default_port)}"
        )
    return text


Origin = Annotated[
    str,
    Field(
        pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$|^https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?$"
    ),
    AfterValidator(_origin),
]
"""Where a page comes from, as its browser names it: scheme, host, and the port where it is not the
scheme's own. No path, and never `*`."""


def default_data_folder() -> Path:
    """Where a relay keeps its data unless told otherwise: systemd's state directory for the unit,
    else the user's data folder (XDG Base Directory)."""
    if state := os.environ.get("STATE_DIRECTORY"):
        return Path(state.split(":", maxsplit=1)[0])
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base) / "bellwire"


class RelaySettings(BaseSettings):
    """What a relay can be told. Secrets come from the environment or a file, never from flags."""

    model_config = SettingsConfigDict(
        env_prefix="BELLWIRE_", frozen=True, extra="forbid", env_ignore_empty=True
    )
    toml_file: ClassVar[Path | None] = None

    listen: Annotated[str, Field(description="HOST:PORT of the HTTP interface")] = "127.0.0.1:8080"
    data: Path = Field(default_factory=default_data_folder)
    broker: Annotated[str | None, Field(description="mqtt(s)://HOST:PORT; none: own mosquitto")] = (
        None
    )
    broker_username: str | None = None
    broker_password: SecretStr | None = None
    broker_ca_file: Path | None = None
    broker_port: Annotated[
        int | None, Field(ge=1, le=65_535, description="loopback port of the own mosquitto")
    ] = None
    device_broker: Annotated[
        str | None, Field(description="the broker's URL as devices reach it, where it differs")
    ] = None
    database: Annotated[
        SecretStr | None,
        Field(description="postgresql://USER@HOST/NAME; none: SQLite in `data`"),
    ] = None
    not_received_after_s: Annotated[
        float,
        Field(ge=3, le=5, description="seconds until a checked invite counts as NotYetReceived"),
    ] = 5.0
    max_invitees: Annotated[
        int, Field(ge=1, le=MAX_INVITEES, description="who may be invited to a call in common mode")
    ] = DEFAULT_MAX_INVITEES
    issuer: str = "bellwire"
    apns: Annotated[dict[str, ApnsApp], Field(description="iOS apps by bundle id")] = Field(
        default_factory=dict
    )
    fcm: Annotated[dict[str, FcmApp], Field(description="Android apps by package name")] = Field(
        default_factory=dict
    )
    webhooks: Annotated[dict[str, WebhookTarget], Field(description="backends by name")] = Field(
        default_factory=dict
    )
    account_sid: Annotated[
        str | None,
        Field(pattern=r"^AC[0-9a-f]{32}$", description="`twi_account_sid` of pushes; none: made"),
    ] = None
    public_url: Annotated[
        str | None,
        Field(pattern=r"^https?://", description="the relay's URL as Twilio and backends see it"),
    ] = None
    twilio_auth_token_file: Annotated[
        Path | None,
        Field(
            description="holds the auth token that Twilio signs its webhooks with, and the relay its"
            " requests for TwiML"
        ),
    ] = None
    voice_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            max_length=2048,
            description="asked whom to ring for calls of apps and devices, as a TwiML App's; none: they say",
        ),
    ] = None
    voice_method: Annotated[
        Literal["POST", "GET"], Field(description="how `voice_url` is asked")
    ] = "POST"
    voice_url_timeout_s: Annotated[
        float, Field(ge=0.5, le=15, description="seconds in which `voice_url` must have answered")
    ] = 4.0
    voice_url_allow_private_network: Annotated[
        bool, Field(description="`voice_url` may be on this machine or a private network")
    ] = False
    voice_url_ca_file: Annotated[
        Path | None, Field(description="certificates to trust there, in place of the public ones")
    ] = None
    stun_urls: Annotated[
        tuple[StunUrl, ...], Field(max_length=8, description="STUN servers, `stun:HOST:PORT`")
    ] = ()
    turn_urls: Annotated[
        tuple[TurnUrl, ...],
        Field(max_length=8, description="TURN servers, `turn:HOST:PORT?transport=udp`"),
    ] = ()
    turn_secret: Annotated[
        SecretStr | None,
        Field(description="coturn's `static-auth-secret`: in the environment, never a flag"),
    ] = None
    turn_secret_file: Annotated[
        Path | None, Field(description="holds it instead; mode 600, or 640 for a group")
    ] = None
    turn_credentials_life_s: Annotated[
        int, Field(ge=60, le=86_400, description="how long TURN credentials may be first used")
    ] = 3600
    janus_url: Annotated[
        JanusUrl | None,
        Field(
            description="Janus' WebSocket API: rooms for calls of more than five; none: no rooms"
        ),
    ] = None
    janus_secret_file: Annotated[
        Path | None, Field(description="holds Janus' `api_secret`, its rooms' `admin_key` too")
    ] = None
    app_invites_per_s: Annotated[
        float, Field(gt=0, description="per push app; five times as many at once")
    ] = 1000.0
    device_invites_per_s: Annotated[
        float,
        Field(gt=0, description="per caller and device; thirty times as many at once"),
    ] = 2.0
    emergency_callers: Annotated[
        tuple[IdentityField, ...],
        Field(max_length=256, description="identities whose calls are never too many"),
    ] = ()
    policy: Annotated[PolicySettings, Field(description="who may ring whom")] = PolicySettings()
    device_requests_per_s: Annotated[
        float,
        Field(
            gt=0,
            description="requests of one device, or by one identity's tokens; five times as many at once",
        ),
    ] = 40.0
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    max_connections: Annotated[
        int,
        Field(
            ge=16,
            description="HTTP connections and WebSockets at once; a quarter of them without a good key",
        ),
    ] = 4096
    max_connections_per_address: Annotated[
        int,
        Field(
            ge=1,
            description="of one address, one identity, or one client behind `trusted_proxies`",
        ),
    ] = 512
    trusted_proxies: Annotated[
        tuple[ProxyNetwork, ...],
        Field(description="addresses and networks whose `X-Forwarded-For` tells the client"),
    ] = ("127.0.0.0/8", "::1")
    cors_origins: Annotated[
        tuple[Origin, ...],
        Field(
            max_length=64, description="pages that may ask the relay, `https://HOST[:PORT]` each"
        ),
    ] = ()
    idempotency_keep_s: Annotated[int, Field(ge=60)] = 24 * 3600
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"

    @model_validator(mode="after")
    def _voice_url_is_signed_for(self) -> Self:
        if self.voice_url is not None and self.twilio_auth_token_file is None:
            raise ValueError("voice_url needs twilio_auth_token_file: requests to it are signed")
        return self

    @model_validator(mode="after")
    def _turn_has_one_secret(self) -> Self:
        secrets = sum(given is not None for given in (self.turn_secret, self.turn_secret_file))
        if secrets > 1 or (self.turn_urls and not secrets):
            raise ValueError("turn_urls need turn_secret_file or turn_secret, and not both")
        return self

    @model_validator(mode="after")
    def _janus_has_a_secret(self) -> Self:
        if (self.janus_url is None) != (self.janus_secret_file is None):
            raise ValueError("janus_url and janus_secret_file go together: give both, or neither")
        return self

    @property
    def policy_in_force(self) -> PolicySettings:
        """The policy as the relay goes by it. With a voice URL, who fits no rule may ring nobody unless
        `default` is written: the backend is not asked about `invite` and `join`, and an app could by them
        ring whom the backend has refused it."""
        if self.voice_url is None or "default" in self.policy.model_fields_set:
            return self.policy
        return self.policy.model_copy(update={"default": "deny"})

    @property
    def all_may_ring_all(self) -> bool:
        """Whether any app or device may ring anybody: neither a backend nor a policy is asked."""
        return self.voice_url is None and self.policy.lets_all_ring_all

    @property
    def host(self) -> str:
        """The host part of `listen`."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part of `listen`.

        Raises:
            ValueError: it is no port number.
        """
        port = int(self.listen.rpartition(":")[2])
        if not 0 <= port <= 65_535:
            raise ValueError(f"port {port} is not 0 to 65535")
        return port

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        del dotenv_settings, file_secret_settings
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=cls.toml_file),
        )


def load_relay_settings(file: Path | None = None, **flags: Any) -> RelaySettings:  # noqa: ANN401
    """The settings in force. Flags that are None were not given.

    Raises:
        pydantic.ValidationError: a value is not what its setting takes, or there is no such setting.
        InvalidInput: the file, or a list or table in the environment, cannot be read.
    """

    class FromFile(RelaySettings):
        toml_file = file

    try:
        if file is not None:
            file.open("rb").close()
        return FromFile(**{name: value for name, value in flags.items() if value is not None})
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror or error}") from error
    except SettingsError as error:
        # pydantic-settings names the setting in its text alone, and what it could not read not at all.
        name = next((n for n in RelaySettings.model_fields if f'"{n}"' in str(error)), "")
        raise InvalidInput(
            f"BELLWIRE_{name.upper()} in the environment must be JSON: a list is written"
            ' ["one","another"], a table {"name":"value"}'
        ) from error
    except ValueError as error:
        if isinstance(error, ValidationError):
            raise
        raise InvalidInput(f"{file} is not a TOML file: {error}") from error
