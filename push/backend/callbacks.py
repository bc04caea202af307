"""What a call by TwiML owes its backend: a request for each event of a `<Client>` with a `statusCallback`,
and one to the `action` when the dial is over. They are deliveries of the outbox, kept with the change that
they tell of, so that the loss of a relay loses none; each is made again until it is taken, for an hour.

The `CallSid` of each is the call's own, as devices and the HTTP interface know it: legs have none of theirs.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from functools import partial
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Connection

from bellwire.push.backend.requests import (
    AnswerTooLong,
    BackendAnswer,
    BackendAtFault,
    BackendRequests,
    shown_url,
)
from bellwire.push.backend.voice_url import API_VERSION
from bellwire.push.channels.channel import ATTEMPT_S, Addressee, DeliveryFailed
from bellwire.push.channels.retry_after import read_retry_after
from bellwire.push.delivery.outbox import Outbox
from bellwire.push.delivery.webhook_events import OnEvent
from bellwire.push.store.engine.database import Database
from bellwire.push.store.rows.outbox import Delivery, owe
from bellwire.push.store.tables import to_ms
from bellwire.signaling.calls.dial_course import DialNews, DialOver, LegNews
from bellwire.signaling.calls.dials import Callback, CallbackMethod, Dial
from bellwire.signaling.calls.events import BackendAnswerRefused, CallEvent
from bellwire.signaling.errors import InvalidInput, TooLarge, Unavailable
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity, wire_address
from bellwire.signaling.twiml import check_nothing_more

log = structlog.get_logger(__name__)

KIND = "callback"
"""Of deliveries to a backend."""

LIFE_S = 3600.0
"""How long a request is owed that is not taken."""

AT_ONCE_OF_ONE = 16
"""Requests to one host that are being made; more are made later."""

AT_ONCE = 64

_RETRY_FIRST_S = 2.0
_RETRY_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class DialledCall:
    """What requests say of a call that was dialled by TwiML."""

    call_sid: CallSid
    caller: Identity | None
    dial: Dial


class Callbacks:
    """Owes a backend the news of its dials.

    Args:
        outbox: Delivers them.
        account_sid: The relay's.
        now: Tells the time.
    """

    def __init__(self, outbox: Outbox, account_sid: str, *, now: Callable[[], datetime]) -> None:
        self._outbox = outbox
        self._account_sid = account_sid
        self._now = now

    @property
    def leased_until_ms(self) -> int:
        """Until when a request that is owed now is this process's to make."""
        return self._outbox.leased_until_ms

    def deliveries(self, of: DialledCall, news: Iterable[DialNews]) -> list[Delivery]:
        """The deliveries to be owed for news."""
        expires_ms = to_ms(self._now()) + int(LIFE_S * 1000)
        return [
            Delivery(
                event_id=_event_id(of, one),
                device_id=DeviceId(""),
                kind=KIND,
                payload=self._payload(of, one),
                expires_at_ms=expires_ms,
                call_sid=of.call_sid,
            )
            for one in news
        ]

    async def owe_beside(
        self, database: Database, of: DialledCall, news: Iterable[DialNews]
    ) -> None:
        """Owes the news of a dial that made no call."""
        deliveries = self.deliveries(of, news)
        if deliveries:
            await database.write(lambda c: owe(c, deliveries, self.leased_until_ms))
            self._outbox.dispatch(deliveries)

    def _payload(self, of: DialledCall, news: DialNews) -> str:
        parameters = self._of_call(of)
        parameters |= self._of_leg(of, news) if isinstance(news, LegNews) else _of_dial(of, news)
        return json.dumps(
            {
                "url": news.callback.url,
                "method": news.callback.method,
                "parameters": parameters,
                "is_action": isinstance(news, DialOver),
            },
            ensure_ascii=False,
        )

    def _of_call(self, of: DialledCall) -> dict[str, str]:
        shown = of.dial.caller_id or of.caller
        from_ = {} if shown is None else dict.fromkeys(("From", "Caller"), wire_address(shown))
        return {
            "CallSid": of.call_sid,
            "AccountSid": self._account_sid,
            "ApiVersion": API_VERSION,
            **from_,
        }

    def _of_leg(self, of: DialledCall, news: LegNews) -> dict[str, str]:
        to = wire_address(news.identity)
        ended = {} if news.duration_s is None else {"CallDuration": str(news.duration_s)}
        return {
            "ParentCallSid": of.call_sid,
            "To": to,
            "Called": to,
            "Direction": "outbound-dial",
            "CallStatus": news.call_status,
            "CallbackSource": "call-progress-events",
            "SequenceNumber": str(news.number),
            "Timestamp": format_datetime(news.at),
            **ended,
        }


def _of_dial(of: DialledCall, news: DialOver) -> dict[str, str]:
    caller = {} if of.caller is None else dict.fromkeys(("From", "Caller"), wire_address(of.caller))
    to = of.dial.asked_to
    talked = {} if news.duration_s is None else {"DialCallDuration": str(news.duration_s)}
    return {
        **caller,
        **({"To": to, "Called": to} if to else {}),
        "Direction": "inbound" if of.dial.first_takes_it else "outbound-api",
        "CallStatus": "completed",
        "DialCallSid": of.call_sid,
        "DialCallStatus": news.status,
        "DialBridged": "false" if news.duration_s is None else "true",
        **talked,
    }


def _event_id(of: DialledCall, news: DialNews) -> str:
    if isinstance(news, DialOver):
        return f"{of.call_sid}-action"
    place = next(n for n, leg in enumerate(of.dial.legs) if leg.identity == news.identity)
    return f"{of.call_sid}-leg-{place}-{news.number}"


class CallbackChannel:
    """Makes the requests that are owed.

    Args:
        requests: The way to the backend; None where the relay has no auth token to sign with.
        database: Where the event of an answer that is refused is kept.
        on_event: Makes the deliveries of that event.
        count_refused: Counts it, by reason.
        now: Tells the time.
    """

    kind = KIND

    def __init__(
        self,
        requests: BackendRequests | None,
        database: Database,
        on_event: OnEvent,
        count_refused: Callable[[str], None],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._requests = requests
        self._database = database
        self._on_event = on_event
        self._count_refused = count_refused
        self._now = now
        self._asked: Counter[str] = Counter()

    def compose(self, event: CallEvent, to: Addressee) -> str | None:
        """Nothing: no device has it for a channel, `Callbacks` says what is owed."""
        del event, to
        return None

    async def send(self, delivery: Delivery, left_s: float) -> str:
        """See `Channel.send`. A 2xx is taken, whatever it says; anything else is tried again."""
        if self._requests is None:
            raise DeliveryFailed("the relay has no auth token: set twilio_auth_token_file", 30)
        document = json.loads(delivery.payload)
        callback = Callback(document["url"], CallbackMethod(document["method"]))
        is_action = document["is_action"]
        with self._place_at(callback.url, left_s):
            try:
                answer = await self._requests.ask(
                    callback,
                    document["parameters"],
                    limit_s=min(left_s, ATTEMPT_S),
                    request_id=delivery.event_id,
                    wants_body=is_action,
                )
            except TimeoutError as error:
                raise DeliveryFailed(
                    f"{shown_url(callback.url)}: no answer in time", _wait_s(left_s)
                ) from error
            except AnswerTooLong as error:
                if is_action:
                    await self._refuse(delivery, callback.url, str(error))
                return "answered at length"
            except BackendAtFault as error:
                raise DeliveryFailed(
                    f"{shown_url(callback.url)}: {error}", _wait_s(left_s)
                ) from error
        if not answer.taken:
            raise self._not_taken(callback.url, answer, left_s)
        if is_action:
            await self._judge(delivery, callback.url, answer.body)
        return f"answered {answer.status}"

    @contextmanager
    def _place_at(self, url: str, left_s: float) -> Iterator[None]:
        host = urlsplit(url).netloc.rpartition("@")[2]
        if self._asked[host] >= AT_ONCE_OF_ONE or self._asked.total() >= AT_ONCE:
            raise DeliveryFailed(
                f"{shown_url(url)}: too many requests are being made already", _wait_s(left_s)
            )
        self._asked[host] += 1
        try:
            yield
        finally:
            self._asked[host] -= 1
            if not self._asked[host]:
                del self._asked[host]

    def _not_taken(self, url: str, answer: BackendAnswer, left_s: float) -> DeliveryFailed:
        wait_s = _wait_s(left_s)
        if answer.status in (429, 503):
            asked_s = read_retry_after(answer.retry_after, self._now(), longest_s=left_s)
            wait_s = max(wait_s, asked_s or 0.0)
        return DeliveryFailed(f"{shown_url(url)}: answered {answer.status}", wait_s)

    async def _judge(self, delivery: Delivery, url: str, body: bytes) -> None:
        try:
            check_nothing_more(body)
        except (InvalidInput, TooLarge) as error:
            await self._refuse(delivery, url, error.detail)

    async def _refuse(self, delivery: Delivery, url: str, reason: str) -> None:
        """Says that an action's answer asks for what is not done."""
        self._count_refused("action-answer")
        log.warning(
            "answer of an action refused",
            call_sid=delivery.call_sid,
            url=shown_url(url),
            reason=reason,
        )
        event = BackendAnswerRefused(
            id=f"{delivery.event_id}-refused",
            at=self._now(),
            call_sid=delivery.call_sid,
            url=shown_url(url),
            reason=reason[:512],
        )
        try:
            await self._database.write(partial(self._owe, event=event))
        except Unavailable as error:
            log.warning("answer refused, and webhooks not told", error=str(error))

    def _owe(self, connection: Connection, event: BackendAnswerRefused) -> None:
        data = event.model_dump(mode="json", exclude_none=True)
        owed = self._on_event(connection, event.event, event.id, event.at, data)
        owe(connection, owed, leased_until_ms=to_ms(event.at))


def _wait_s(left_s: float) -> float:
    """In how many seconds to try again: after half as long again as it has been owed."""
    owed_s = max(0.0, LIFE_S - left_s)
    return min(_RETRY_LONGEST_S, max(_RETRY_FIRST_S, 1.5 * owed_s), left_s)
