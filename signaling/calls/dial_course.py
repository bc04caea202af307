"""The course of a `<Dial>`: what a change of its call means to the backend that asked for it. `rules` asks
after each command; the relay owes the backend a request for each piece of news.

A leg is its user in the call: `initiated` when the call is made, `ringing` when a device has confirmed the
invite, `answered` with Accepted, `completed` when the user has refused, run out, been cancelled or left, or
the call has ended; each once, and none after the last. The dial is over when the call is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from bellwire.signaling.calls.calls import Call, CallState, User, UserState
from bellwire.signaling.calls.calls import replace as replace_of_call
from bellwire.signaling.calls.dials import Callback, Dial, DialStatus, Leg, LegEvent
from bellwire.signaling.identifiers import Identity

_STATUS_OF = {
    UserState.REJECTED: DialStatus.BUSY,  # whether by `rejected` or `busy`: 31600, "Busy Everywhere"
    UserState.TIMEOUT: DialStatus.NO_ANSWER,
    UserState.CANCELED: DialStatus.CANCELED,
    UserState.QUIT: DialStatus.COMPLETED,
}
_IN_PROGRESS = "in-progress"


@dataclass(frozen=True, slots=True)
class LegNews:
    """Something to tell of a leg. `call_status` is Twilio's `CallStatus`; `number` counts from 0 what its
    callback is told; `duration_s` is there at its end."""

    callback: Callback
    identity: Identity
    event: LegEvent
    call_status: str
    number: int
    at: datetime
    duration_s: int | None = None


@dataclass(frozen=True, slots=True)
class DialOver:
    """The dial is over. `duration_s` is how long it was talked, None where nobody answered."""

    callback: Callback
    status: DialStatus
    at: datetime
    duration_s: int | None = None


DialNews = LegNews | DialOver


def follow(before: Call | None, after: Call, at: datetime) -> tuple[Call, tuple[DialNews, ...]]:
    """A call with its dial moved on, and what is to be told. `before` is None where it has just been made."""
    dial = after.dial
    if dial is None:
        return after, ()
    news: list[DialNews] = []
    legs = tuple(_moved_on(leg, after, at, news) for leg in dial.legs)
    answered = [leg.answered_at for leg in legs if leg.answered_at is not None]
    ends_at = dial.ends_at
    # Whoever answers first: it may be somebody invited or joined, whom the dial has not rung.
    is_answered = bool(answered) or after.answered_at is not None
    if ends_at is None and is_answered and dial.time_limit_s is not None:
        ends_at = at + timedelta(seconds=dial.time_limit_s)
    was_over = before is not None and before.state is CallState.ENDED
    if after.state is CallState.ENDED and not was_over and dial.action is not None:
        duration_s = _seconds(min(answered), at) if answered else None
        news.append(DialOver(dial.action, dial_status(legs), at, duration_s))
    if (legs, ends_at) == (dial.legs, dial.ends_at):
        return after, tuple(news)
    return replace_of_call(after, dial=replace(dial, legs=legs, ends_at=ends_at)), tuple(news)


def never_begun(dial: Dial, at: datetime) -> tuple[DialNews, ...]:
    """What is to be told of a dial of which nobody could be rung, so that no call was made."""
    news: list[DialNews] = []
    for leg in dial.legs:
        _failed(leg, at, news)
    if dial.action is not None:
        news.append(DialOver(dial.action, DialStatus.FAILED, at))
    return tuple(news)


def dial_status(legs: Sequence[Leg]) -> DialStatus:
    """How a dial has ended whose legs have: answered by one of them, else cancelled, else refused, else not
    answered, else there was nobody to ring."""
    ended = {leg.status for leg in legs}
    return next((status for status in DialStatus if status in ended), DialStatus.FAILED)


def takes_from_others(call: Call) -> Iterator[User]:
    """Those who are rung no longer, since somebody else whom the dial has rung has taken the call."""
    dial = call.dial
    if dial is None or not dial.first_takes_it:
        return
    rung = {leg.identity for leg in dial.legs}
    if any(user.identity in rung for user in call.accepted):
        yield from (user for user in call.pending if user.identity in rung)


def _moved_on(leg: Leg, call: Call, at: datetime, news: list[DialNews]) -> Leg:
    if leg.status is not None:
        return leg
    user = call.user(leg.identity)
    if user is None:
        return _failed(leg, at, news)
    if leg.reached is None:
        leg = _reach(leg, LegEvent.INITIATED, "initiated", at, news)
    if leg.reached is LegEvent.INITIATED and user.state is UserState.RECEIVED:
        leg = _reach(leg, LegEvent.RINGING, "ringing", at, news)
    if leg.answered_at is None and user.state in (UserState.ACCEPTED, UserState.QUIT):
        leg = _reach(replace(leg, answered_at=at), LegEvent.ANSWERED, _IN_PROGRESS, at, news)
    status = _STATUS_OF.get(user.state)
    if status is None and call.state is CallState.ENDED:
        status = DialStatus.CANCELED if leg.answered_at is None else DialStatus.COMPLETED
    return leg if status is None else _end(leg, status, at, news)


def _failed(leg: Leg, at: datetime, news: list[DialNews]) -> Leg:
    """A leg that could not be rung at all."""
    return _end(_reach(leg, LegEvent.INITIATED, "initiated", at, news), DialStatus.FAILED, at, news)


def _end(leg: Leg, status: DialStatus, at: datetime, news: list[DialNews]) -> Leg:
    duration_s = 0 if leg.answered_at is None else _seconds(leg.answered_at, at)
    ended = replace(leg, status=status)
    return _reach(ended, LegEvent.COMPLETED, status, at, news, duration_s=duration_s)


def _reach(
    leg: Leg,
    event: LegEvent,
    call_status: str,
    at: datetime,
    news: list[DialNews],
    *,
    duration_s: int | None = None,
) -> Leg:
    leg = replace(leg, reached=event)
    if leg.callback is None or event not in leg.events:
        return leg
    news.append(
        LegNews(leg.callback, leg.identity, event, str(call_status), leg.told, at, duration_s)
    )
    return replace(leg, told=leg.told + 1)


def _seconds(since: datetime, until: datetime) -> int:
    return max(0, round((until - since).total_seconds()))
