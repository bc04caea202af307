"""What operators' backends are owed: each event once for each target that wants it, in the
transaction of the change that it tells of; and again where it is asked for.

Events are kept for `KEPT`, whether or not they were delivered. No order is promised: what fails is
overtaken by what does not.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

from pydantic import JsonValue
from sqlalchemy import Connection

from bellwire.config.relay import WebhookTarget
from bellwire.push.channels.webhook.channel import LIFE_S
from bellwire.push.store.rows.outbox import Delivery, owe
from bellwire.push.store.rows.webhooks import (
    KIND,
    WebhookEvent,
    count_owed_by_target,
    events_between,
    forget_events_before,
    keep_events,
    owed_to,
)
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.calls import Call
from bellwire.signaling.calls.events import CallEvent, event_document, rfc3339
from bellwire.signaling.calls.rules import Notice
from bellwire.signaling.errors import InvalidInput, NotFound
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.answers import CallAnswer

KEPT = timedelta(days=7)
"""How long an event can be replayed."""

EVENT_NAMES = frozenset(
    {model.model_fields["event"].default for model in get_args(CallEvent)}
    | {"call.feedback", "call.insight", "delivery.failed"}
    | {"device.channel_removed", "door.locked_out", "backend.answer_refused"}
)
"""The events that a target may ask for."""

TEST_EVENT = "webhook.test"

_LISTS = frozenset({"to", "users", "error_invitees"})
_TOLD_WHOLE = frozenset({"call.created", "call.ended"})

REPLAY_LIMIT = 10_000
_REPLAYED_AT_ONCE = 50
_REPLAY_EVERY_MS = 500

OnEvent = Callable[[Connection, str, str, datetime, dict[str, JsonValue]], list[Delivery]]
"""Makes the deliveries that an event owes to webhooks, of its name, id, moment and data."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many events are owed again, and where to go on if there were more than `REPLAY_LIMIT`."""

    count: int
    next_since: datetime | None


class Webhooks:
    """What the targets of the settings are owed.

    Raises:
        InvalidInput: a target asks for an event that there is not.
    """

    def __init__(
        self, targets: Mapping[str, WebhookTarget], *, now: Callable[[], datetime]
    ) -> None:
        for name, target in targets.items():
            unknown = set() if target.events is None else target.events - EVENT_NAMES
            if unknown or target.events == frozenset():
                raise InvalidInput(
                    f"webhooks.{name}.events: {', '.join(sorted(unknown)) or 'nothing'} is no event;"
                    f" there are {', '.join(sorted(EVENT_NAMES))}; leave it out for all"
                )
        self.targets = targets
        self._now = now

    def deliveries(
        self, connection: Connection, call: Call, notices: Iterable[Notice]
    ) -> list[Delivery]:
        """Keeps the events of a call's notices that a target wants, and were not kept before; returns
        the deliveries to be owed for them. Each tells the call too, as it stands then."""
        wanted = [notice for notice in notices if self._wanting(notice.event.event)]
        if not wanted:
            return []
        told = CallAnswer.of(call).told()
        brief = _without_its_lists(told) if call.is_large else told
        return self._keep(
            connection,
            [
                WebhookEvent(
                    notice.event.id,
                    notice.event.event,
                    notice.event.call_sid,
                    to_ms(notice.event.at),
                    _call_body(notice, told if notice.event.event in _TOLD_WHOLE else brief),
                )
                for notice in wanted
            ],
        )

    def event(
        self,
        connection: Connection,
        name: str,
        event_id: str,
        at: datetime,
        data: Mapping[str, JsonValue],
    ) -> list[Delivery]:
        """The same for an event that no rule of calls makes. `event_id` is its own, of at most 80
        characters."""
        if not self._wanting(name):
            return []
        call_sid = str(data.get("call_sid", ""))
        event = WebhookEvent(event_id, name, call_sid, to_ms(at), _body(name, at, data))
        return self._keep(connection, [event])

    def replay(
        self,
        connection: Connection,
        name: str,
        since: datetime,
        until: datetime | None,
        call_sid: str | None,
    ) -> Replayed:
        """Owes a target the kept events of a time again, or of a call in that time, oldest first, up to
        `REPLAY_LIMIT`. What is still owed is left as it is. They are sent little by little, so that
        new events find their way between.

        Raises:
            NotFound: there is no such target.
        """
        target = self._target(name)
        found = events_between(
            connection,
            to_ms(since),
            None if until is None else to_ms(until),
            call_sid=call_sid,
            names=target.events,
            limit=REPLAY_LIMIT + 1,
        )
        events, more = found[:REPLAY_LIMIT], found[REPLAY_LIMIT:]
        owed = owed_to(connection, name, [event.event_id for event in events])
        again = [self._delivery(event, name) for event in events if event.event_id not in owed]
        now_ms = to_ms(self._now())
        for number, start in enumerate(range(0, len(again), _REPLAYED_AT_ONCE)):
            part = again[start : start + _REPLAYED_AT_ONCE]
            owe(connection, part, now_ms + number * _REPLAY_EVERY_MS)
        next_since = datetime.fromtimestamp(more[0].at_ms / 1000, UTC) if more else None
        return Replayed(len(again), next_since)

    def test(self, connection: Connection, name: str) -> str:
        """Owes a target a test event, whatever events it wants; returns the event's id.

        Raises:
            NotFound: there is no such target.
        """
        self._target(name)
        at, event_id = self._now(), f"test-{secrets.token_hex(16)}"
        body = _body(TEST_EVENT, at, {"id": event_id, "webhook": name})
        event = WebhookEvent(event_id, TEST_EVENT, "", to_ms(at), body)
        owe(connection, [self._delivery(event, name)], to_ms(at))
        return event_id

    def wants(self, event: str) -> bool:
        """Whether any target is told of an event."""
        return bool(self._wanting(event))

    def owed(self, connection: Connection) -> dict[str, int]:
        """How many events each target is owed."""
        counted = count_owed_by_target(connection)
        return {name: counted.get(name, 0) for name in self.targets}

    def forget_old(self, connection: Connection) -> None:
        """Forgets events that can no longer be replayed."""
        forget_events_before(connection, to_ms(self._now() - KEPT))

    def _keep(self, connection: Connection, events: Sequence[WebhookEvent]) -> list[Delivery]:
        if not events:
            return []
        new = keep_events(connection, events)
        return [
            self._delivery(event, name)
            for event in events
            if event.event_id in new
            for name in self._wanting(event.event)
        ]

    def _wanting(self, event: str) -> list[str]:
        """The names of the targets that want an event."""
        return [
            name
            for name, target in self.targets.items()
            if target.events is None or event in target.events
        ]

    def _delivery(self, event: WebhookEvent, target: str) -> Delivery:
        expires_ms = to_ms(self._now()) + int(LIFE_S * 1000)
        return Delivery(
            event.event_id, DeviceId(""), KIND, event.document, expires_ms, event.call_sid, target
        )

    def _target(self, name: str) -> WebhookTarget:
        target = self.targets.get(name)
        if target is None:
            raise NotFound(f"there is no webhook {name} in the relay's settings")
        return target


def _without_its_lists(call: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Of a call of more than ten: each of a hundred events else held all of a hundred users."""
    return {name: value for name, value in call.items() if name not in _LISTS}


def _call_body(notice: Notice, call: JsonValue) -> str:
    """The event's own document, whose devices it goes to, and the call."""
    recipients = dict.fromkeys(str(recipient.identity) for recipient in notice.recipients)
    document: dict[str, JsonValue] = json.loads(event_document(notice.event))
    data: dict[str, JsonValue] = {**document, "recipients": [*recipients], "call": call}
    return _body(notice.event.event, notice.event.at, data)


def _body(name: str, at: datetime, data: Mapping[str, JsonValue]) -> str:
    """A body as Standard Webhooks recommends it."""
    body = {"type": name, "timestamp": rfc3339(at), "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
