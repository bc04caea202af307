"""A second, smaller account of a call, written from the tables of spec §3 and not from the code:
who is in which state, on which device, until when; and for a command what must come of it."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from bellwire.signaling.calls.calls import Mode
from tests.signaling.calls_in_play import PENDING, all_of

MAX_USERS, MAX_INVITEES, MAX_KNOWN = 10, 30, 101
ABANDONED = timedelta(hours=1)
GONE = ("Rejected", "Canceled", "Timeout", "Quit")


class Verdict(Enum):
    """What becomes of a command that moves nothing."""

    FORBIDDEN = "forbidden"
    INVALID = "invalid"
    REFUSED = "refused"
    NOTHING = "nothing"
    REFUSED_OR_NOTHING = "the specification does not say"


@dataclass
class Expected:
    """What becomes of a command that moves something: who is moved, and what goes to which devices
    beside the changes of state."""

    moved: list[str] = field(default_factory=list)
    received: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    timeout: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)


class Model:
    """One call. Every method does a command and says what must come of it."""

    def __init__(
        self,
        invitees: list[str],
        *,
        caller: str | None,
        device: str | None,
        mode: Mode,
        now: datetime,
        timeout_s: float,
        check_s: float | None,
    ) -> None:
        self.caller, self.mode, self.check_s = caller, mode, check_s
        self.of: dict[str, str] = {}
        self.main: dict[str, str | None] = {}
        self.until: dict[str, datetime] = {}
        self.check: dict[str, datetime] = {}
        self.own_invite: set[str] = set()
        self.invited_by: dict[str, str | None] = {}
        self.last_errors: dict[str, str] = {}
        """Whom the last cancel has left as they were, and why."""
        self.answered = self.ended = self.withdrawn = False
        self.abandoned: datetime | None = None
        if caller is not None:
            self.of[caller], self.main[caller] = "Accepted", device
        for one in invitees:
            self._ring(one, now, timeout_s)

    # Questions.

    @property
    def invited(self) -> set[str]:
        return {one for one, state in self.of.items() if state in PENDING}

    @property
    def inside(self) -> set[str]:
        return {one for one, state in self.of.items() if state == "Accepted"}

    @property
    def parties(self) -> set[str]:
        return self.invited | self.inside

    @property
    def call_state(self) -> str:
        return "ended" if self.ended else "open" if self.answered else "ringing"

    @property
    def deadline(self) -> datetime | None:
        if self.ended:
            return None
        moments = [self.until[one] for one in self.invited]
        moments += [self.check[one] for one in self.check if self.of[one] == "Inviting"]
        moments += [self.abandoned] if self.abandoned else []
        return min(moments, default=None)

    def devices(self, *who: str) -> set[str]:
        """Where these hear of the call: on the main device, on all where none has answered."""
        heard: set[str] = set()
        for one in who:
            main = None if one in self.invited else self.main.get(one)
            heard |= all_of(one) if main is None else {f"{one}/{main}"}
        return heard

    def concerned(self, moved: str | None = None) -> set[str]:
        """Who hears of the changes of states: in a call of more than ten, of that of one who was moved."""
        caller = {self.caller} if self.caller else set()
        if self.mode is Mode.COMMON and len(self.of) > MAX_USERS and moved is not None:
            return caller | self.inside | (self.invited & {moved})
        return self.parties | caller

    def is_other_device(self, who: str, device: str | None, *, server: bool) -> bool:
        """Whether somebody who is in the call speaks by a device that is not the main one."""
        return not server and self.main[who] not in (None, device)

    # Commands.

    def confirm(self, who: str, now: datetime) -> Verdict | Expected:
        if who not in self.of:
            return Verdict.FORBIDDEN
        state = self.of[who]
        if self.ended:
            return Verdict.REFUSED
        if state in ("Received", "Accepted"):
            late = state == "Received" and now >= self.until[who]
            return Verdict.REFUSED_OR_NOTHING if late else Verdict.NOTHING
        if state not in PENDING or now >= self.until[who]:
            return Verdict.REFUSED
        return self._move([who], "Received", now)

    def answer(
        self, who: str, device: str | None, now: datetime, *, accepts: bool
    ) -> Verdict | Expected:
        if who not in self.of:
            return Verdict.FORBIDDEN
        state = "Accepted" if accepts else "Rejected"
        if who in self.invited and not self.ended and now < self.until[who]:
            self.main[who] = device
            self.answered |= accepts
            expected = self._move([who], state, now)
            expected.cancelled |= all_of(who) - {f"{who}/{device}"}
            return expected
        if self.of[who] == state and self.main[who] == device:
            if who not in self.own_invite or self.ended:
                return Verdict.REFUSED_OR_NOTHING
            return Verdict.NOTHING
        return Verdict.REFUSED

    def ignore(self, who: str, now: datetime) -> Verdict:
        if who not in self.of:
            return Verdict.FORBIDDEN
        rings = who in self.invited and not self.ended and now < self.until[who]
        return Verdict.NOTHING if rings else Verdict.REFUSED

    def cancel(
        self, who: str | None, now: datetime, to: list[str] | None = None
    ) -> Verdict | Expected:
        theirs = {
            one
            for one in self.own_invite
            if who in (None, self.caller) or self.invited_by.get(one) == who
        }
        if who not in (None, self.caller) and who not in self.invited_by.values():
            return Verdict.FORBIDDEN
        self.last_errors = {one: why for one in to or [] if (why := self._why_not(one, theirs))}
        if self.ended:
            return Verdict.NOTHING if self.withdrawn else Verdict.REFUSED
        meant = (theirs if to is None else theirs & set(to)) & self.invited
        expected = Expected()
        self._cancel(meant, expected)
        self._settle(now)
        may_end = meant or (to is None and who in (None, self.caller))
        if may_end and self.parties <= {self.caller}:
            self.withdrawn = True
            return self._over(expected)
        if not meant:
            again = to is not None or any(self.of[one] == "Canceled" for one in theirs)
            return Verdict.NOTHING if again else Verdict.REFUSED
        return self._end_if_alone(expected)

    def _why_not(self, one: str, theirs: set[str]) -> str | None:
        if one not in self.own_invite:
            return "not_invited"
        if one not in theirs:
            return "not_yours"
        if self.of[one] in ("Accepted", "Rejected", "Quit"):
            return "answered"
        return "not_invited" if self.of[one] not in (*PENDING, "Canceled") else None

    def goes_offline(
        self, who: str, device: str, now: datetime, *, last: bool
    ) -> Verdict | Expected:
        calls = who == self.caller and self.of[who] == "Accepted"
        if not calls or self.ended or self.answered:
            return Verdict.NOTHING
        if self.main[who] == device or (self.main[who] is None and last):
            return self._withdraw(now)
        return Verdict.NOTHING

    def invite(
        self,
        who: str | None,
        invitees: list[str],
        timeout_s: float,
        now: datetime,
        device: str | None = "phone",
        *,
        server: bool = False,
    ) -> Verdict | Expected:
        if who is not None and who not in self.of:
            return Verdict.FORBIDDEN
        if self.ended or self.mode is Mode.COMMON or (who and self.of[who] != "Accepted"):
            return Verdict.REFUSED
        if who and self.is_other_device(who, device, server=server):
            return Verdict.REFUSED
        new = [one for one in invitees if one not in self.of]
        again = [one for one in invitees if self.of.get(one) in GONE]
        if not new and not again:
            return Verdict.NOTHING
        if len(new) + len(again) + len(self.parties) > MAX_USERS:
            return Verdict.INVALID
        if len(new) + len(self.of) > MAX_KNOWN:
            return Verdict.INVALID
        for one in new + again:
            self._ring(one, now, timeout_s)
            self.invited_by[one] = who
        self._settle(now)
        return Expected(moved=new + again, received=all_of(*new, *again))

    def join(self, who: str, device: str | None, now: datetime) -> Verdict | Expected:
        if who not in self.of and self.mode is Mode.COMMON:
            return Verdict.FORBIDDEN
        if self.ended:
            return Verdict.REFUSED
        state = self.of.get(who)
        if state == "Accepted":
            before = self.devices(who)
            self.main[who] = device
            left = before - {f"{who}/{device}"}
            return Expected(cancelled=left) if before != {f"{who}/{device}"} else Verdict.NOTHING
        if self.mode is Mode.COMMON or state not in (None, "Quit"):
            return Verdict.REFUSED
        if len(self.parties) >= MAX_USERS or (state is None and len(self.of) >= MAX_KNOWN):
            return Verdict.INVALID
        self.main[who], self.answered = device, True
        return self._move([who], "Accepted", now)

    def quit(
        self, who: str, device: str | None, now: datetime, *, server: bool = False
    ) -> Verdict | Expected:
        if who not in self.of:
            return Verdict.FORBIDDEN
        if self.of[who] == "Quit":
            # What a device repeats that is not the main one, the specification does not say.
            main = self.main[who] == device
            return Verdict.NOTHING if main else Verdict.REFUSED_OR_NOTHING
        if self.of[who] != "Accepted" or self.ended:
            return Verdict.REFUSED
        if self.is_other_device(who, device, server=server):
            return Verdict.REFUSED
        self.main[who] = self.main[who] or device
        return self._move([who], "Quit", now)

    def end(
        self, who: str | None, device: str | None, now: datetime, *, server: bool = False
    ) -> Verdict | Expected:
        if who is not None and self.mode is Mode.COMMON:
            return self.quit(who, device, now, server=server)
        if who is not None and who not in self.of:
            return Verdict.FORBIDDEN
        if who is not None and self.of[who] != "Accepted":
            return Verdict.REFUSED
        if self.ended:
            return Verdict.NOTHING
        if who is not None and self.is_other_device(who, device, server=server):
            return Verdict.REFUSED
        return self._over(Expected())

    def hearers(
        self,
        who: str | None,
        to: list[str] | None,
        device: str | None = "phone",
        *,
        server: bool = False,
    ) -> Verdict | set[str]:
        """The devices that hear what somebody says."""
        if {one for one in [who, *(to or [])] if one is not None} - set(self.of):
            return Verdict.FORBIDDEN
        meant = (self.parties if to is None else self.parties & set(to)) - {who}
        if self.ended or (who is not None and who not in self.parties) or not meant:
            return Verdict.REFUSED
        if who in self.inside and self.is_other_device(who, device, server=server):
            return Verdict.REFUSED
        return self.devices(*meant)

    def time(self, now: datetime) -> Verdict | Expected:
        if self.ended:
            return Verdict.NOTHING
        late = [one for one in self.invited if self.until[one] <= now]
        unheard = [
            one
            for one in set(self.check) - set(late)
            if self.of[one] == "Inviting" and self.check[one] <= now
        ]
        if self.abandoned and self.abandoned <= now:
            return self._over(Expected())
        if not late and not unheard:
            return Verdict.NOTHING
        for one in unheard:
            self.of[one] = "NotYetReceived"
        expected = self._move(late, "Timeout", now)
        expected.moved += unheard
        expected.timeout = all_of(*late)
        return expected

    # What follows from them.

    def _ring(self, who: str, now: datetime, timeout_s: float) -> None:
        self.of[who], self.main[who] = "Inviting", None
        self.until[who] = now + timedelta(seconds=timeout_s)
        self.own_invite.add(who)
        if self.check_s is not None:
            self.check[who] = now + timedelta(seconds=self.check_s)

    def _move(self, who: list[str], state: str, now: datetime) -> Expected:
        for one in who:
            self.of[one] = state
        expected = Expected(moved=list(who))
        if self.mode is Mode.COMMON and self.caller and not self.inside:
            # The last one has hung up: those who are still invited would find nobody.
            self._cancel(self.invited, expected)
        self._settle(now)
        return self._end_if_alone(expected)

    def _end_if_alone(self, expected: Expected) -> Expected:
        alone = len(self.inside) + (not self.caller) < 2
        if self.mode is Mode.COMMON and not self.invited and alone:
            self._over(expected)
        return expected

    def _withdraw(self, now: datetime) -> Expected:
        self.withdrawn = True
        expected = Expected()
        self._cancel(self.invited, expected)
        self._settle(now)
        return self._over(expected)

    def _cancel(self, withdrawn: set[str], expected: Expected) -> None:
        expected.moved += withdrawn
        expected.cancelled |= all_of(*withdrawn)
        self.of |= dict.fromkeys(withdrawn, "Canceled")

    def _over(self, expected: Expected) -> Expected:
        self.ended, self.abandoned = True, None
        expected.ended = self.devices(*self.parties)
        return expected

    def _settle(self, now: datetime) -> None:
        if self.mode is Mode.COMMON or self.parties:
            self.abandoned = None
        else:
            self.abandoned = self.abandoned or now + ABANDONED
