"""The STUN and TURN servers that calls are connected by, and short-lived credentials for them.

Credentials follow coturn's REST scheme (draft-uberti-behave-turn-rest-00, 2.2): the user name is the
time it ends at and whose it is, the password the HMAC-SHA1 of the user name under a secret that relay
and TURN server share. So nothing is kept of them here, and the TURN server asks nobody.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from urllib.parse import quote

from bellwire.config.media_servers import read_turn_secret
from bellwire.config.relay import RelaySettings
from bellwire.push.access.tokens import Actor
from bellwire.signaling.wire.answers import IceServerAnswer, IceServersAnswer

_NAME_LIMIT = 256
"""Of a name as it is: a STUN user name has at most 508 bytes (RFC 8489, 14.3)."""


class IceServers:
    """Answers who asks for them.

    Args:
        stun_urls: STUN servers (RFC 7064).
        turn_urls: TURN servers (RFC 7065), all of one secret.
        secret: The secret, None where there is no TURN server.
        life_s: Seconds that credentials are good for.
        now: Tells the time.
    """

    def __init__(
        self,
        stun_urls: tuple[str, ...],
        turn_urls: tuple[str, ...],
        secret: str | None,
        life_s: int,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._stun_urls = stun_urls
        self._turn_urls = turn_urls
        self._secret = b"" if secret is None else secret.encode()
        self._life_s = life_s
        self._now = now

    def of(self, actor: Actor) -> IceServersAnswer:
        """The servers, with credentials in the name of who asks: its device, or else its identity."""
        servers = []
        if self._stun_urls:
            servers.append(IceServerAnswer(urls=self._stun_urls))
        if self._turn_urls:
            username = f"{int(self._now().timestamp()) + self._life_s}:{_name(actor)}"
            servers.append(
                IceServerAnswer(
                    urls=self._turn_urls, username=username, credential=self._credential(username)
                )
            )
        return IceServersAnswer(ice_servers=tuple(servers), ttl=self._life_s)

    def _credential(self, username: str) -> str:
        return base64.b64encode(hmac.digest(self._secret, username.encode(), "sha1")).decode()


def open_ice_servers(settings: RelaySettings, *, now: Callable[[], datetime]) -> IceServers:
    """The servers that settings name. It reads the secret's file, and blocks.

    Raises:
        InvalidInput: the file cannot be read, or is not private.
    """
    return IceServers(
        settings.stun_urls,
        settings.turn_urls,
        read_turn_secret(settings.turn_secret, settings.turn_secret_file),
        settings.turn_credentials_life_s,
        now=now,
    )


def _name(actor: Actor) -> str:
    """Whose credentials: in ASCII, which STUN servers compare without preparing it (RFC 8265)."""
    if actor.identity is None:
        return "server"
    if actor.device is not None:
        return actor.device
    quoted = quote(actor.identity, safe="")
    if len(quoted) > _NAME_LIMIT:
        quoted = hashlib.sha256(actor.identity.encode()).hexdigest()
    return f"@{quoted}"  # no device's id begins so
