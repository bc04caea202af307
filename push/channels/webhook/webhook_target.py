"""A webhook's settings, checked: where it goes, what signs it, and which addresses it may reach."""

import base64
import binascii
import hashlib
import hmac
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

import httpx

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.webhook.pinned_connection import IpAddress, is_public
from bellwire.signaling.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
_SECRET_BYTES = range(24, 65)
_MOST_SECRETS = 8
_FILE_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """Where a backend is told of events. `secrets` are all in use: each signs."""

    name: str
    url: httpx.URL = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    allow_private_network: bool
    tls: ssl.SSLContext | None = field(repr=False)

    def may_reach(self, address: IpAddress) -> bool:
        """Whether a request may go to an address: without TLS to private networks alone."""
        if is_public(address):
            return self.url.scheme == "https"
        return self.allow_private_network

    @property
    def otherwise(self) -> str:
        """Why an address that may not be reached may not, and what helps."""
        if self.allow_private_network:
            return "http:// is for private networks only, use https://"
        return f"a private network; if it is meant, set webhooks.{self.name}.allow_private_network"

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it."""
        return str(self.url.copy_with(username=None, password=None, query=None, fragment=None))

    def sign(self, webhook_id: str, at: datetime, body: bytes) -> dict[str, str]:
        """The headers that let the backend know who sends (Standard Webhooks, "Signature scheme")."""
        timestamp = str(int(at.timestamp()))
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = (hmac.digest(secret, signed, hashlib.sha256) for secret in self.secrets)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(
                f"v1,{base64.b64encode(signature).decode()}" for signature in signatures
            ),
        }


def read_target(name: str, settings: WebhookTarget) -> Target:
    """The target that settings describe.

    Raises:
        InvalidInput: a setting is wrong; names it, and never shows a secret.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"webhooks.{name[:40]!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter"
            " or digit"
        )
    target = Target(
        name,
        _read_url(name, settings),
        tuple(_read_secrets(name, settings.secret_file)),
        settings.allow_private_network,
        _tls(name, settings.ca_file) if settings.url.startswith("https:") else None,
    )
    try:
        address = ip_address(target.url.host)
    except ValueError:  # A name: it is looked up for each connection.
        return target
    if not target.may_reach(address):
        raise InvalidInput(f"webhooks.{name}.url: {address}: {target.otherwise}")
    return target


def _read_url(name: str, settings: WebhookTarget) -> httpx.URL:
    try:
        url = httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"webhooks.{name}.url is no URL") from error
    port = 443 if url.port is None else url.port
    if not _HOST.fullmatch(url.raw_host) or not 0 < port < 65_536:
        raise InvalidInput(f"webhooks.{name}.url has no host, or no port from 1 to 65535")
    if url.scheme == "http" and not settings.allow_private_network:
        raise InvalidInput(
            f"webhooks.{name}.url: http:// is for private networks only: use https://, or set"
            f" webhooks.{name}.allow_private_network"
        )
    return url


def _read_secrets(name: str, file: Path) -> Iterator[bytes]:
    where = f"webhooks.{name}.secret_file"
    try:
        with file.open("rb") as opened:
            lines = opened.read(_FILE_LIMIT_BYTES).splitlines()
    except OSError as error:
        raise InvalidInput(f"{where}: {file} cannot be read: {error.strerror or error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(numbered) <= _MOST_SECRETS:
        raise InvalidInput(f"{where}: {file} must hold 1 to {_MOST_SECRETS} secrets, one a line")
    for number, line in numbered:
        secret = _decode(line)
        if len(secret) not in _SECRET_BYTES:
            # Not the error that base64 gives: it would stand in a traceback beside the secret.
            raise InvalidInput(
                f"{where}: line {number} of {file} must be {_SECRET_PREFIX} and the base64 of 24 to 64"
                f' bytes: make one with `echo "{_SECRET_PREFIX}$(openssl rand -base64 32)"`'
            )
        yield secret


def _decode(line: bytes) -> bytes:
    """The bytes of a secret, none where it is no secret."""
    encoded = line.removeprefix(_SECRET_PREFIX.encode())
    if encoded == line:
        return b""
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return b""


def _tls(name: str, ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context()
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an ssl.SSLError is one
        raise InvalidInput(
            f"webhooks.{name}.ca_file: {ca_file} holds no certificates that can be read"
        ) from error
