"""Rooms for calls of more than five: Janus' AudioBridge mixes them, and each user has one connection
with it, on an SDP offer and answer that go through the relay.

A room's name and pin follow from the call's SID and the secret, so that several relays, and one that
was started again, mean the same room. It is made for the first who comes, and destroyed soon after the
last has gone. Nobody but the relay speaks with Janus, and it lets in who is in the call.
"""

import asyncio
import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from bellwire.config.media_servers import read_janus_secret
from bellwire.config.relay import RelaySettings
from bellwire.push.access.tokens import Actor
from bellwire.push.alarm import Sleep
from bellwire.push.calls.calls import Calls
from bellwire.push.calls.janus import Handle, Janus, JanusAnswer, JanusRefused
from bellwire.signaling.calls.calls import Attestation, Call, CallState, UserState
from bellwire.signaling.errors import (
    CallNotFound,
    Forbidden,
    NotFound,
    OperationRefused,
    Unavailable,
)
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.wire.media import MEDIA_SDP_MAX_LENGTH, MESH_USERS

log = structlog.get_logger(__name__)

_NO_SUCH_ROOM, _ROOM_EXISTS = 485, 486
"""Error codes of the AudioBridge (janus_audiobridge.c)."""
_PREFIX = "bellwire-"
_SWEEP_EVERY_S = 5.0
_TURNS = 3


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
    ) -> str:
        """Lets a user's sound into the room of its call, in place of what it brought before; returns
        the room's answer, with its candidates.

        Args:
            call_sid: The call: of more than five users, or with a room already.
            identity: The user.
            device: The device that asks.
            offer: The SDP offer, with its candidates: none are taken later.
            attestation: How sure it is that the user itself asks.

        Raises:
            CallNotFound: there is no such call.
            Forbidden: the user is not in it, talks on another device, or talks itself where a server
                asks.
            OperationRefused: the user has not accepted, or the call needs no room.
            NotFound: the relay has no Janus.
            Unavailable: Janus does not work.
        """
        call = await self._calls.show(call_sid, Actor(identity, device))
        _check(call, identity, device, attestation)
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
    call: Call, identity: Identity, device: DeviceId | None, attestation: Attestation
) -> None:
    user = call.user(identity)
    state = UserState.UNKNOWN if user is None else user.state
    if call.state is CallState.ENDED or user is None or state is not UserState.ACCEPTED:
        raise OperationRefused("room", state, "only who is in a call has a place in its room")
    if device is not None and user.main_device not in (None, device):
        raise Forbidden(f"{identity} is in this call on another device")
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
