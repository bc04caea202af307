"""Plays Google at the wire: FCM's v1 send endpoint over TLS and HTTP/2, and the OAuth token endpoint
over HTTP/1.1, as google-auth speaks it; on one port, told apart by ALPN. With a CA of its own."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import h2.config
import h2.connection
import h2.events
import h2.settings
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from h2.exceptions import ProtocolError

from tests.conftest import PATIENCE_S

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
OAUTH_AUDIENCE = "https://oauth2.googleapis.com/token"
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
"""A service account's. Made once: it takes a while."""


def fcm_error(
    status: int, name: str, code: str | None = None, message: str = "said by FCM"
) -> tuple[int, dict[str, Any]]:
    """An error as FCM answers it: the RPC status and, in the details, FCM's own code."""
    details = [
        {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}
    ] * (code is not None)
    error = {"code": status, "message": message, "status": name, "details": details}
    return status, {"error": error}


@dataclass
class Answer:
    """What the server says to one message, or to one request for a token."""

    status: int = 200
    document: object = None
    headers: dict[str, str] = field(default_factory=dict)


class Push:
    """A message that has come in, whole. The test answers it where the server holds it."""

    def __init__(
        self, connection: "_Http2", stream_id: int, headers: list[tuple[str, str]]
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.headers = headers
        self.body = b""

    @property
    def message(self) -> dict[str, Any]:
        """What is to be sent to the app."""
        message: dict[str, Any] = json.loads(self.body)["message"]
        return message

    def header(self, name: str) -> str:
        """The value of a header that stands there once."""
        (value,) = [value for known, value in self.headers if known == name]
        return value

    def answer(self, answer: Answer | None = None) -> None:
        """Answers, by default that FCM has it."""
        answer = answer or Answer()
        name = {"name": f"projects/relay-test/messages/{self.connection.number}-{self.stream_id}"}
        document = name if answer.document is None else answer.document
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = [
            (":status", str(answer.status)),
            ("content-type", "application/json; charset=UTF-8"),
            *answer.headers.items(),
        ]
        h2_ = self.connection.h2
        # One that was cancelled meanwhile is no longer there to be answered.
        with contextlib.suppress(ProtocolError):
            h2_.send_headers(self.stream_id, headers)
            half = len(body) // 2  # in two frames, as it may well come
            h2_.send_data(self.stream_id, body[:half])
            h2_.send_data(self.stream_id, body[half:], end_stream=True)
        self.connection.flush()

    def reset(self) -> None:
        """Resets its stream."""
        self.connection.h2.reset_stream(self.stream_id, error_code=2)
        self.connection.flush()


class _Http2(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: "FcmServer") -> None:
        self._server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(False, "utf-8"))
        self.transport: asyncio.Transport | None = None
        self.number = 0
        self._requests: dict[int, Push] = {}
        self._http1: bytes | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            self._http1 = b""
            return
        self._server.connections.append(self)
        self.number = len(self._server.connections)
        self.h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._server.max_streams
            },
        )
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self._http1 is not None:
            self._http1 += data
            self._take_http1(self._http1)
            return
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    headers = [(str(k), str(v)) for k, v in event.headers or ()]
                    assert event.stream_id is not None
                    self._requests[event.stream_id] = Push(self, event.stream_id, headers)
                case h2.events.DataReceived():
                    assert event.stream_id is not None
                    self._requests[event.stream_id].body += event.data or b""
                    self.h2.acknowledge_received_data(
                        event.flow_controlled_length or 0, event.stream_id
                    )
                case h2.events.StreamEnded():
                    assert event.stream_id is not None
                    self._server.take(self._requests.pop(event.stream_id))
                case _:
                    pass
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.closed.set()

    def flush(self) -> None:
        """Sends what there is to send."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def go_away(self, last_stream_id: int | None = None) -> None:
        """Says that it takes no more streams than those to this one, by default all so far; closes."""
        self.h2.close_connection(last_stream_id=last_stream_id)
        self.flush()
        assert self.transport is not None
        self.transport.close()

    def drop(self) -> None:
        """Closes without a word, as a machine that dies."""
        assert self.transport is not None
        self.transport.abort()

    def _take_http1(self, data: bytes) -> None:
        head, found, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        if found and len(body) >= int(headers.get("content-length", 0)):
            self._http1 = b""
            self._server.ask_for_token(self, lines[0], parse_qs(body.decode()))

    def answer_http1(self, answer: Answer) -> None:
        """Answers a request for a token, and closes."""
        document = answer.document
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        assert self.transport is not None
        if not self.transport.is_closing():
            self.transport.write(
                f"HTTP/1.1 {answer.status} -\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            self.transport.close()


class FcmServer:
    """Google. It answers everything with success unless it is told otherwise.

    `hold`: messages are answered by the test, which takes them from `next_push`.
    `answers`: what is said to messages for a token instead of success.
    `token_gate`: requests for access tokens wait until it is set.
    `token_answer`: what is said to them instead of a token.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0
        self.hold = False
        self.max_streams = 100
        self.answers: dict[str, Answer] = {}
        self.pushes: asyncio.Queue[Push] = asyncio.Queue()
        self.count = 0
        self.connections: list[_Http2] = []
        self.token_gate = asyncio.Event()
        self.token_gate.set()
        self.token_answer: Answer | None = None
        self.token_life_s = 3600
        self.clock_ahead_s = 0.0
        self.token_requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.tokens: list[str] = []
        self.revoked: set[str] = set()
        self._waiting: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """Its CA."""
        return self._folder / "ca.pem"

    def account_file(self, **members: object) -> Path:
        """A service account's key file, whose tokens are had from here."""
        key = _KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        account = {
            "type": "service_account",
            "project_id": "relay-test",
            "private_key_id": "0123456789abcdef",
            "private_key": key.decode(),
            "client_email": "relay@relay-test.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{self.url}/token",
            **members,
        }
        path = self._folder / f"account-{len(list(self._folder.iterdir()))}.json"
        path.write_text(json.dumps({k: v for k, v in account.items() if v is not None}))
        return path

    async def next_push(self) -> Push:
        """The next message that comes in."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.pushes.get()

    async def next_token_request(self) -> dict[str, Any]:
        """The claims of the next request for an access token."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.token_requests.get()

    def take(self, push: Push) -> None:
        """A message has come in."""
        self.count += 1
        self.pushes.put_nowait(push)
        bearer = push.header("authorization").removeprefix("Bearer ")
        if bearer not in self.tokens or bearer in self.revoked:
            push.answer(Answer(*fcm_error(401, "UNAUTHENTICATED")))
        elif not self.hold:
            push.answer(self.answers.get(push.message["token"]))

    def ask_for_token(self, connection: _Http2, request: str, form: dict[str, list[str]]) -> None:
        """An access token is asked for, as RFC 7523 says."""
        assert request == "POST /token HTTP/1.1"
        assert form["grant_type"] == [GRANT]
        claims = jwt.decode(
            form["assertion"][0],
            _KEY.public_key(),
            algorithms=["RS256"],
            audience=OAUTH_AUDIENCE,
            options={"verify_iat": False, "verify_exp": False},
        )
        self.token_requests.put_nowait(claims)
        waiting = asyncio.get_running_loop().create_task(self._answer(connection, claims))
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)

    async def _answer(self, connection: _Http2, claims: dict[str, Any]) -> None:
        await self.token_gate.wait()
        if self.token_answer is not None:
            connection.answer_http1(self.token_answer)
        elif abs(claims["iat"] - (time.time() + self.clock_ahead_s)) > 300:
            connection.answer_http1(
                Answer(
                    400,
                    {
                        "error": "invalid_grant",
                        "error_description": "Invalid JWT: Token must be a short-lived token (60"
                        " minutes) and in a reasonable timeframe. Check your iat and exp values.",
                    },
                )
            )
        else:
            self.tokens.append(f"access-{len(self.tokens) + 1}")
            document = {
                "access_token": self.tokens[-1],
                "expires_in": self.token_life_s,
                "token_type": "Bearer",
            }
            connection.answer_http1(Answer(200, document))

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FcmServer"]:
        """Serves on a free port."""
        trust = _certify(self._folder)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Http2(self), "127.0.0.1", 0, ssl=trust
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for waiting in list(self._waiting):
                waiting.cancel()
            for connection in self.connections:
                connection.drop()


def _certify(folder: Path) -> ssl.SSLContext:
    """Makes a CA, and a certificate of 127.0.0.1 by it."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Bellwire's tests")])
    begin = datetime.now(UTC) - timedelta(hours=1)

    def builder(
        subject: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=2))
        )

    ca = (
        builder(name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    certificate = (
        builder(x509.Name([]), key.public_key())
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True
        )
        .sign(ca_key, hashes.SHA256())
    )
    (folder / "server.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(folder / "server.pem")
    trust.set_alpn_protocols(["h2", "http/1.1"])
    return trust
