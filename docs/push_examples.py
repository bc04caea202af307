"""Pushes as the relay writes them, for the documents: made by the code that makes them."""

import json
from datetime import UTC, datetime

from bellwire.cli.push.reasons import REASONS
from bellwire.push.channels.channel import Addressee
from bellwire.push.channels.payload import PushPayload
from bellwire.push.store.rows.devices import ChannelRow, DeviceRow
from bellwire.signaling.calls.calls import Attestation, Call, PushText
from bellwire.signaling.calls.commands import Cancel, Invitee, NewCall
from bellwire.signaling.calls.events import CallCancelled, CallEvent, CallReceived
from bellwire.signaling.calls.rules import Outcome, apply, create_call
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity
from bellwire.signaling.tokens import AccessTokenClaims
from docs.tables import sent, table

_AT = datetime(2026, 11, 21, 8, 19, 36, tzinfo=UTC)
_SID = CallSid("CA01a1fd307ebaf98530eb3de0458ecbae")
_ACCOUNT = f"AC{'0123456789abcdef' * 2}"
_TOKEN = "eyJhbGciOiJFZERTQSIsImtpZCI6IjE3..."  # noqa: S105 - the beginning of one

_WHAT_KEYS_HOLD = {
    "twi_message_type": "`twilio.voice.call`, or `twilio.voice.cancel` where the invite is over",
    "twi_call_sid": "the call's SID: `CA` and 32 hex digits, which make a UUID",
    "twi_from": "who calls, as `client:lobby`; absent where nobody in particular does",
    "twi_to": "who is called, as `client:alice`: the identity of this device",
    "twi_account_sid": "the relay's `account_sid`",
    "twi_message_id": "the event's id, the same on every channel and at every retry",
    "twi_params": "the custom parameters as a query string, empty where there are none",
    "twi_bridge_token": "the connect token, for this device and this call",
    "twi_stir_status": "how sure the relay is of `twi_from`: `A`, the caller's own token or connection"
    " called; `B`, a server said so; absent where nobody in particular calls",
    "title": "`push.title` of the invite, where it has one",
    "content": "`push.content` of the invite, where it has one",
    "payload": "`push.payload` of the invite, where it has one",
}


def push_keys() -> str:
    """The keys of a call's and of a cancel's push."""
    call, cancel = _call_keys(), _cancel_keys()
    return table(
        ["key", "call", "cancel", "what it holds"],
        (
            [f"`{key}`", "yes", "yes" if key in cancel else "no", _WHAT_KEYS_HOLD[key]]
            for key in call
        ),
    )


def apns_call() -> str:
    """The body of a VoIP push that brings a call."""
    return _block({"aps": {}, **_call_keys()})


def fcm_call() -> str:
    """The message that brings a call over FCM, as Google passes it on."""
    return _block({"data": _call_keys(), "android": {"priority": "high"}})


def push_cancel() -> str:
    """The keys of a push which says that an invite is over."""
    return _block(_cancel_keys())


def connect_token() -> str:
    """The claims of a connect token."""
    return sent(AccessTokenClaims, missing="always in a connect token").replace(
        "| field | what it holds | there |", "| claim | what it holds | there |"
    )


def reasons(kind: str) -> str:
    """What a push service's reasons mean."""
    return table(
        ["reason", "status", "what it means", "what the relay does", "what you do"],
        (
            [f"`{name}`", str(reason.status), reason.meaning, reason.relay, reason.next_step]
            for name, reason in REASONS[kind].items()
        ),
    )


def _block(document: object) -> str:
    return f"```js\n{json.dumps(document, ensure_ascii=False, indent=2)}\n```\n"


def _created() -> Outcome:
    return create_call(
        NewCall(
            _SID,
            Identity("lobby"),
            (Invitee(Identity("alice"), ("apns",)),),
            _AT,
            timeout_s=60,
            custom_parameters={"reason": "parcel", "floor": "2nd & 3rd"},
            attestation=Attestation.FULL,
            push=PushText("Somebody is at the door", "A parcel for you", '{"camera": 7}'),
        )
    )


def _call_keys() -> dict[str, str]:
    created = _created()
    (event,) = (n.event for n in created.notices if isinstance(n.event, CallReceived))
    return _keys(created.call, event)


def _cancel_keys() -> dict[str, str]:
    cancelled = apply(_created().call, Cancel(Identity("lobby"), _AT))
    (event,) = (n.event for n in cancelled.notices if isinstance(n.event, CallCancelled))
    return _keys(cancelled.call, event)


def _keys(call: Call, event: CallEvent) -> dict[str, str]:
    channel = ChannelRow("apns", "com.example.app", "production", "ab" * 32)
    phone = DeviceRow(DeviceId("alice-phone"), Identity("alice"), (channel,))
    payload = PushPayload(_ACCOUNT, lambda *_: _TOKEN)
    keys = payload.keys(event, Addressee(call, phone, channel))
    if keys is None:
        raise TypeError(f"{event.event} is not pushed")
    return keys
