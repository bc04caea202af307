"""`bellwire push`: whether a device can be rung by push, and if not, why: what a test call's deliveries say,
channel by channel, in words."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from bellwire.cli.doctor.diagnosis import Condition, Finding, bad, good, unknown
from bellwire.cli.failures import fail, reported
from bellwire.cli.push.reasons import find_reason
from bellwire.cli.relay_client import (
    DataOption,
    KeyFileOption,
    RelayClient,
    RelayOption,
    RelayRefused,
    find_relay,
)
from bellwire.signaling.calls.calls import CallState, UserState
from bellwire.signaling.identifiers import parse_device_id
from bellwire.signaling.wire.answers import CallAnswer, ChannelAnswer, DeliveryAnswer, DeviceAnswer

_POLL_S = 0.25
_SIGNS = {
    Condition.GOOD: ("✓", "green"),
    Condition.BAD: ("✗", "bold red"),
    Condition.UNKNOWN: ("?", "yellow"),
    Condition.WARNING: ("!", "yellow"),
}
_TAKER = {"apns": "Apple", "fcm": "Google", "mqtt": "the broker", "websocket": "its stream"}
_PUSHES = ("apns", "fcm")
_SILENT = {
    "apns": "If the phone does not ring: is it the phone, and the build of the app, that registered"
    " this token? iOS stops waking an app that did not report each VoIP push to CallKit: delete the"
    " app, install it again, and see docs/mobile.md.",
    "fcm": "If the phone does not ring: an app that was force-stopped gets nothing until it is"
    " opened; else look whether it may notify, and see docs/mobile.md.",
    "mqtt": "If it does not ring: look into the agent's log, or run bellwire doctor there.",
    "websocket": "It is read once the app opens WS /v1/events.",
}
_OWED = {
    "mqtt": "is the device switched on, and its agent running? Run bellwire doctor there",
}
_LOOK = "look into the relay's log for the call's SID, and run bellwire doctor --config FILE"
_CONFIRMED = (UserState.RECEIVED, UserState.ACCEPTED, UserState.REJECTED)

push = typer.Typer(no_args_is_help=True, help="Tests pushing to mobiles.")


@push.callback()
def _push() -> None:
    """Tests pushing to mobiles."""


@push.command("test", epilog="Example: `bellwire push test --device alice-phone`")
@reported
def test(
    device: Annotated[str, typer.Option(metavar="ID", help="The device to test.")],
    timeout: Annotated[
        float,
        typer.Option(min=1, max=600, help="Seconds to wait for answers, and to ring at most."),
    ] = 15,
    cancel_after: Annotated[
        float,
        typer.Option(min=0, max=600, help="Seconds to ring on once each channel has answered."),
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Rings a device by a test call, and says what each of its channels answered.

    The call comes from nobody and is cancelled at the end. It rings **every** device of the
    device's identity, since a call goes to a person: warn whoever holds the others.

    A line with ✓ means that the channel took the call: Apple, Google, the broker, or the device
    itself, which is the surest. ✗ means that it did not, ? that it cannot be known; → says what to
    do next. The exit code is 0 if at least one channel of the device took the call.
    """
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        tested = client.device(parse_device_id(device))
        if not tested.channels:
            fail(f"{device} has no channels: register it with PUT /v1/devices/{device}")
        others = [
            other.device_id
            for other in client.devices().devices
            if other.identity == tested.identity and other.device_id != tested.device_id
        ]
        console = Console(stderr=as_json)
        with _test_call(client, tested, timeout) as call:
            _announce(console, tested, others, call)
            reports = _watch(client, tested, call, console, timeout, cancel_after)
    took = any(report.took for report in reports)
    if as_json:
        found = _as_json(tested, call, reports, took=took)
        Console(soft_wrap=True).out(json.dumps(found, ensure_ascii=False))
    elif took:
        console.print(f"\n[bold green]{escape(device)} can be rung.[/]")
    else:
        console.print(f"\n[bold red]No channel of {escape(device)} took the call.[/]")
    if not took:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class ChannelReport:
    """How a channel of the device stands: `took` says that it carried the call, `settled` that
    nothing more is to be waited for."""

    channel: ChannelAnswer
    delivery: DeliveryAnswer | None
    took: bool
    settled: bool
    finding: Finding


def report_channel(
    channel: ChannelAnswer,
    delivery: DeliveryAnswer | None,
    user: UserState | None,
    *,
    is_over: bool,
) -> ChannelReport:
    """Says how a channel stands.

    Args:
        channel: The device's channel.
        delivery: The invite's on this channel; None where none is kept, which is how MQTT and
            WebSocket look once they have it.
        user: The state of the identity in the call.
        is_over: Nothing more is waited for.
    """
    state = "none" if delivery is None else delivery.state
    finding = _finding(channel, delivery, user, is_over=is_over)
    took = state in ("sent", "received") or (
        delivery is None and (channel.kind == "mqtt" or _is_confirmed_stream(channel, user))
    )
    # Nobody may ever read a stream: that is not waited for.
    is_settled = is_over or state != "owed" or channel.kind == "websocket"
    return ChannelReport(channel, delivery, took, is_settled, finding)


def name_of(channel: ChannelAnswer) -> str:
    """`apns com.example.app (sandbox)`."""
    app = f" {channel.app}" if channel.app else ""
    environment = f" ({channel.environment})" if channel.environment else ""
    return f"{channel.kind}{app}{environment}"


def _finding(
    channel: ChannelAnswer,
    delivery: DeliveryAnswer | None,
    user: UserState | None,
    *,
    is_over: bool,
) -> Finding:
    name, taker, silent = name_of(channel), _TAKER[channel.kind], _SILENT[channel.kind]
    if delivery is None:
        return _without_delivery(channel, user)
    said = delivery.detail or ""
    match delivery.state:
        case "sent":
            return good(f"{name}: {taker} took it{_called(channel, said)}", silent)
        case "received":
            after = "" if delivery.latency_ms is None else f" after {delivery.latency_ms:.0f} ms"
            return good(f"{name}: the device confirmed it{after}")
        case "refused":
            return bad(f"{name}: refused: {_explained(channel, said)}", _next(channel, said))
        case "expired":
            return bad(
                f"{name}: not taken before the invite ran out{_tried(delivery)}:"
                f" {_explained(channel, said)}",
                _next(channel, said),
            )
        case "failed":
            return bad(
                f"{name}: not taken before the call was over{_tried(delivery)}:"
                f" {_explained(channel, said)}",
                _next(channel, said),
            )
    if channel.kind == "websocket":
        return unknown(f"{name}: it is in the stream, and the device has not read it", silent)
    if not delivery.attempts:
        waiting = f"{name}: {taker} has not answered yet"
        return bad(waiting, _next(channel, said)) if is_over else unknown(waiting)
    found = bad if is_over else unknown
    return found(
        f"{name}: not taken yet{_tried(delivery)}: {_explained(channel, said)}",
        _next(channel, said),
    )


def _tried(delivery: DeliveryAnswer) -> str:
    """How often; a relay keeps many attempts, and says only of what is owed how many there were."""
    many = delivery.attempts or len(delivery.tries)
    return f", {many} attempt{'' if many == 1 else 's'}" if many else ""


def _without_delivery(channel: ChannelAnswer, user: UserState | None) -> Finding:
    name, silent = name_of(channel), _SILENT[channel.kind]
    if channel.kind in _PUSHES:
        return bad(
            f"{name}: the relay sends nothing there",
            f"its settings no longer hold the app: add [{channel.kind}.{channel.app!r}] again",
        )
    if channel.kind == "mqtt":
        return good(f"{name}: the broker took it, and the device is connected to it", silent)
    if _is_confirmed_stream(channel, user):
        return good(f"{name}: it is in the stream, and a device of the identity confirmed the call")
    return unknown(f"{name}: it is in the stream, and nobody has confirmed the call", silent)


def _is_confirmed_stream(channel: ChannelAnswer, user: UserState | None) -> bool:
    return channel.kind == "websocket" and user in _CONFIRMED


def _called(channel: ChannelAnswer, said: str) -> str:
    """What the other side calls the push, to look for it there."""
    if not said:
        return ""
    return f" (apns-id {said})" if channel.kind == "apns" else f" ({said})"


def _explained(channel: ChannelAnswer, said: str) -> str:
    reason = find_reason(channel.kind, said)
    if reason is None:
        return said or "no reason was given"
    return f"{said}: {reason.meaning}"


def _next(channel: ChannelAnswer, said: str) -> str:
    reason = find_reason(channel.kind, said)
    return reason.next_step if reason is not None else _OWED.get(channel.kind, _LOOK)


@contextmanager
def _test_call(client: RelayClient, device: DeviceAnswer, timeout_s: float) -> Iterator[CallAnswer]:
    """A call to the device's identity, which is over at the end."""
    call = client.create_call({"to": [device.identity], "timeout": timeout_s})
    try:
        yield call
    finally:
        try:
            client.operate(call.call_sid, "cancel", {})
        except RelayRefused:  # It was answered, or is over.
            if client.call(call.call_sid).state is not CallState.ENDED:
                client.operate(call.call_sid, "end", {})


def _announce(console: Console, device: DeviceAnswer, others: list[str], call: CallAnswer) -> None:
    rings = f"Test call [bold]{call.call_sid}[/] to {escape(device.identity)}"
    if others:
        console.print(
            f"{rings}: it rings all devices of {escape(device.identity)},"
            f" [yellow]also {escape(', '.join(others))}[/].\n",
            highlight=False,
        )
    else:
        console.print(
            f"{rings}, whose only device is {escape(device.device_id)}.\n", highlight=False
        )


def _watch(
    client: RelayClient,
    device: DeviceAnswer,
    call: CallAnswer,
    console: Console,
    timeout_s: float,
    cancel_after_s: float,
) -> list[ChannelReport]:
    """Shows how the channels stand until each has answered and the call has rung on for a while, or
    it is over."""
    ends = time.monotonic() + timeout_s
    answered_at: float | None = None
    reports = _look(client, device, call, is_over=False)
    with Live(_shown(reports), console=console, refresh_per_second=8) as live:
        while True:
            now = time.monotonic()
            if answered_at is None and all(report.settled for report in reports):
                answered_at = now
                ends = min(ends, answered_at + cancel_after_s)
            is_over = now >= ends or client.call(call.call_sid).state is not CallState.RINGING
            reports = _look(client, device, call, is_over=is_over)
            live.update(_shown(reports))
            if is_over:
                return reports
            time.sleep(min(_POLL_S, max(0.0, ends - now)))


def _look(
    client: RelayClient, device: DeviceAnswer, call: CallAnswer, *, is_over: bool
) -> list[ChannelReport]:
    deliveries = client.deliveries(call.call_sid).deliveries
    users = {user.identity: user.state for user in client.call(call.call_sid).users}
    return [
        report_channel(
            channel,
            _invite_on(channel, device, deliveries),
            users.get(device.identity),
            is_over=is_over,
        )
        for channel in device.channels
    ]


def _invite_on(
    channel: ChannelAnswer, device: DeviceAnswer, deliveries: tuple[DeliveryAnswer, ...]
) -> DeliveryAnswer | None:
    """The invite's delivery on a channel: of a call's events it is the first that a device is owed."""
    mine = [
        delivery
        for delivery in deliveries
        if delivery.device_id == device.device_id
        and delivery.channel == channel.kind
        and (delivery.app or None) == (channel.app or None)
    ]
    return min(mine, key=lambda delivery: _number(delivery.event_id), default=None)


def _number(event_id: str) -> int:
    """The running number of an event in its call."""
    number = event_id.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _shown(reports: list[ChannelReport]) -> Group:
    return Group(*(line for report in reports for line in _lines(report.finding)))


def _lines(finding: Finding) -> Iterator[Text]:
    sign, style = _SIGNS[finding.condition]
    yield Text.assemble("  ", (sign, style), f" {finding.what}")
    if finding.mend:
        yield Text(f"      → {finding.mend}")


def _as_json(
    device: DeviceAnswer, call: CallAnswer, reports: list[ChannelReport], *, took: bool
) -> dict[str, object]:
    return {
        "call_sid": call.call_sid,
        "device_id": device.device_id,
        "identity": device.identity,
        "took": took,
        "channels": [
            {
                "channel": report.channel.kind,
                "app": report.channel.app,
                "environment": report.channel.environment,
                "state": None if report.delivery is None else report.delivery.state,
                "detail": None if report.delivery is None else report.delivery.detail,
                "attempts": None if report.delivery is None else report.delivery.attempts,
                "latency_ms": None if report.delivery is None else report.delivery.latency_ms,
                "took": report.took,
                "verdict": report.finding.condition.value,
                "says": report.finding.what.removeprefix(f"{name_of(report.channel)}: "),
                "next": report.finding.mend,
            }
            for report in reports
        ],
    }
