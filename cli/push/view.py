"""What a test call's deliveries say, channel by channel, in words."""

from dataclasses import dataclass

from bellwire.cli.doctor.diagnosis import Finding, bad, good, unknown
from bellwire.cli.push.reasons import find_reason
from bellwire.signaling.calls.calls import UserState
from bellwire.signaling.wire.answers import ChannelAnswer, DeliveryAnswer

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
    return ChannelReport(channel, delivery, took, is_over or state != "owed", finding)


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
                f"{name}: not taken before the invite ran out: {_explained(channel, said)}",
                _next(channel, said),
            )
    attempts = delivery.attempts or 0
    tries = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    if not attempts:
        waiting = f"{name}: {taker} has not answered yet"
        return bad(waiting, _next(channel, said)) if is_over else unknown(waiting)
    found = bad if is_over else unknown
    return found(
        f"{name}: not taken yet, {tries}: {_explained(channel, said)}", _next(channel, said)
    )


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
