"""Where a broker is and how one logs in to it."""

import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from bellwire.signaling.errors import InvalidInput

_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker and credentials. The password stays out of `repr`, and so out of logs."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether this is the machine itself, wherever it is used."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_in_clear(self) -> bool:
        """Whether password, calls and door codes cross a network that others may listen on."""
        return not self.tls and not self.is_loopback

    @property
    def url(self) -> str:
        """The address without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context to connect with: verifying, with the system's roots or `ca_file`.

        Raises:
            InvalidInput: `ca_file` cannot be read.
        """
        if not self.tls:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise InvalidInput(
                f"the broker's CA file {self.ca_file} cannot be read: {error}"
            ) from error


def parse_broker_url(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
) -> BrokerAddress:
    """The address in `mqtt://host:port` or `mqtts://host:port`.

    Raises:
        InvalidInput: another scheme, no host, or a password in the URL, where process lists and
            logs would show it.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidInput(
            f"broker URL {parts.scheme}://{parts.hostname or ''} must be mqtt(s)://HOST[:PORT]"
        )
    if parts.password is not None:
        raise InvalidInput(
            "put the broker's password into BELLWIRE_BROKER_PASSWORD, not into its URL:"
            " process lists and logs show URLs"
        )
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"broker URL: {error}") from error
    if port == 0:
        raise InvalidInput("broker URL: port 0 is no broker's")
    return BrokerAddress(
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        tls=parts.scheme == "mqtts",
        username=username or parts.username,
        password=password,
        ca_file=ca_file,
    )
