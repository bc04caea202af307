"""Which door a digit or a message of a call opens (spec §5). It decides; `hardware.door` opens.

Only parties whom a door's settings name may open it, verified ones only where it says so. Codes are
compared in constant time, every one of them each time, and appear in no log, repr or exception.
"""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from config.behaviour import BehaviourSettings, DoorName, DoorRelease
from signaling.identifiers import parse_identity

DOOR_MESSAGE_TYPE = "door-release"
DOOR_RESULT_TYPE = "door-release-result"
"""Another type than that of the request, so that two stations never answer one another for ever."""


_ONE_OF_SEVERAL = ""
"""Whose tries are counted where nobody knows who typed: nobody's name."""


class DoorMessage(BaseModel):
    """The content of a `door-release` message; `door` may be left out where there is only one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    door: DoorName | None = None


class Outcome(StrEnum):
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
    """It may be opened, but there is no relay that would."""


@dataclass(frozen=True, slots=True)
class DoorDecision:
    """`door` is the one to release, None for none."""

    outcome: Outcome
    door: str | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """Another party of the call. `verified`: the relay vouches for who they are: of a caller by its
    signed word (`caller_info.is_verified`), of somebody whom this device called by their accept."""

    identity: str
    verified: bool


@dataclass(slots=True)
class _Tries:
    """What one party has typed and got wrong. It outlives a call: hanging up forgives nothing."""

    typed: str = field(default="", repr=False)
    typed_at: datetime | None = None
    wrong: int = 0
    wrong_at: datetime | None = None


class DoorKeeper:
    """Keeps a device's doors, for all its calls.

    Args:
        settings: How this device behaves. Assign `settings` anew when they change.
    """

    def __init__(self, settings: BehaviourSettings) -> None:
        self.settings = settings
        self._tries: dict[str, _Tries] = {}  # of parties who may open a door: as many as are named

    def begin_call(self) -> None:
        """Forgets half-typed codes; wrong ones stay counted."""
        for tries in self._tries.values():
            tries.typed = ""

    def hear_digit(self, digit: str, parties: Sequence[Party], at: datetime) -> DoorDecision:
        """What a digit that one of these parties pressed opens.

        A code is typed whole, each digit within `digit_timeout_s` of the last. As many digits as the
        longest code without a match are a wrong code; so are fewer that could have been a shorter
        one and were left at that.

        Args:
            digit: One of `0-9 * #`; anything else is not understood.
            parties: Who pressed it; of several, who may have: they open what every one of them may.
            at: When.
        """
        if len(digit) != 1 or digit not in "0123456789*#":
            return DoorDecision(Outcome.NOT_UNDERSTOOD)
        codes = {
            name: door.code.get_secret_value()
            for name, door in self.settings.doors.items()
            if door.code is not None and _may_all_open(door, parties)
        }
        if not codes:
            return DoorDecision(Outcome.NOT_ALLOWED)
        name = _name(parties[0]) if len(parties) == 1 else _ONE_OF_SEVERAL
        tries = self._tries.setdefault(name, _Tries())
        lengths = [len(code) for code in codes.values()]
        self._forget_late(tries, min(lengths), at)
        if tries.wrong >= self.settings.wrong_codes:
            return DoorDecision(Outcome.LOCKED_OUT)
        tries.typed, tries.typed_at = tries.typed + digit, at
        # No code begins with another one, so at most one matches.
        opened = [name for name, code in codes.items() if _same(code, tries.typed)]
        if opened:
            tries.typed, tries.wrong = "", 0
            return DoorDecision(Outcome.RELEASED, opened[0])
        if len(tries.typed) < max(lengths):
            return DoorDecision(Outcome.UNFINISHED)
        return self._count_wrong(tries, at)

    def take_message(self, content: JsonValue, party: Party) -> DoorDecision:
        """What a `door-release` message of a party opens.

        Args:
            content: The message's content, `{"door": NAME}` or `{}`.
            party: Who the relay says it is from.
        """
        try:
            wanted = DoorMessage.model_validate(content).door
        except ValidationError:
            return DoorDecision(Outcome.NOT_UNDERSTOOD)
        doors = self.settings.doors
        if wanted is None and len(doors) == 1:
            wanted = next(iter(doors))
        if wanted is None or wanted not in doors:
            return DoorDecision(Outcome.NO_SUCH_DOOR)
        if not doors[wanted].by_message or not _may_open(doors[wanted], party):
            return DoorDecision(Outcome.NOT_ALLOWED)
        return DoorDecision(Outcome.RELEASED, wanted)

    def _forget_late(self, tries: _Tries, shortest_code: int, at: datetime) -> None:
        """Drops what was typed too long ago, and wrong codes that have been paid for."""
        timeout = timedelta(seconds=self.settings.digit_timeout_s)
        if tries.typed and tries.typed_at is not None and at - tries.typed_at > timeout:
            if len(tries.typed) >= shortest_code:
                self._count_wrong(tries, tries.typed_at)
            tries.typed = ""
        lockout = timedelta(seconds=self.settings.lockout_s)
        if tries.wrong_at is not None and at - tries.wrong_at > lockout:
            tries.wrong, tries.wrong_at = 0, None

    def _count_wrong(self, tries: _Tries, at: datetime) -> DoorDecision:
        tries.typed, tries.wrong, tries.wrong_at = "", tries.wrong + 1, at
        locked = tries.wrong >= self.settings.wrong_codes
        return DoorDecision(Outcome.LOCKED_OUT if locked else Outcome.WRONG_CODE)


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
