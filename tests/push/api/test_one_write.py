"""Answers leave the relay in one write each, and what is long is not gathered without end."""

import asyncio

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from bellwire.push.api.server.guarded_http import OneWriteProtocol
from tests.conftest import PATIENCE_S

LONG = b"x" * 300_000


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    del receive
    parts = {
        "/short": [b"ab"],
        "/long": [LONG, LONG],
        "/many": [b"x" * 1000] * 600,
        "/empty": [b""],
    }[scope["path"]]
    length = str(sum(map(len, parts))).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    for number, part in enumerate(parts, start=1):
        more = number < len(parts)
        await send({"type": "http.response.body", "body": part, "more_body": more})


class Watched(OneWriteProtocol):
    """Keeps the sizes of what is really written."""

    writes: list[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        class Seen:
            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                Watched.writes.append(len(data))
                transport.write(data)

        super().connection_made(Seen())  # type: ignore[arg-type]


async def asked(*paths: str) -> tuple[list[httpx.Response], list[int]]:
    """The answers on one connection, and the sizes of the writes that they took."""
    Watched.writes = []
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Watched(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with asyncio.timeout(PATIENCE_S), server:
        port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answers = [await client.get(path) for path in paths]
    return answers, Watched.writes


async def test_each_answer_is_one_write() -> None:
    answers, writes = await asked("/short", "/short", "/empty")
    assert [answer.content for answer in answers] == [b"ab", b"ab", b""]
    assert len(writes) == 3


async def test_a_long_answer_comes_whole_and_is_not_gathered_in_memory() -> None:
    answers, writes = await asked("/long", "/many", "/short")
    assert [answer.content for answer in answers] == [LONG + LONG, LONG + LONG, b"ab"]
    assert max(writes) < 2 * len(LONG)
