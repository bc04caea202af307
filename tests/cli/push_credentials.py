"""Credentials as Apple and Google give them, made for tests; and a server that tells the time."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC).replace(microsecond=0)
TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(
    key: CertificateIssuerPrivateKeyTypes,
    *,
    name: str = "VoIP Services: com.example.app",
    user: str | None = None,
    topics: str | None = None,
    days: float = 300,
    host: str | None = None,
) -> str:
    """A certificate as Apple makes it, signed by itself."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if user is not None:
        subject.insert(0, x509.NameAttribute(NameOID.USER_ID, user))
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=400))
        .not_valid_after(NOW + timedelta(days=days))
    )
    if topics is not None:
        listed = bytes([0x30, len(topics) + 2, 0x0C, len(topics)]) + topics.encode()
        built = built.add_extension(x509.UnrecognizedExtension(TOPICS, listed), critical=False)
    if host is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))])
        built = built.add_extension(names, critical=False)
    return built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def account(**changes: object) -> str:
    """A service account's file."""
    document = {
        "type": "service_account",
        "project_id": "doorbells",
        "client_email": "relay@doorbells.example",
        "private_key": pem(RSA_KEY),
        "token_uri": "https://oauth2.example/token",
    }
    return json.dumps({**document, **changes})


@contextmanager
def tls_server(folder: Path, *, minutes_off: int = 0, status: int = 200) -> Iterator[str]:
    """Something that plays Apple and Google and tells the time; HOST:PORT. Its CA is `ca.pem`."""
    (folder / "ca.pem").write_text(certificate(EC_KEY, name="server", host="127.0.0.1"))
    (folder / "server.pem").write_text((folder / "ca.pem").read_text() + pem(EC_KEY))
    date = (datetime.now(UTC) + timedelta(minutes=minutes_off)).strftime(
        "%a, %d %b %Y %H:%M:%S GMT"
    )

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            del timestamp
            return date

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
