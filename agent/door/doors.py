"""The door of a station, opened from its calls: by digits and by messages of those who may.

Which of them may is `agent.door.authorization`'s decision; `hardware.panel.door_lock` opens and locks. Each
decision is logged, without digits, and told to who asked: of a wrong code once it is kept on disk.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from bellwire.agent.calls.call import Call, CallStatus, Direction, Message
from bellwire.agent.calls.device import Device
from bellwire.agent.door.authorization import (
    DOOR_MESSAGE_TYPE,
    DOOR_RESULT_TYPE,
    DoorDecision,
    DoorKeeper,
    DoorOutcome,
    LockOut,
    Party,
)
from bellwire.agent.door.wrong_codes import WrongCodes
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.config.agent.telemetry import DoorNow, Fault
from bellwire.config.waiting import Sleep
from bellwire.hardware.panel.door_lock import DoorUnattendedError
from bellwire.hardware.panel.panel import Panel
from bellwire.signaling.calls.calls import Attestation
from bellwire.signaling.errors import CallError, InvalidInput
from bellwire.signaling.identifiers import Identity, parse_identity

log = structlog.get_logger(__name__)

_UNTOLD = frozenset({DoorOutcome.UNFINISHED, DoorOutcome.NOT_ALLOWED, DoorOutcome.NOT_IN_CALL})
"""What a digit may come to that its sender is not told of: it may be for something else."""

_NO_DOOR = (
    "no door relay is wired, so {doors} cannot be opened: give its pin as `panel.door`, "
    "or take it out of `behaviour.doors`"
)
_DAMAGED = (
    "the file of wrong door codes is damaged, so that nobody's code opens until {lockout_s:g} s after "
    "the agent's start: wait, and look at the disk where it happens again"
)
_NAMED = 16
_LOOK_AGAIN_S = 1.0
_KEEP_AGAIN_S = 10.0
"""How soon what the disk did not take is tried again."""

OnLockOut = Callable[[LockOut, Call], object]
OnNotVerified = Callable[[str, Call], object]


class Doors:
    """Opens one station's door for its calls.

    Args:
        live: Who may open it.
        device: Its calls.
        panel: Its door relay; each door of the settings is this one.
        wrong_codes: Keeps wrong codes over restarts; None does not.
        clock: Tells the time in seconds that only grow.
        is_connected: Whether the relay can be heard.
        on_lock_out: Told of each who has typed too many wrong codes, and in which call.
        on_not_verified: Told of each whom a door would let in if they were verified, and in which call.
        on_status: Called when `status` has changed.
        sleep: Waits.
    """

    def __init__(
        self,
        live: LiveSettings,
        device: Device,
        panel: Panel,
        *,
        wrong_codes: WrongCodes | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_connected: Callable[[], bool] = lambda: True,
        on_lock_out: OnLockOut = lambda _, __: None,
        on_not_verified: OnNotVerified = lambda _, __: None,
        on_status: Callable[[], object] = lambda: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._live = live
        self._panel = panel
        self._clock = clock
        self._is_connected = is_connected
        self._on_lock_out = on_lock_out
        self._on_not_verified = on_not_verified
        self._on_status = on_status
        self._sleep = sleep
        self._wrong_codes = wrong_codes or WrongCodes(None, "")
        self._keeper = DoorKeeper(
            live.now.behaviour,
            wrong_codes=self._wrong_codes.found,
            all_wrong=self._wrong_codes.is_damaged,
            at=clock(),
        )
        self._status = self.status
        self._counted = asyncio.Event()
        self._last: dict[Call, DoorOutcome | None] = {}
        """What the last digit or message of each call came to."""
        device.on_change(self._follow)
        live.watch(self._follow_settings)
        self._complain()

    @property
    def status(self) -> DoorNow | None:
        """How its codes stand now; None where nobody has typed a wrong one."""
        wrong = self._keeper.wrong(self._clock())
        locked_out = self._keeper.locked_out(self._clock())
        return DoorNow(wrong_codes=wrong, locked_out=locked_out[:_NAMED]) if wrong else None

    def faults(self) -> tuple[Fault, ...]:
        """What of the settings this station cannot do, and what keeps its doors shut."""
        reasons = [
            self._fault(),
            *self._live.now.behaviour.shut_doors.values(),
            self._wrong_codes.fault,
        ]
        if self._keeper.is_shut_to_all(self._clock()):
            reasons.append(_DAMAGED.format(lockout_s=self._live.now.behaviour.lockout_s))
        return tuple(Fault(part="door", reason=reason[:512]) for reason in reasons if reason)

    async def run(self) -> None:
        """Forgives wrong codes when they have been paid for, on disk too, until cancelled; then all that
        counts is on disk."""
        try:
            while True:
                self._counted.clear()
                left_s = self._keeper.forgives_in_s(self._clock())
                if left_s is None:
                    self._keep()
                    await self._counted.wait()
                else:
                    await self._sleep(min(max(left_s, _LOOK_AGAIN_S), _KEEP_AGAIN_S))
                    self._keep()
        finally:
            await asyncio.to_thread(self._wrong_codes.close)

    def _follow_settings(self, before: ConfigurableSettings, now: ConfigurableSettings) -> None:
        self._keeper.settings = now.behaviour
        wiring = (before.behaviour.doors, before.panel.door)
        if wiring != (now.behaviour.doors, now.panel.door):
            self._complain()

    def _complain(self) -> None:
        for reason in (self._fault(), *self._live.now.behaviour.shut_doors.values()):
            if reason is not None:
                log.error("door cannot be opened", reason=reason)

    def _fault(self) -> str | None:
        settings = self._live.now
        if self._panel.door_fault is not None:
            return self._panel.door_fault
        if settings.panel.door is not None or not settings.behaviour.doors:
            return None
        return _NO_DOOR.format(doors=", ".join(map(repr, sorted(settings.behaviour.doors))))

    # What is asked for

    def _follow(self, call: Call) -> None:
        if call.status() is CallStatus.CLOSED:
            self._last.pop(call, None)
            self._keeper.hang_up(call, self._clock())
            self._keep()
        elif call not in self._last:
            self._last[call] = None
            call.on("digit", lambda who, digit: self._hear_digit(call, who, digit))
            call.on("messageReceived", lambda message: self._take_message(call, message))

    def _hear_digit(self, call: Call, who: str | None, digit: str) -> None:
        if not self._live.now.behaviour.doors:
            return
        # Out of a room it may be anybody's.
        heard = sorted(call.parties) if who is None else (who,)
        parties = [_party(call, one, itself=one not in call.spoken_for) for one in heard]
        if not call.signalling.answered or (who is None and not self._is_connected()):
            # Who is in a room says the relay, and nobody else.
            decision = DoorDecision(DoorOutcome.NOT_IN_CALL)
        else:
            decision = self._keeper.hear_digit(digit, parties, self._clock(), call)
        decision = self._carry_out(decision)
        last, self._last[call] = self._last.get(call), decision.outcome
        if decision.outcome is DoorOutcome.UNFINISHED:
            self._keep()
            return
        self._note(decision, call, parties, by="digits")
        is_news = (
            decision.outcome is not DoorOutcome.LOCKED_OUT or last is not DoorOutcome.LOCKED_OUT
        )
        if decision.outcome not in _UNTOLD and is_news:
            self._keep(partial(self._tell, decision, call, parties))
        else:
            self._keep()

    def _take_message(self, call: Call, message: Message) -> None:
        if message.message_type != DOOR_MESSAGE_TYPE:
            return
        itself = message.attestation is Attestation.FULL
        party = _party(call, message.from_, itself=itself)
        if not call.signalling.answered:
            decision = DoorDecision(DoorOutcome.NOT_IN_CALL)
        else:
            decision = self._keeper.take_message(message.content, party)
        decision = self._carry_out(decision)
        self._note(decision, call, [party], by="message")
        self._tell(decision, call, [party])

    # What is done

    def _keep(self, then: Callable[[], object] = lambda: None) -> None:
        """Keeps what counts as wrong, tells of who is locked out since, and then calls `then`."""
        if self._keeper.is_shut_to_all(self._clock()):
            then()  # nothing is counted, and the damaged file is not to be taken for a good one
            return
        self._wrong_codes.keep(self._keeper.wrong_codes, then)
        for lock_out in self._keeper.lock_outs():
            call = lock_out.call
            log.warning(
                "door locked out",
                party=lock_out.who or "somebody of several",
                doors=lock_out.doors,
                wrong_codes=lock_out.wrong_codes,
                for_s=lock_out.lasts_s,
                call_sid=call.sid if isinstance(call, Call) else None,
            )
            if isinstance(call, Call):
                self._on_lock_out(lock_out, call)
        before, self._status = self._status, self.status
        if before != self._status:
            self._counted.set()
            self._on_status()

    def _carry_out(self, decision: DoorDecision) -> DoorDecision:
        if decision.outcome is not DoorOutcome.RELEASED:
            return decision
        door = self._panel.door
        if door is None:
            log.error("door cannot be opened", door=decision.door, reason=self._fault())
            return DoorDecision(DoorOutcome.FAILED, decision.door)
        try:
            door.release()
        except DoorUnattendedError as error:  # the panel is being stopped
            log.error("door cannot be opened", door=decision.door, reason=str(error))
            return DoorDecision(DoorOutcome.FAILED, decision.door)
        return decision

    def _note(
        self, decision: DoorDecision, call: Call, parties: Sequence[Party], *, by: str
    ) -> None:
        log.info(
            "door decision",
            outcome=decision.outcome,
            door=decision.door,
            by=by,
            party=" or ".join(party.identity for party in parties),
            verified=all(party.verified for party in parties),
            call_sid=call.sid,
        )
        if decision.outcome is DoorOutcome.NOT_ALLOWED:
            for who in self._keeper.not_verified(parties):
                self._on_not_verified(who, call)

    def _tell(self, decision: DoorDecision, call: Call, parties: Sequence[Party]) -> None:
        try:
            call.send_message(
                {"door": decision.door, "result": decision.outcome.value},
                message_type=DOOR_RESULT_TYPE,
                to=[Identity(parse_identity(party.identity)) for party in parties],
            )
        except (CallError, InvalidInput) as error:  # they have hung up, or are a server
            log.info("nobody to tell of the door", call_sid=call.sid, error=str(error))


def _party(call: Call, who: str | None, *, itself: bool) -> Party:
    """Who asks, and whether the relay vouches for them: for a caller by its signed word, for others
    only where this device has called them, nobody else can be in the call, and they have accepted it
    themselves. `itself`: what they ask by now is theirs too, and no server's in their name."""
    name = _identity(who)
    if call.direction is Direction.OUTGOING:
        answer = call.signalling.acceptances.get(Identity(name))
        vouched = answer is not None and answer.attestation is Attestation.FULL
        return Party(name, verified=itself and vouched and call.only_invited)
    info = call.caller_info
    is_caller = bool(name) and name == _identity(call.from_)
    vouched = is_caller and info is not None and info.is_verified
    return Party(name, verified=itself and vouched)


def _identity(address: str | None) -> str:
    try:
        return "" if address is None else parse_identity(address)
    except ValueError:
        return ""
