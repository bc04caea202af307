"""Rooms for calls of more than five: Janus' AudioBridge mixes them, and each user has one connection
with it, on an SDP offer and answer that go through the relay.

A room's name and pin follow from the call's SID and the secret, so that several relays, and one that
was started again, mean the same room. It is made for the first who comes, and destroyed soon after the
last has gone. Nobody but the relay speaks with Janus, over one session on its WebSocket API, and it
lets in who is in the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType

import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from bellwire.config.media_servers import read_janus_secret
from bellwire.config.relay import RelaySettings
from bellwire.config.waiting import Sleep
from bellwire.push.access.tokens import Actor
from bellwire.push.calls.calls import Calls
from bellwire.signaling.calls.calls import Attestation, Call, CallState, UserState
from bellwire.signaling.calls.rules import check_main_device
from bellwire.signaling.errors import (
    CallNotFound,
    Forbidden,
    NotFound,
    OperationRefused,
    Unavailable,
    WhyRefused,
)
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.media import MEDIA_SDP_MAX_LENGTH, MESH_USERS

log = structlog.get_logger(__name__)

Handle = NewType("Handle", int)
"""One user's place in a session (Janus' "plugin handle")."""

_NO_SUCH_ROOM, _ROOM_EXISTS = 485, 486
"""Error codes of the AudioBridge (janus_audiobridge.c)."""
_PREFIX = "bellwire-"
_SWEEP_EVERY_S = 5.0
_TURNS = 3

_PLUGIN = "janus.plugin.audiobridge"
_KEEPALIVE_S = 20.0
_ANSWER_WITHIN_S = 5.0
_MESSAGE_LIMIT_BYTES = 256 * 1024
_GONE = frozenset({"hangup", "detached"})


@dataclass(frozen=True, slots=True)
class _Guest:
    call_sid: CallSid
    identity: Identity


class Rooms:
    """Lets users into the rooms of their calls, and sees that they leave them.

    Args:
        url: Janus' WebSocket API; None: there are no rooms.
        secret: What Janus and the relay share.
        calls: The relay's calls.
        sleep: Waits between two looks at who is still in the calls.
    """

    def __init__(
        self, url: str | None, secret: str, calls: Calls, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._secret = secret
        self._calls = calls
        self._sleep = sleep
        self._inside: dict[_Guest, Handle] = {}
        self._gone: asyncio.Queue[Handle] = asyncio.Queue()
        self._janus = None
        if url is not None:
            self._janus = Janus(
                url, secret, on_gone=self._gone.put_nowait, on_lost=self._inside.clear, sleep=sleep
            )

    async def run(self) -> None:
        """Holds the session with Janus, and has who left a call leave its room, until cancelled."""
        if self._janus is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._janus.run())
            tasks.create_task(self._see_off(self._janus))
            tasks.create_task(self._sweep(self._janus))

    async def enter(
        self,
        call_sid: CallSid,
        identity: Identity,
        device: DeviceId | None,
        offer: str,
        attestation: Attestation,
        *,
        by_server: bool = False,
    ) -> str:
        """Lets a user's sound into the room of its call, in place of what it brought before; returns
        the room's answer, with its candidates.

        Args:
            call_sid: The call: of more than five users, or with a room already.
            identity: The user.
            device: The device that asks.
            offer: The SDP offer, with its candidates: none are taken later.
            attestation: How sure it is that the user itself asks.
            by_server: Whether a server asks, for whichever device.

        Raises:
            CallNotFound: there is no such call.
            Forbidden: the user is not in it, or talks itself where a server asks.
            OperationRefused: the user has not accepted, another device is its main one, or the call needs no
                room.
            NotFound: the relay has no Janus.
            Unavailable: Janus does not work.
        """
        call = await self._calls.show(call_sid, Actor(identity, device))
        _check(call, identity, device, attestation, by_server=by_server)
        janus = self._janus
        if janus is None:
            raise NotFound("this relay has no rooms: its settings name no Janus (`janus_url`)")
        handle = await janus.attach()
        try:
            answer = await self._join(janus, handle, call, offer)
        except BaseException:
            await _let_go(janus, handle)
            raise
        guest = _Guest(call_sid, identity)
        before = self._inside.get(guest)
        self._inside[guest] = handle
        if before is not None:
            await _let_go(janus, before)
        log.info("user in the room of a call", call_sid=call_sid, identity=identity)
        return answer

    async def _join(self, janus: Janus, handle: Handle, call: Call, offer: str) -> str:
        sid = call.call_sid
        entry = {
            "room": _PREFIX + self._derived(f"room {sid}"),
            "pin": self._derived(f"pin {sid}"),
        }
        try:
            for _ in range(_TURNS):
                try:
                    await janus.ask(handle, {"request": "join", **entry})
                    break
                except JanusRefused as refused:
                    if refused.code != _NO_SUCH_ROOM:
                        raise
                    await self._create(janus, handle, call, entry)
            answer = await janus.ask(handle, {"request": "configure", "muted": False}, offer)
        except JanusRefused as refused:
            raise Unavailable(f"Janus has no room for this: {refused}") from refused
        return _sdp_of(answer)

    async def _create(
        self, janus: Janus, handle: Handle, call: Call, entry: dict[str, str]
    ) -> None:
        if len(call.accepted) <= MESH_USERS:
            raise OperationRefused(
                "room",
                UserState.ACCEPTED,
                f"a call of up to {MESH_USERS} needs no room: its devices talk directly",
            )
        body = {
            "request": "create",
            **entry,
            "secret": self._derived("secret"),
            "admin_key": self._secret,
            "is_private": True,
            "sampling_rate": 48_000,
            "allow_rtp_participants": False,
        }
        try:
            await janus.ask(handle, body)
        except JanusRefused as refused:
            if refused.code != _ROOM_EXISTS:  # somebody else came at the same time
                raise

    async def _see_off(self, janus: Janus) -> None:
        """Those whose connections have ended."""
        while True:
            handle = await self._gone.get()
            guest = next((who for who, his in self._inside.items() if his == handle), None)
            if guest is not None:
                await self._leave(janus, guest)
                if all(other.call_sid != guest.call_sid for other in self._inside):
                    await self._destroy_empty(janus)

    async def _sweep(self, janus: Janus) -> None:
        """Has those leave who are in the call no more, whatever they think, and rooms end."""
        while True:
            await self._sleep(_SWEEP_EVERY_S)
            for guest in tuple(self._inside):
                if not await self._is_in_call(guest):
                    await self._leave(janus, guest)
            await self._destroy_empty(janus)

    async def _is_in_call(self, guest: _Guest) -> bool:
        try:
            call = await self._calls.show(guest.call_sid, Actor(guest.identity))
        except (CallNotFound, Forbidden):
            return False
        except Unavailable as error:
            log.warning("not seen who is still in a call", error=str(error))
            return True
        user = call.user(guest.identity)
        return call.state is not CallState.ENDED and user in call.accepted

    async def _leave(self, janus: Janus, guest: _Guest) -> None:
        handle = self._inside.pop(guest, None)
        if handle is not None:
            log.info("user left a call's room", call_sid=guest.call_sid, identity=guest.identity)
            await _let_go(janus, handle)

    async def _destroy_empty(self, janus: Janus) -> None:
        """Those that users have left, of whichever relay, and those that an earlier one has left."""
        if not janus.is_open:
            return
        try:
            handle = await janus.attach()
            try:
                answer = await janus.ask(handle, {"request": "list", "admin_key": self._secret})
                for room in answer.data.get("list", ()):
                    if not room["num_participants"] and str(room["room"]).startswith(_PREFIX):
                        await self._destroy(janus, handle, room["room"])
            finally:
                await _let_go(janus, handle)
        except (JanusRefused, Unavailable) as error:
            log.warning("empty rooms not looked for", error=str(error))

    async def _destroy(self, janus: Janus, handle: Handle, room: str) -> None:
        body = {"request": "destroy", "room": room, "secret": self._derived("secret")}
        with contextlib.suppress(JanusRefused):  # another relay was first
            await janus.ask(handle, body)

    def _derived(self, what: str) -> str:
        return hmac.digest(self._secret.encode(), what.encode(), "sha256").hex()


async def _let_go(janus: Janus, handle: Handle) -> None:
    try:
        await janus.detach(handle)
    except Unavailable as error:
        log.info("place in a room not given back", error=str(error))


def open_rooms(settings: RelaySettings) -> Callable[[Calls], Rooms]:
    """The rooms that settings name, still to be told the calls. It reads the secret's file, and blocks.

    Raises:
        InvalidInput: the file cannot be read, or is not private.
    """
    file = settings.janus_secret_file
    secret = "" if file is None else read_janus_secret(file)
    return lambda calls: Rooms(settings.janus_url, secret, calls)


def _check(
    call: Call,
    identity: Identity,
    device: DeviceId | None,
    attestation: Attestation,
    *,
    by_server: bool,
) -> None:
    user = call.user(identity)
    state = UserState.UNKNOWN if user is None else user.state
    if call.state is CallState.ENDED:
        why = WhyRefused.CANCELLED if call.cancelled else WhyRefused.ENDED
        raise OperationRefused("room", state, "only who is in a call has a place in its room", why)
    if user is None or state is not UserState.ACCEPTED:
        raise OperationRefused("room", state, "only who is in a call has a place in its room")
    check_main_device(user, "room", device, by_server=by_server)
    # Nobody in a room hears who speaks: what a server said there would pass for the user's own.
    if user.own_attestation is Attestation.FULL and attestation is not Attestation.FULL:
        raise Forbidden(
            f"{identity} is in this call by a device or token of its own: a server speaks for it only"
            " after it has joined as it (`join` with another device_id)"
        )


def _sdp_of(answer: JanusAnswer) -> str:
    if not answer.sdp or len(answer.sdp) > MEDIA_SDP_MAX_LENGTH:
        raise Unavailable("Janus gave no SDP answer of a reasonable size")
    return answer.sdp


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
    """The relay's session with Janus, opened when it is first needed
    (https://janus.conf.meetecho.com/docs/rest.html, "WebSockets Interface"). Users live in it, and it as
    long as its WebSocket: when that is lost, Janus lets all of them go, and their devices come again.

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
