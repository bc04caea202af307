"""`bellwire call --sid SID --deliveries`: what of a call reached which device, when, and why not."""

from datetime import UTC, datetime

from rich.console import Console

from bellwire.cli.call import deliveries_table
from bellwire.signaling.calls.events import Try
from bellwire.signaling.wire.answers import CallDeliveriesAnswer, DeliveryAnswer

AT = datetime(2026, 11, 21, 8, 0, 1, tzinfo=UTC)


def shown(*deliveries: DeliveryAnswer) -> str:
    console = Console(width=160, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(deliveries_table(CallDeliveriesAnswer(call_sid="CA1", deliveries=deliveries)))
    return captured.get()


def test_each_attempt_is_shown_with_its_time_and_what_was_answered() -> None:
    failed = Try(at=AT, result="failed", answer="503 ServiceUnavailable")
    sent = Try(at=AT.replace(second=4), result="sent", answer="apns-id [1]")
    text = shown(
        DeliveryAnswer(
            device_id="iphone",
            channel="apns",
            app="com.example.app",
            event_id="CA1-1",
            event="call.received",
            state="received",
            detail="apns-id [1]",
            at=AT.replace(second=4),
            received_at=AT.replace(second=5),
            latency_ms=4100,
            tries=(failed, sent),
        ),
        DeliveryAnswer(
            device_id="pixel",
            channel="fcm",
            app="com.example.android",
            event_id="CA1-1",
            event="call.received",
            state="expired",
            detail="503 UNAVAILABLE",
            at=AT.replace(minute=1),
        ),
    )
    for told in (
        "08:00:01 failed",
        "503 ServiceUnavailable",
        "08:00:04 sent",
        "apns-id [1]",
        "08:00:05 received",
        "after 4100 ms",
        "08:01:01 expired",
        "503 UNAVAILABLE",
    ):
        assert told in text, text


def test_where_none_is_on_record_it_says_what_would_be() -> None:
    assert "No delivery is on record" in shown()
