"""What APNs knows an app by: a token signed with the team's key (p8), or a certificate over TLS.

Files are read where the credentials are opened and where a connection is; neither on the event loop.
"""

import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import jwt
from aioapns.connection import AuthorizationHeaderProvider
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bellwire.config.relay import ApnsApp
from bellwire.signaling.errors import InvalidInput

REFRESH_S = 40 * 60
"""Apple takes a token for an hour, and a new one no more often than every 20 minutes."""
_SOONEST_S = 20 * 60


class ProviderToken(AuthorizationHeaderProvider):
    """The authorization of one key, shared by all apps and connections that use the key.

    Args:
        key: The team's key.
        key_id: Names it to Apple.
        team_id: Who has it.
        now: Tells the time.
    """

    def __init__(
        self, key: EllipticCurvePrivateKey, key_id: str, team_id: str, now: Callable[[], datetime]
    ) -> None:
        self._key = key
        self._key_id = key_id
        self._team_id = team_id
        self._now = now
        self._header = ""
        self._issued_s = 0.0
        self._renewed_s: float | None = None

    def get_header(self) -> str:
        """The header's value, made anew every 40 minutes, and when the clock has been set back."""
        now_s = self._now().timestamp()
        if not self._header or not 0 <= now_s - self._issued_s < REFRESH_S:
            self._issue(now_s)
        return self._header

    def renew(self, refused: str) -> bool:
        """Sees to another header than one that APNs calls expired. False where there is none: the
        last one made for this reason is not yet 20 minutes old, so the age was not at fault."""
        if self.get_header() != refused:
            return True
        now_s = self._now().timestamp()
        if self._renewed_s is not None and 0 <= now_s - self._renewed_s < _SOONEST_S:
            return False
        self._renewed_s = now_s
        self._issue(now_s)
        return True

    def _issue(self, now_s: float) -> None:
        # ES256 signatures differ each time, so a token made in the same second is another too.
        self._issued_s = now_s
        claims = {"iss": self._team_id, "iat": int(now_s)}
        token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})
        self._header = f"bearer {token}"


class TlsSettings:
    """The TLS side of an app's connections: whom it trusts and, with a certificate, who it is."""

    def __init__(self, bundle_id: str, app: ApnsApp) -> None:
        self._bundle_id = bundle_id
        self._ca_file = app.ca_file
        self._certificate_file = app.certificate_file
        self._lock = threading.Lock()
        self._seen: tuple[tuple[int, int], ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The context for a new connection, with its files as they are now: a certificate that was
        replaced on disk is used from the next connection on. Reads files.

        Raises:
            InvalidInput: a file is missing, unreadable or not what it should be; names the setting.
        """
        with self._lock:
            seen = self._versions()
            if self._context is None or seen != self._seen:
                self._context, self._seen = self._load(), seen
            return self._context

    def changed(self) -> bool:
        """Whether a file is another one than the last context was made of. Reads files.

        Raises:
            InvalidInput: as `context`.
        """
        with self._lock:
            return self._versions() != self._seen

    def _versions(self) -> tuple[tuple[int, int], ...]:
        files = (("ca_file", self._ca_file), ("certificate_file", self._certificate_file))
        return tuple(
            _version(self._setting(name), file) for name, file in files if file is not None
        )

    def _load(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{self._setting('ca_file')}: {self._ca_file} must hold CA certificates in PEM"
                f" form ({_why(error)})"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self._certificate_file is not None:
            try:
                # A passphrase nobody can type: without one, OpenSSL would ask on the terminal.
                context.load_cert_chain(self._certificate_file, password="")
            except (OSError, ValueError) as error:
                raise InvalidInput(
                    f"{self._setting('certificate_file')}: {self._certificate_file} must hold the"
                    f" VoIP certificate and its key, without a passphrase, in PEM form"
                    f" ({_why(error)})"
                ) from error
        return context

    def _setting(self, name: str) -> str:
        return f"apns.{self._bundle_id}.{name}"


def open_key(bundle_id: str, file: Path) -> EllipticCurvePrivateKey:
    """The team's key in a p8 file.

    Raises:
        InvalidInput: the file is missing, unreadable or holds no such key; names the setting and
            the file, never what it holds.
    """
    setting = f"apns.{bundle_id}.key_file"
    try:
        pem = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{setting}: {file} cannot be read: {_why(error)}") from error
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidInput(
            f"{setting}: {file} holds no private key in PEM form without a passphrase;"
            " give the .p8 file that Apple let you download"
        ) from None  # What the parser says might quote the file.
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise InvalidInput(f"{setting}: {file} holds a key of another kind than P-256, Apple's")
    return key


def _version(setting: str, file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise InvalidInput(f"{setting}: {file} cannot be read: {_why(error)}") from error
    return status.st_mtime_ns, status.st_size


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
