"""How a call begins: at once where a server asks for it, or the relay has no voice URL; else as the backend
answers that is asked first, under the SID that it was asked with. Then the backend alone says who may ring
whom: the call policy is not asked."""

import asyncio
from collections.abc import Set
from dataclasses import replace
from functools import partial

from bellwire.push.backend.callbacks import Callbacks, DialledCall
from bellwire.push.backend.voice_url import VoiceUrl
from bellwire.push.calls.calls import Calls, Created
from bellwire.push.calls.invites import Invite, routed_invite
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.connections import online_devices_of
from bellwire.signaling.calls.dial_course import never_begun
from bellwire.signaling.errors import (
    BadGateway,
    CallRejected,
    Conflict,
    HungUp,
    InvalidInput,
    NobodyToCall,
    TooLarge,
)
from bellwire.signaling.identifiers import DeviceId, Identity
from bellwire.signaling.twiml import TwimlDial, TwimlReject


class Routing:
    """Makes the calls that are asked for.

    Args:
        calls: Makes them.
        database: Where they are kept.
        callbacks: Owes backends the news of their dials.
        voice_url: Says whom to ring; None: who calls says it.
    """

    def __init__(
        self,
        calls: Calls,
        database: Database,
        callbacks: Callbacks | None = None,
        voice_url: VoiceUrl | None = None,
    ) -> None:
        self._calls = calls
        self._database = database
        self._callbacks = callbacks
        self._voice_url = voice_url
        self._under_way: dict[tuple[str, str], tuple[str, asyncio.Task[Created]]] = {}
        """The fingerprint of what is being asked under an Idempotency-Key, and its outcome to come."""

    async def create(self, invite: Invite) -> Created:
        """Makes a call, or has it made by the backend's answer.

        Raises:
            CallRejected, HungUp: the backend does not want it; HungUp too where who calls has gone offline
                meanwhile, whose call would have been cancelled then.
            GatewayTimeout, BadGateway, Unavailable, TooManyRequests: as `VoiceUrl.ask`; BadGateway too where
                no call can be made of the answer.
            NobodyToCall, Forbidden, NotFound, InvalidInput, TooLarge, Conflict: as `Calls.create`.
        """
        if self._voice_url is None or invite.actor.is_server:
            return await self._made(invite)
        if invite.idempotency_key is None:
            return await self._routed(self._voice_url, invite)
        return await self._routed_once(self._voice_url, invite, invite.idempotency_key)

    async def _routed_once(self, voice_url: VoiceUrl, invite: Invite, key: str) -> Created:
        """A request that is repeated while the backend thinks, as devices do, shares its answer."""
        made = await self._calls.made_before(invite)
        if made is not None:
            return made
        whose = (invite.actor.name, key)
        if whose in self._under_way:
            fingerprint, asked = self._under_way[whose]
            if fingerprint != invite.fingerprint:
                raise Conflict("this Idempotency-Key was used with another request")
            return replace(await asyncio.shield(asked), repeated=True)
        asked = asyncio.create_task(self._routed(voice_url, invite))
        self._under_way[whose] = (invite.fingerprint, asked)
        asked.add_done_callback(partial(self._no_longer_under_way, whose))
        return await asyncio.shield(asked)

    def _no_longer_under_way(self, whose: tuple[str, str], asked: asyncio.Task[Created]) -> None:
        del self._under_way[whose]
        if not asked.cancelled():
            asked.exception()  # seen, also where all who asked have gone

    async def _routed(self, voice_url: VoiceUrl, invite: Invite) -> Created:
        caller = invite.request.caller
        if caller is None:
            raise AssertionError("whoever is no server calls as somebody")
        sid, own = invite.request.call_sid, dict(invite.request.custom_parameters)
        asked_to = f"group:{invite.to}" if isinstance(invite.to, str) else ",".join(invite.to)
        there = await self._online(caller)
        answer = await voice_url.ask(sid, caller, asked_to, own)
        if isinstance(answer, TwimlReject):
            raise CallRejected(
                f"the backend has refused the call: {answer.reason}", reason=str(answer.reason)
            )
        if not isinstance(answer, TwimlDial):
            raise HungUp("the backend has ended the call")
        if _has_gone(invite.request.device, there, await self._online(caller)):
            raise HungUp("who calls has gone offline while the backend was asked")
        try:
            routed = routed_invite(invite, answer, asked_to, at=self._calls.now())
            return await self._made(routed)
        except (InvalidInput, TooLarge) as error:
            raise BadGateway(
                f"no call can be made of the backend's TwiML: {error.detail}"
            ) from error

    async def _online(self, caller: Identity) -> Set[DeviceId]:
        return await self._database.read(lambda c: online_devices_of(c, caller))

    async def _made(self, invite: Invite) -> Created:
        try:
            return await self._calls.create(invite)
        except NobodyToCall:
            dial = invite.request.dial
            if dial is not None and self._callbacks is not None:
                of = DialledCall(invite.request.call_sid, invite.request.caller, dial)
                news = never_begun(dial, invite.request.at)
                await self._callbacks.owe_beside(self._database, of, news)
            raise


def _has_gone(device: DeviceId | None, before: Set[DeviceId], after: Set[DeviceId]) -> bool:
    """Whether who was there has gone: the device that calls, or the last one of a caller without any."""
    if device is not None:
        return device in before and device not in after
    return bool(before) and not after
