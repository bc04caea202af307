"""A phone that is no agent: a device on a WebSocket whose sound is aiortc's."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bellwire.agent.media.engine.interface import (
    BLOCK_FRAMES,
    Block,
    IceCandidate,
    PeerListeners,
    PeerState,
)
from bellwire.cli.relay_client import RelayClient
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest, TokenRequest
from tests.agent.media.aiortc_peer import AiortcPeer
from tests.conftest import PATIENCE_S
from tests.speech import Sound


class WebPhone:
    """It calls somebody, offers once that is accepted, and says one thing over and over."""

    def __init__(self, socket: ClientConnection, device_id: str, says: Sound) -> None:
        self.accepted, self.connected, self.ended = (asyncio.Event() for _ in range(3))
        self.peer: AiortcPeer | None = None
        self.failures: list[dict[str, Any]] = []
        self._socket = socket
        self._device_id = device_id
        self._says = says[: len(says) // BLOCK_FRAMES * BLOCK_FRAMES].reshape(-1, BLOCK_FRAMES)
        self._heard: list[Block] = []
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._session = secrets.token_hex(8)
        self._early: list[dict[str, Any]] | None = []
        self._other, self._sid = "", ""

    @property
    def heard(self) -> Sound:
        return np.concatenate(self._heard) if self._heard else np.zeros(0, np.int16)

    async def call(self, who: str) -> str:
        """Calls; returns the SID."""
        self._other = who
        answer = await self._ask(
            {"operation": "invite", "to": [who], "idempotency_key": secrets.token_hex(8)}
        )
        sid: str = answer["call"]["call_sid"]
        self._sid = sid
        return sid

    async def offer(self) -> None:
        """To who has accepted."""
        self.peer = AiortcPeer((), PeerListeners(lambda _: None, self._move, self._heard.append))
        await self._say(kind="offer", sdp=await self.peer.create_offer())

    def speak(self) -> None:
        """Says it once more."""
        assert self.peer is not None
        for block in self._says:
            self.peer.send(block)

    async def hang_up(self) -> None:
        await self._ask({"operation": "quit", "call_sid": self._sid})

    async def close(self) -> None:
        if self.peer is not None:
            await self.peer.close()

    async def read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            event = message["event"]
            if event == "stream.response":
                self._answers.pop(message["request_id"]).set_result(message)
            elif event == "call.user_state_changed" and message["state"] == "Accepted":
                self.accepted.set()
            elif event == "call.message":
                await self._take(message["content"])
            elif event == "call.ended":
                self.ended.set()

    def _move(self, state: PeerState) -> None:
        if state is PeerState.CONNECTED:
            self.connected.set()

    async def _take(self, said: dict[str, Any]) -> None:
        if said["kind"] == "failed":
            self.failures.append(said)
        if said["session"] != self._session or said.get("to_device") != self._device_id:
            return
        assert self.peer is not None
        if said["kind"] == "answer":
            await self.peer.accept_answer(said["sdp"])
            early, self._early = self._early or [], None
            for candidate in early:
                await self._add(candidate)
        elif said["kind"] == "candidate":
            if self._early is None:
                await self._add(said)
            else:
                self._early.append(said)

    async def _add(self, said: dict[str, Any]) -> None:
        assert self.peer is not None
        await self.peer.add_candidate(
            IceCandidate(said["candidate"], said.get("sdp_mid"), said.get("sdp_m_line_index"))
        )

    async def _say(self, **document: str) -> None:
        content = {"session": self._session, "device_id": self._device_id, **document}
        answer = await self._ask(
            {
                "operation": "message",
                "call_sid": self._sid,
                "message_type": "media",
                "to": [self._other],
                "voice_event_sid": f"KX{secrets.token_hex(16)}",
                "content": content,
            }
        )
        assert answer["status"] == 200, answer

    async def _ask(self, operation: dict[str, Any]) -> dict[str, Any]:
        request_id = secrets.token_hex(4)
        self._answers[request_id] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"request_id": request_id, **operation}))
        async with asyncio.timeout(PATIENCE_S):
            return await self._answers[request_id]


async def web_token(client: RelayClient, device_id: str, identity: str) -> str:
    """Registers a device for streams; returns its token."""
    request = DeviceRequest(identity=identity, channels=[ChannelRequest(kind="websocket")])
    await asyncio.to_thread(client.put_device, device_id, request)
    issued = await asyncio.to_thread(
        client.issue_token, TokenRequest(identity=Identity(identity), device_id=device_id)
    )
    return issued.token


@asynccontextmanager
async def web_phone(client: RelayClient, identity: str, says: Sound) -> AsyncIterator[WebPhone]:
    """Such a phone, listening."""
    token = await web_token(client, f"{identity}-1", identity)
    url = client.url.replace("http", "ws", 1)
    async with connect(f"{url}/v1/events?token={token}", open_timeout=PATIENCE_S) as socket:
        phone = WebPhone(socket, f"{identity}-1", says)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(phone.read())
            yield phone
            await phone.close()
            reading.cancel()
