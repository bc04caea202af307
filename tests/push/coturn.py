"""A real coturn on loopback, as Debian packages it, and allocations made on it by aioice: a TURN client
that knows nothing of ours."""

import asyncio
import shutil
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aioice import stun, turn

from bellwire.broker.embedded import free_port
from tests.conftest import PATIENCE_S

TURNSERVER = shutil.which("turnserver")
needs_coturn = pytest.mark.skipif(TURNSERVER is None, reason="coturn is not installed")


@dataclass(frozen=True)
class Coturn:
    """A TURN server at work, and what it has logged."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"turn:127.0.0.1:{self.port}?transport=udp"

    async def allocate(self, username: str, credential: str) -> tuple[str, int]:
        """Makes an allocation and gives it up again; the address that it relayed.

        Raises:
            aioice.stun.TransactionFailed: it is refused.
        """
        async with asyncio.timeout(PATIENCE_S):
            transport, _ = await turn.create_turn_endpoint(
                asyncio.DatagramProtocol,
                server_addr=("127.0.0.1", self.port),
                username=username,
                password=credential,
            )
        relayed: tuple[str, int] = transport.get_extra_info("sockname")
        transport.close()
        return relayed

    async def lets_send(self, username: str, credential: str, peer: str) -> bool:
        """Whether an allocation may send to a peer's address."""
        loop = asyncio.get_running_loop()
        server = ("127.0.0.1", self.port)
        _, client = await loop.create_datagram_endpoint(
            lambda: turn.TurnClientUdpProtocol(server, username, credential, 600, 500),
            remote_addr=server,
        )
        async with asyncio.timeout(PATIENCE_S):
            await client.connect()
            try:
                await client.channel_bind(0x4000, (peer, 9))
            except stun.TransactionFailed as refused:
                assert refused.response.attributes["ERROR-CODE"][0] == 403
                return False
            finally:
                await client.delete()
        return True

    async def refusal(self, username: str, credential: str) -> int:
        """The code that an allocation is refused with."""
        with pytest.raises(stun.TransactionFailed) as refused:
            await self.allocate(username, credential)
        code: tuple[int, str] = refused.value.response.attributes["ERROR-CODE"]
        return code[0]


@asynccontextmanager
async def coturn(
    folder: Path, secret: str, base: str = "use-auth-secret\nrealm=example.org\n"
) -> AsyncIterator[Coturn]:
    """A TURN server with this secret and configuration, on a port of its own."""
    assert TURNSERVER is not None
    port = free_port()
    file = folder / "turnserver.conf"
    file.write_text(
        f"{base}\nstatic-auth-secret={secret}\nlistening-ip=127.0.0.1\nrelay-ip=127.0.0.1\n"
        f"listening-port={port}\nno-tcp\nno-tls\nno-dtls\nno-cli\n"
        f"log-file={folder}/log\nsimple-log\npidfile={folder}/pid\nuserdb={folder}/db\n"
    )
    file.chmod(0o600)
    process = await asyncio.create_subprocess_exec(
        TURNSERVER, "-c", str(file), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, cwd=folder
    )
    log = folder / "log"
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await _answers(port):
                assert process.returncode is None, log.read_text()
        yield Coturn(port, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


class _Answered(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.came = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:
        del data, addr
        self.came.set()


async def _answers(port: int) -> bool:
    """Whether the server answers a STUN request within a moment."""
    request = stun.Message(message_method=stun.Method.BINDING, message_class=stun.Class.REQUEST)
    transport, answered = await asyncio.get_running_loop().create_datagram_endpoint(
        _Answered, remote_addr=("127.0.0.1", port)
    )
    try:
        transport.sendto(bytes(request))
        async with asyncio.timeout(0.2):
            await answered.came.wait()
    except TimeoutError:
        return False
    finally:
        transport.close()
    return True
