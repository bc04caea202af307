"""The relay's session with Janus, over its WebSocket API (https://janus.conf.meetecho.com/docs/rest.html,
"WebSockets Interface"): requests and their answers, and word of the users whose connections end.

Users live in the session, and the session as long as its WebSocket: when that is lost, Janus lets all of
them go, and their devices come again.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from bellwire.push.alarm import Sleep
from bellwire.signaling.errors import Unavailable

log = structlog.get_logger(__name__)

Handle = NewType("Handle", int)
"""One user's place in a session (Janus' "plugin handle")."""

_PLUGIN = "janus.plugin.audiobridge"
_KEEPALIVE_S = 20.0
_ANSWER_WITHIN_S = 5.0
_MESSAGE_LIMIT_BYTES = 256 * 1024
_GONE = frozenset({"hangup", "detached"})


class JanusRefused(Exception):
    """The AudioBridge refused a request; `code` is one of its own (485: no such room)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class JanusAnswer:
    """What the AudioBridge answers, and its SDP where it gives one."""

    data: dict[str, Any]
    sdp: str | None = None


class Janus:
    """One session, opened when it is first needed.

    Args:
        url: The WebSocket API.
        secret: Janus' `api_secret`.
        on_gone: Called with each user whose connection has ended.
        on_lost: Called when the session, and every user in it, is gone.
        sleep: Waits between two keep-alives.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        on_gone: Callable[[Handle], None],
        on_lost: Callable[[], None],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._url = url
        self._secret = secret
        self._on_gone = on_gone
        self._on_lost = on_lost
        self._sleep = sleep
        self._socket: ClientConnection | None = None
        self._session: int | None = None
        self._opening = asyncio.Lock()
        self._opened: asyncio.Queue[ClientConnection] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return self._session is not None

    async def run(self) -> None:
        """Reads what Janus says, and keeps the session alive, until cancelled."""
        try:
            while True:
                await self._follow(await self._opened.get())
                self._forget()
        finally:
            socket = self._socket
            self._forget()
            if socket is not None:
                await socket.close()

    async def attach(self) -> Handle:
        """A place for one user.

        Raises:
            Unavailable: Janus cannot be reached, or does not let the relay in.
        """
        await self._open()
        answer = await self._ask({"janus": "attach", "plugin": _PLUGIN})
        return Handle(answer["data"]["id"])

    async def ask(
        self, handle: Handle, body: dict[str, Any], offer: str | None = None
    ) -> JanusAnswer:
        """Asks the AudioBridge something for a user.

        Raises:
            JanusRefused: it refused.
            Unavailable: there is no answer, or Janus itself refused.
        """
        request: dict[str, Any] = {"janus": "message", "handle_id": handle, "body": body}
        if offer is not None:
            request["jsep"] = {"type": "offer", "sdp": offer}
        answer = await self._ask(request)
        data: dict[str, Any] = answer.get("plugindata", {}).get("data", {})
        if "error_code" in data:
            raise JanusRefused(int(data["error_code"]), str(data.get("error", ""))[:256])
        return JanusAnswer(data, answer.get("jsep", {}).get("sdp"))

    async def detach(self, handle: Handle) -> None:
        """Ends a user's place. It may be over already.

        Raises:
            Unavailable: Janus does not answer.
        """
        await self._ask({"janus": "detach", "handle_id": handle})

    async def _open(self) -> None:
        async with self._opening:
            if self._session is not None:
                return
            try:
                async with asyncio.timeout(_ANSWER_WITHIN_S):
                    socket = await connect(
                        self._url,
                        subprotocols=[Subprotocol("janus-protocol")],
                        max_size=_MESSAGE_LIMIT_BYTES,
                        proxy=None,
                    )
                    self._session = await self._create(socket)
            except (OSError, TimeoutError, WebSocketException, ValueError) as error:
                raise Unavailable(f"Janus at {self._url} cannot be reached: {error!r}") from error
            self._socket = socket
            self._opened.put_nowait(socket)
            log.info("session with Janus opened", url=self._url)

    async def _create(self, socket: ClientConnection) -> int:
        try:
            await socket.send(json.dumps(self._signed({"janus": "create"}, "create")))
            session: int = _given(json.loads(await socket.recv()), "create")["id"]
        except BaseException:
            await socket.close()
            raise
        return session

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        socket, number = self._socket, str(next(self._numbers))
        if socket is None:
            raise Unavailable("the session with Janus is lost")
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                await socket.send(json.dumps(self._signed(request, number)))
                answer: dict[str, Any] = await answered
        except TimeoutError:
            raise Unavailable(f"Janus did not answer {request['janus']} in time") from None
        except ConnectionClosed as error:
            raise Unavailable("the session with Janus is lost") from error
        finally:
            del self._waiting[number]
        _given(answer, request["janus"])
        return answer

    def _signed(self, request: dict[str, Any], number: str) -> dict[str, Any]:
        session = {} if self._session is None else {"session_id": self._session}
        return {**request, **session, "transaction": number, "apisecret": self._secret}

    async def _follow(self, socket: ClientConnection) -> None:
        """Until the WebSocket, or the session, is lost."""
        async with asyncio.TaskGroup() as tasks:
            alive = tasks.create_task(self._keep_alive(socket))
            try:
                async for text in socket:
                    if not self._take(json.loads(text)):
                        break
            except (ConnectionClosed, ValueError) as error:
                log.warning("session with Janus broke", error=str(error))
            finally:
                alive.cancel()
        await socket.close()
        log.warning("session with Janus lost", url=self._url)

    async def _keep_alive(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._sleep(_KEEPALIVE_S)
                await socket.send(json.dumps(self._signed({"janus": "keepalive"}, "keepalive")))

    def _take(self, message: dict[str, Any]) -> bool:
        """Takes one message; whether the session goes on."""
        kind = message.get("janus")
        answered = self._waiting.get(str(message.get("transaction")))
        if answered is not None:
            # What takes an AudioBridge longer it acknowledges, and answers by an event.
            if kind != "ack" and not answered.done():
                answered.set_result(message)
        elif (kind in _GONE or _is_destroyed(message)) and "sender" in message:
            self._on_gone(Handle(message["sender"]))
        return kind != "timeout"

    def _forget(self) -> None:
        self._socket = self._session = None
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(Unavailable("the session with Janus is lost"))
        self._on_lost()


def _is_destroyed(message: dict[str, Any]) -> bool:
    """Whether a user's room is gone."""
    data = message.get("plugindata", {}).get("data", {})
    return message.get("janus") == "event" and data.get("audiobridge") == "destroyed"


def _given(answer: dict[str, Any], asked: str) -> dict[str, Any]:
    """What Janus itself gives.

    Raises:
        Unavailable: it refused.
    """
    if answer.get("janus") == "error":
        error = answer.get("error", {})
        raise Unavailable(
            f"Janus refused {asked}: {error.get('reason')} ({error.get('code')});"
            " is janus_secret_file the api_secret of janus.jcfg?"
        )
    data: dict[str, Any] = answer.get("data", {})
    return data
