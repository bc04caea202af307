"""Which door a digit or a message of a call opens (spec §5). It decides; `hardware.panel.door_lock` opens.

Only parties whom a door's settings name may open it, verified ones only where it says so. Codes are
compared in constant time, every one of them each time, and appear in no log, repr or exception.

A guess is what is typed and is as long as the shortest code: whatever ends it without opening (`*`, a
pause, hanging up, further digits) makes it a wrong code. Wrong ones are counted for each party over all
its calls, and what `DoorKeeper.wrong_codes` gives is to be kept over restarts.
"""

import hmac
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from bellwire.config.agent.behaviour import BehaviourSettings, DoorName, DoorRelease
from bellwire.signaling.identifiers import parse_identity

DOOR_MESSAGE_TYPE = "door-release"
DOOR_RESULT_TYPE = "door-release-result"
"""Another type than that of the request, so that two stations never answer one another for ever."""

ONE_OF_SEVERAL = ""
"""Whose tries are counted where nobody knows who typed: nobody's name."""

ANEW = "*"
"""The key that drops what has been typed."""


class DoorMessage(BaseModel):
    """The content of a `door-release` message; `door` may be left out where there is only one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    door: DoorName | None = None


class DoorOutcome(StrEnum):
    """What a digit or message came to."""

    RELEASED = "released"
    UNFINISHED = "unfinished"
    WRONG_CODE = "wrong code"
    LOCKED_OUT = "locked out"
    NOT_ALLOWED = "not allowed"
    NO_SUCH_DOOR = "no such door"
    NOT_UNDERSTOOD = "not understood"
    NOT_IN_CALL = "not in a call"
    """The call has not been answered."""
    FAILED = "failed"
    """It may be opened, but there is no relay that would, or its code cannot be used."""


@dataclass(frozen=True, slots=True)
class DoorDecision:
    """`door` is the one to release, None for none."""

    outcome: DoorOutcome
    door: str | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """Another party of the call. `verified`: the relay vouches for who they are: of a caller by its
    signed word (`caller_info.is_verified`), of somebody whom this device called by their own accept."""

    identity: str
    verified: bool


@dataclass(frozen=True, slots=True)
class LockOut:
    """Somebody has typed too many wrong codes: `who` is their identity or `ONE_OF_SEVERAL`, `doors` what
    they could have opened by a code, `call` in which call it was."""

    who: str
    doors: tuple[str, ...]
    wrong_codes: int
    lasts_s: float
    call: Hashable


@dataclass(slots=True)
class _Tries:
    """What one party has typed and got wrong. It outlives a call: hanging up forgives nothing."""

    typed: str = field(default="", repr=False)
    typed_at: float = 0.0
    is_guess: bool = False
    """Whether what stands typed is as long as a code, and so has been compared with one."""
    doors: tuple[str, ...] = ()
    call: Hashable = None
    wrong: int = 0
    wrong_at: float = 0.0


class DoorKeeper:
    """Keeps a device's doors, for all its calls. Times are of one clock, in seconds, that only grows: a
    Pi's time of day jumps when it hears of the network's.

    Args:
        settings: How this device behaves. Assign `settings` anew when they change.
        wrong_codes: Those that were kept; for their callers the time of a lockout begins anew.
        all_wrong: It is not known who typed wrong codes: for that time nobody's code opens.
        at: Now.
    """

    def __init__(
        self,
        settings: BehaviourSettings,
        *,
        wrong_codes: Mapping[str, int] | None = None,
        all_wrong: bool = False,
        at: float = 0.0,
    ) -> None:
        self.settings = settings
        # Of parties who may open a door: as many as are named.
        self._tries = {
            who: _Tries(wrong=wrong, wrong_at=at) for who, wrong in (wrong_codes or {}).items()
        }
        self._all_wrong_at = at if all_wrong else None
        self._news: list[LockOut] = []

    @property
    def wrong_codes(self) -> dict[str, int]:
        """How many wrong codes count against whom, what stands typed and would be one included."""
        counted = {who: tries.wrong + tries.is_guess for who, tries in self._tries.items()}
        return {who: wrong for who, wrong in counted.items() if wrong}

    def wrong(self, at: float) -> int:
        """How many wrong codes count now."""
        self.forgive(at)
        return sum(tries.wrong for tries in self._tries.values())

    def locked_out(self, at: float) -> tuple[str, ...]:
        """Whose digits are ignored."""
        self.forgive(at)
        limit = self.settings.wrong_codes
        return tuple(sorted(who for who, tries in self._tries.items() if tries.wrong >= limit))

    def is_shut_to_all(self, at: float) -> bool:
        """Whether nobody's code opens, since it is not known who typed wrong ones."""
        self.forgive(at)
        return self._all_wrong_at is not None

    def lock_outs(self) -> tuple[LockOut, ...]:
        """Those that have begun since this was asked last."""
        news, self._news = tuple(self._news), []
        return news

    def hear_digit(
        self, digit: str, parties: Sequence[Party], at: float, call: Hashable = None
    ) -> DoorDecision:
        """What a digit that one of these parties pressed opens.

        A code is typed whole, each digit within `digit_timeout_s` of the last; `*` begins anew. As many
        digits as the longest code without a match are a wrong code; so are fewer that are as many as
        the shortest one, and are left at that.

        Args:
            digit: One of `0-9 * #`; anything else is not understood.
            parties: Who pressed it; of several, who may have: they open what every one of them may.
            at: When.
            call: In which call, as `hang_up` names it.
        """
        if len(digit) != 1 or digit not in "0123456789*#":
            return DoorDecision(DoorOutcome.NOT_UNDERSTOOD)
        codes = {
            name: door.code.get_secret_value()
            for name, door in self.settings.doors.items()
            if door.code is not None and not door.code_fault and _may_all_open(door, parties)
        }
        if not codes:
            return DoorDecision(DoorOutcome.NOT_ALLOWED)
        who = _name(parties[0]) if len(parties) == 1 else ONE_OF_SEVERAL
        tries = self._tries.setdefault(who, _Tries())
        if tries.typed and at - tries.typed_at > self.settings.digit_timeout_s:
            self._leave_off(who, tries.typed_at)
        self.forgive(at)
        if tries.wrong >= self.settings.wrong_codes or self._all_wrong_at is not None:
            return DoorDecision(DoorOutcome.LOCKED_OUT)
        tries.call, tries.doors = call, tuple(sorted(codes))
        if digit == ANEW:
            return self._leave_off(who, at)
        tries.typed, tries.typed_at = tries.typed + digit, at
        # No code begins with another one, so at most one matches.
        opened = [name for name, code in codes.items() if _same(code, tries.typed)]
        if opened:
            tries.typed, tries.is_guess, tries.wrong = "", False, 0
            return DoorDecision(DoorOutcome.RELEASED, opened[0])
        lengths = [len(code) for code in codes.values()]
        tries.is_guess = len(tries.typed) >= min(lengths)
        if len(tries.typed) < max(lengths):
            return DoorDecision(DoorOutcome.UNFINISHED)
        return self._leave_off(who, at)

    def hang_up(self, call: Hashable, at: float) -> None:
        """A call is over: what stands typed in it is left at that."""
        for who, tries in tuple(self._tries.items()):
            if tries.typed and tries.call == call:
                self._leave_off(who, at)
            if not (tries.typed or tries.wrong):
                del self._tries[who]

    def take_message(self, content: JsonValue, party: Party) -> DoorDecision:
        """What a `door-release` message of a party opens.

        Args:
            content: The message's content, `{"door": NAME}` or `{}`.
            party: Who the relay says it is from.
        """
        try:
            wanted = DoorMessage.model_validate(content).door
        except ValidationError:
            return DoorDecision(DoorOutcome.NOT_UNDERSTOOD)
        doors = self.settings.doors
        if wanted is None and len(doors) == 1:
            wanted = next(iter(doors))
        if wanted is None or wanted not in doors:
            return DoorDecision(DoorOutcome.NO_SUCH_DOOR)
        if not doors[wanted].by_message or not _may_open(doors[wanted], party):
            return DoorDecision(DoorOutcome.NOT_ALLOWED)
        if doors[wanted].code_fault:
            return DoorDecision(DoorOutcome.FAILED, wanted)
        return DoorDecision(DoorOutcome.RELEASED, wanted)

    def not_verified(self, parties: Sequence[Party]) -> tuple[str, ...]:
        """Those of them who are not verified, where a door would let all of them in if they were."""
        names = {_name(party) for party in parties}
        doors = self.settings.doors.values()
        if not any(door.verified_only and names <= {*door.callers} for door in doors):
            return ()
        return tuple(sorted({_name(party) for party in parties if not party.verified}))

    def forgive(self, at: float) -> None:
        """Forgets the wrong codes that have been paid for: `lockout_s` after the last one."""
        paid_at = at - self.settings.lockout_s
        for tries in self._tries.values():
            if tries.wrong and tries.wrong_at <= paid_at:
                tries.wrong = 0
        if self._all_wrong_at is not None and self._all_wrong_at <= paid_at:
            self._all_wrong_at = None

    def forgives_in_s(self, at: float) -> float | None:
        """When something is forgiven next; None where nothing is to be."""
        since = [tries.wrong_at for tries in self._tries.values() if tries.wrong]
        if self._all_wrong_at is not None:
            since.append(self._all_wrong_at)
        return max(0.0, min(since) + self.settings.lockout_s - at) if since else None

    def _leave_off(self, who: str, at: float) -> DoorDecision:
        """What stands typed is not gone on with: a wrong code where it was a guess."""
        tries = self._tries[who]
        tries.typed, was_guess, tries.is_guess = "", tries.is_guess, False
        if not was_guess:
            return DoorDecision(DoorOutcome.UNFINISHED)
        tries.wrong, tries.wrong_at = tries.wrong + 1, at
        if tries.wrong < self.settings.wrong_codes:
            return DoorDecision(DoorOutcome.WRONG_CODE)
        lasts_s = self.settings.lockout_s
        self._news.append(LockOut(who, tries.doors, tries.wrong, lasts_s, tries.call))
        return DoorDecision(DoorOutcome.LOCKED_OUT)


def _may_all_open(door: DoorRelease, parties: Sequence[Party]) -> bool:
    return bool(parties) and all(_may_open(door, party) for party in parties)


def _may_open(door: DoorRelease, party: Party) -> bool:
    return _name(party) in door.callers and (party.verified or not door.verified_only)


def _name(party: Party) -> str:
    try:
        return parse_identity(party.identity)
    except ValueError:
        return ""  # nobody whom a list could name


def _same(code: str, typed: str) -> bool:
    return hmac.compare_digest(code.encode(), typed.encode())
