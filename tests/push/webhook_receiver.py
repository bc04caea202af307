"""A backend that receives webhooks: a real HTTP or HTTPS server, whose every answer a test can play."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from standardwebhooks import Webhook

from bellwire.broker.embedded import free_port
from bellwire.config.relay import WebhookTarget
from tests.conftest import PATIENCE_S

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
OTHER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Received:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verified(self, secret: str = SECRET) -> dict[str, Any]:
        """The event, once the reference implementation has verified its signature and time."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def status(code: int, *headers: str, body: bytes = b"") -> Answer:
    """Answers with a status, header lines and a body."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Played", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return answer


def raw(*parts: bytes, then_close: bool = True) -> Answer:
    """Answers with bytes, whatever they say."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_close:
            writer.close()

    return answer


async def hang(_: Received, __: asyncio.StreamWriter) -> None:
    """Never answers."""
    await asyncio.Event().wait()


async def drip(_: Received, writer: asyncio.StreamWriter) -> None:
    """Answers 200 at once, and with its body never comes to an end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.05)


@dataclass
class Backend:
    """What came, and what is answered: `answers` one after the other, then `answer` for ever."""

    url: str = ""
    came: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    answer: Answer = field(default_factory=lambda: status(200))
    answers: list[Answer] = field(default_factory=list)
    connections: int = 0
    open_at_once: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def next(self) -> Received:
        async with asyncio.timeout(PATIENCE_S):
            return await self.came.get()

    async def next_few(self, count: int) -> list[Received]:
        return [await self.next() for _ in range(count)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_at_once = max(self.open_at_once, len(self._tasks))
        try:
            while (request := await _read(reader)) is not None:
                self.came.put_nowait(request)
                answer = self.answers.pop(0) if self.answers else self.answer
                with suppress(ConnectionError):
                    await answer(request, writer)
                    await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass  # The relay went away.
        except asyncio.CancelledError:
            pass  # The test is over; the streams' own callback would log it.
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    line, *fields = head.strip().split("\r\n")
    headers = {key.lower(): value for key, _, value in (text.partition(": ") for text in fields)}
    length = int(headers.get("content-length", 0))
    return Received(line, headers, await reader.readexactly(length))


@asynccontextmanager
async def backend(
    host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Backend]:
    """A backend at work. Its URL names its address."""
    here = Backend()
    server = await asyncio.start_server(here.serve, host, port or free_port(), ssl=tls)
    try:
        taken = server.sockets[0].getsockname()[1]
        here.url = f"{'http' if tls is None else 'https'}://{host}:{taken}/hook"
        yield here
    finally:
        server.close()
        await here.close()
        await server.wait_closed()


def target(folder: Path, url: str, *secrets: str, **settings: Any) -> WebhookTarget:  # noqa: ANN401
    """Settings of a webhook on a private network, its secret file in a folder."""
    file = folder / f"secrets-{abs(hash((url, secrets)))}"
    file.write_text("\n".join(secrets or (SECRET,)) + "\n")
    return WebhookTarget.model_validate(
        {"url": url, "secret_file": file, "allow_private_network": True, **settings}
    )


def certificate(folder: Path, names: Sequence[str]) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for host names, as a file to trust, and a server's side of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    trusted, private = folder / "certificate.pem", folder / "key.pem"
    trusted.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, private)
    return trusted, context
