"""APNs at the wire: a TLS HTTP/2 server on the h2 library, with a CA of its own. It notes every push
and answers as the test says: at once, late, never, in pieces, or by going away."""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, PingReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from bellwire.broker.embedded import free_port
from tests.conftest import PATIENCE_S

_DAY = timedelta(days=1)
_PKCS8 = PrivateFormat.PKCS8


class Authority:
    """A certificate authority in a folder: `ca.pem`, and what it signs."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Test {name}")])
        certificate = self._build(self._name, self._key, ca=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    def certificate(self, name: str, *, passphrase: bytes | None = None) -> Path:
        """A PEM file with a certificate for this name, also valid for loopback, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        pem = self._build(subject, key).public_bytes(Encoding.PEM)
        file = self.folder / f"{name}.pem"
        file.write_bytes(pem + key.private_bytes(Encoding.PEM, _PKCS8, encryption))
        return file

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool = False
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        loopback = x509.IPAddress(ip_address("127.0.0.1"))
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def write_team_key(file: Path) -> ec.EllipticCurvePublicKey:
    """Writes a key as Apple's p8 files hold them; what it is verified with."""
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, _PKCS8, NoEncryption()))
    return key.public_key()


@dataclass
class Reply:
    """What APNs answers. `pieces` are the DATA frames of the body."""

    status: int = 200
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    timestamp: int | None = None
    pieces: list[bytes] | None = None
    with_apns_id: bool = True

    @property
    def body(self) -> list[bytes]:
        if self.pieces is not None:
            return self.pieces
        document: dict[str, object] = {"reason": self.reason} if self.reason else {}
        if self.timestamp is not None:
            document["timestamp"] = self.timestamp
        return [json.dumps(document).encode()] if document else []


@dataclass
class Pushed:
    """A push as it arrived."""

    connection: "ServerConnection"
    stream_id: int
    headers: list[tuple[str, str]]
    at: datetime
    body: bytes = b""

    def header(self, name: str) -> str:
        (value,) = [value for known, value in self.headers if known == name]
        return value

    def reply(self, reply: Reply) -> None:
        self.connection.reply(self, reply)


class ServerConnection(asyncio.Protocol):
    """One connection as the server has it."""

    def __init__(self, server: "ApnsServer") -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.pushes: list[Pushed] = []
        self.resets: list[int] = []
        self.pings = 0
        self.deaf = False
        """Neither hears nor says anything, as behind a NAT that has forgotten the connection."""
        self._begun: dict[int, Pushed] = {}
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.append(self)
        self.server.opened += 1
        self.h2.local_settings = Settings(client=False, initial_values=self.server.settings)
        self.h2.decoder.max_allowed_table_size = self.h2.local_settings.header_table_size
        self.h2.initiate_connection()
        self.flush()
        self.server.happened()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.server.connections.remove(self)
        self.server.happened()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        try:
            events = self.h2.receive_data(data)
        except ProtocolError as error:
            self.server.offences.append(repr(error))
            self.flush()
            self.transport.close()
            return
        for event in events:
            match event:
                case RequestReceived():
                    headers = [(str(name), str(value)) for name, value in event.headers]
                    push = Pushed(self, event.stream_id, headers, self.server.now())
                    self._begun[event.stream_id] = push
                case DataReceived():
                    self._begun[event.stream_id].body += event.data
                    if self.server.credits_at_once:
                        self.credit(event.flow_controlled_length, event.stream_id)
                case StreamEnded():
                    self._pushed(self._begun.pop(event.stream_id))
                case StreamReset():
                    self.resets.append(event.stream_id)
                    self._begun.pop(event.stream_id, None)
                case PingReceived():
                    self.pings += 1
        self.flush()
        self.server.happened()

    def _pushed(self, push: Pushed) -> None:
        self.pushes.append(push)
        self.server.pushes.append(push)
        reply = self.server.answer(push)
        if reply is not None:
            self.reply(push, reply)

    def reply(self, push: Pushed, reply: Reply) -> None:
        headers = [(":status", str(reply.status))]
        if reply.with_apns_id:
            headers.append(("apns-id", push.header("apns-id")))
        headers += reply.headers.items()
        body = reply.body
        self.h2.send_headers(push.stream_id, headers, end_stream=not body)
        for number, piece in enumerate(body, 1):
            self.h2.send_data(push.stream_id, piece, end_stream=number == len(body))
        if not self.server.credits_at_once:
            self.credit(len(push.body))
        self.flush()

    def credit(self, size: int, stream_id: int | None = None) -> None:
        """Lets the client send this much more: as the connection's window, and a stream's."""
        self.h2.increment_flow_control_window(size)
        if stream_id is not None and self.server.credits_streams:
            self.h2.increment_flow_control_window(size, stream_id)
        self.flush()

    def change(self, settings: dict[SettingCodes | int, int]) -> None:
        self.h2.update_settings(settings)
        self.flush()

    def reset(self, push: Pushed, code: int) -> None:
        self.h2.reset_stream(push.stream_id, code)
        self.flush()

    def goaway(self, last_stream_id: int, reason: str = "") -> None:
        """Says that it goes away, and goes on with what it has taken, which h2 itself cannot."""
        text = json.dumps({"reason": reason}).encode() if reason else b""
        frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=0, additional_data=text)
        self.transport.write(frame.serialize())

    def drop(self) -> None:
        self.transport.abort()

    def flush(self) -> None:
        if not self.deaf and not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())


class ApnsServer:
    """Plays APNs. What it does with a push is `answer`, which tests replace."""

    def __init__(self) -> None:
        self.port = 0
        self.opened = 0
        """Connections ever made."""
        self.connections: list[ServerConnection] = []
        self.pushes: list[Pushed] = []
        self.offences: list[str] = []
        """What clients did against HTTP/2."""
        self.settings: dict[SettingCodes, int] = {SettingCodes.MAX_CONCURRENT_STREAMS: 1000}
        self.credits_at_once = True
        self.credits_streams = False
        self.clock_ahead = timedelta()
        self.answer: Callable[[Pushed], Reply | None] = lambda _: Reply()
        self._wake = asyncio.Event()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.clock_ahead

    def happened(self) -> None:
        self._wake.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds, looking whenever the server has seen something."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._wake.clear()
                await self._wake.wait()

    def checking_tokens(
        self, key: ec.EllipticCurvePublicKey, key_id: str, team_id: str
    ) -> Callable[[Pushed], Reply | None]:
        """An `answer` that takes only what this key has signed, within the hour by its own clock."""

        def check(push: Pushed) -> Reply:
            given = dict(push.headers).get("authorization", "")
            if not given.startswith("bearer "):
                return Reply(403, "MissingProviderToken")
            token = given.removeprefix("bearer ")
            try:
                claims = jwt.decode(token, key, algorithms=["ES256"], options={"verify_iat": False})
            except jwt.InvalidTokenError:
                return Reply(403, "InvalidProviderToken")
            header = jwt.get_unverified_header(token)
            known = header["kid"] == key_id and claims["iss"] == team_id
            if not known or set(claims) != {"iss", "iat"}:
                return Reply(403, "InvalidProviderToken")
            if abs(self.now().timestamp() - claims["iat"]) > 3600:
                return Reply(403, "ExpiredProviderToken", {"date": _http_date(self.now())})
            return Reply()

        return check


def _http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


@contextmanager
def refusing_certificates(authority: Authority, clients: Authority) -> Iterator[int]:
    """A TLS server that refuses the certificates of strangers with an alert, as Apple's does and
    asyncio's does not; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("refusing-server"))
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(clients.file)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):  # The listener was closed.
            while True:
                accepted, _ = listener.accept()
                with suppress(OSError), accepted, context.wrap_socket(accepted, server_side=True):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@asynccontextmanager
async def apns_server(
    authority: Authority,
    *,
    clients: Authority | None = None,
    port: int = 0,
    protocols: tuple[str, ...] = ("h2",),
) -> AsyncIterator[ApnsServer]:
    """APNs on loopback; with `clients`, for those alone that show a certificate it has signed. Its port is
    one that no outgoing connection is given: tests stop it, and serve there again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("apns-server"))
    context.set_alpn_protocols(list(protocols))
    if clients is not None:
        context.load_verify_locations(clients.file)
        context.verify_mode = ssl.CERT_REQUIRED
    apns = ApnsServer()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: ServerConnection(apns), "127.0.0.1", port or free_port(), ssl=context
    )
    apns.port = listener.sockets[0].getsockname()[1]
    try:
        yield apns
    finally:
        listener.close()
        for connection in list(apns.connections):
            connection.drop()
        await apns.until(lambda: not apns.connections)
        await listener.wait_closed()
    assert not apns.offences, apns.offences
