"""The doctor's look at the files that push settings name: keys, certificates, accounts, secrets.

Nothing of what stands in them is shown but names and dates.
"""

import base64
import binascii
import json
import re
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from bellwire.cli.doctor.diagnosis import Finding, bad, good, warning

_LIMIT_BYTES = 64 * 1024
_SOON = timedelta(days=30)
_TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")
"""Apple's list of the topics that a certificate may push to."""

_DOWNLOAD_KEY = "it is the AuthKey_….p8 of Apple's Keys page: copy it again, or make a new key"
_NEW_CERTIFICATE = "make a new VoIP Services certificate for this bundle id at Apple"
_NEW_ACCOUNT_KEY = "make a new key for the service account in the Firebase console, as JSON"


class _Unreadable(Exception):
    """A file is not to be read; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


_Arguments = ParamSpec("_Arguments")


def _reporting(
    examine: Callable[_Arguments, Iterator[Finding]],
) -> Callable[_Arguments, Iterator[Finding]]:
    """Lets an examination end with the finding that its file cannot be read."""

    @wraps(examine)
    def report(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Iterator[Finding]:
        try:
            yield from examine(*args, **kwargs)
        except _Unreadable as error:
            yield error.finding

    return report


@_reporting
def examine_token_key(path: Path, key_id: str | None) -> Iterator[Finding]:
    """An APNs key: P-256, as ES256 needs it (Apple, "Establishing a token-based connection")."""
    pem = _read(path)
    yield from _privacy(path)
    key = _private_key(pem)
    if not (isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)):
        what = "no private key" if key is None else "no EC key on the curve P-256"
        yield bad(f"{path} holds {what}", _DOWNLOAD_KEY)
        return
    named = re.fullmatch(r"AuthKey_(\w{10})\.p8", path.name)
    if named is not None and named[1] != key_id:
        yield bad(
            f"{path.name} is the key {named[1]}, and key_id says {key_id}",
            "write the key's own id, of Apple's Keys page, into key_id",
        )
        return
    yield good(f"{path} is an APNs key")


@_reporting
def examine_voip_certificate(path: Path, bundle_id: str, now: datetime) -> Iterator[Finding]:
    """A VoIP certificate with its key, both in one PEM file, and how long it is still good."""
    pem = _read(path)
    yield from _privacy(path)
    try:
        certificate, *_ = x509.load_pem_x509_certificates(pem)
    except ValueError:
        yield bad(f"{path} holds no certificate in PEM", _NEW_CERTIFICATE)
        return
    key = _private_key(pem)
    if key is None or key.public_key() != certificate.public_key():
        yield bad(
            f"{path} does not hold the private key of its certificate",
            "export both from the keychain, and join them into one PEM file without a password",
        )
    if not _is_voip(certificate, bundle_id):
        yield bad(
            f"{path} is no VoIP certificate of {bundle_id}, but {_common_name(certificate)}",
            _NEW_CERTIFICATE,
        )
    yield _expiry(path, certificate, now)


@_reporting
def examine_service_account(path: Path, project_id: str | None) -> Iterator[Finding]:
    """A service account's key, as Firebase's console gives it."""
    text = _read(path)
    yield from _privacy(path)
    try:
        account = json.loads(text)
    except ValueError:
        account = None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        yield bad(f"{path} is no service account's key", _NEW_ACCOUNT_KEY)
        return
    missing = [
        name
        for name in ("project_id", "client_email", "token_uri")
        if not isinstance(account.get(name), str)
    ]
    if missing:
        yield bad(f"{path} lacks {', '.join(missing)}", _NEW_ACCOUNT_KEY)
        return
    if _private_key(str(account.get("private_key")).encode()) is None:
        yield bad(f"{path} holds no private key", _NEW_ACCOUNT_KEY)
        return
    if project_id not in (None, account["project_id"]):
        yield warning(
            f"{path} is of the project {account['project_id']}, and project_id says {project_id}",
            "unless the account may send for that project too, take project_id out",
        )
    yield good(f"{path} is the account {account['client_email']} of {account['project_id']}")


@_reporting
def examine_webhook_secrets(path: Path) -> Iterator[Finding]:
    """Secrets of Standard Webhooks, one a line: `whsec_` and 24 to 64 bytes in base64."""
    lines = _read(path).decode(errors="replace").split()
    yield from _privacy(path)
    make = f"make one: (umask 077; echo whsec_$(openssl rand -base64 32) > {path})"
    if not lines:
        yield bad(f"{path} holds no secret", make)
    for number, line in enumerate(lines, 1):
        wrong = _wrong_with_secret(line)
        if wrong is None:
            yield good(f"secret {number} of {path} is well")
        else:
            yield bad(f"secret {number} of {path} {wrong}", make)


def _wrong_with_secret(secret: str) -> str | None:
    encoded = secret.removeprefix("whsec_")
    if encoded == secret:
        return "does not begin with whsec_"
    try:
        length = len(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
    except (binascii.Error, ValueError):
        return "is no base64 after whsec_"
    return None if 24 <= length <= 64 else f"has {length} bytes, not 24 to 64"


@_reporting
def examine_text_secret(path: Path, what: str, pattern: str) -> Iterator[Finding]:
    """A file with nothing but a secret of a known form in it."""
    secret = _read(path).decode(errors="replace").strip()
    yield from _privacy(path)
    if re.fullmatch(pattern, secret):
        yield good(f"{path} holds {what}")
    else:
        yield bad(f"{path} does not hold {what}", "write it into the file, and nothing else")


@_reporting
def examine_ca_file(path: Path) -> Iterator[Finding]:
    """Certificates to trust, in PEM."""
    try:
        x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        yield bad(f"{path} holds no certificate in PEM", "name the CA's own file in ca_file")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT_BYTES)
    except OSError as error:
        raise _Unreadable(
            bad(
                f"{path} cannot be read: {error.strerror or error}",
                "the path is seen from where the relay starts; its account must be able to read it",
            )
        ) from error


def _privacy(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        yield bad(f"everybody may read {path} (mode {mode:o})", f"chmod 600 {path}")


def _private_key(pem: bytes) -> PrivateKeyTypes | None:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _is_voip(certificate: x509.Certificate, bundle_id: str) -> bool:
    """Whether Apple made it for VoIP pushes to the app: one of VoIP Services is, and one of Apple
    Push Services that lists the topic."""
    topic = f"{bundle_id}.voip"
    users = certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    if topic in [user.value for user in users]:
        return True
    if _common_name(certificate) == f"VoIP Services: {bundle_id}":
        return True
    try:
        topics = certificate.extensions.get_extension_for_oid(_TOPICS).value
    except x509.ExtensionNotFound:
        return False
    # A UTF8String of DER: its tag, its length, the text.
    wanted = bytes([0x0C, len(topic)]) + topic.encode()
    return isinstance(topics, x509.UnrecognizedExtension) and wanted in topics.value


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "one without a name"


def _expiry(path: Path, certificate: x509.Certificate, now: datetime) -> Finding:
    ends = certificate.not_valid_after_utc
    if ends <= now:
        return bad(f"{path} expired on {ends:%Y-%m-%d}", _NEW_CERTIFICATE)
    if certificate.not_valid_before_utc > now:
        return bad(f"{path} is not valid yet", "is this machine's clock right?")
    days = (ends - now).days
    if ends - now < _SOON:
        return warning(f"{path} expires in {days} days, on {ends:%Y-%m-%d}", _NEW_CERTIFICATE)
    return good(f"{path} is a certificate until {ends:%Y-%m-%d}")
