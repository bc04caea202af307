"""What a push says: Twilio's keys, as its Voice SDKs read them (spec §2), alike on APNs and FCM; and the
APNs payload and FCM data that carry them."""

import json
from collections.abc import Mapping

from pydantic_core import to_json

from bellwire.push.channels.channel import Addressee, refuse_if_too_large
from bellwire.push.channels.live_invite import ConnectToken
from bellwire.signaling.calls.events import (
    CallCancelled,
    CallEnded,
    CallEvent,
    CallReceived,
    CallTimeout,
)
from bellwire.signaling.identifiers import wire_address
from bellwire.signaling.twi_params import encode_params

APNS_LIMIT_BYTES = 5120
"""Apple's limit of a VoIP push, in bytes of the body."""

FCM_LIMIT_BYTES = 4096
"""Google's limit of a message's data, names and values together."""

_FCM_ENVELOPE_BYTES = 196
"""What we count for the parts of a message that Google adds to the data."""

CALL = "twilio.voice.call"
CANCEL = "twilio.voice.cancel"
_INVITES = (f'"twi_message_type":"{CALL}"', '"event":"call.received"')
STIR = "twi_stir_status"
"""What Twilio's SDKs make `callerInfo` of. The signature of it stays out of pushes: they come from
Apple or Google with the app's own credentials, and its 450 bytes would be taken from the parameters."""


def is_invite(payload: str) -> bool:
    """Whether what goes to a device is an invite, on whatever channel. What users write cannot look like
    it: their quotation marks are escaped."""
    return any(mark in payload for mark in _INVITES)


class PushPayload:
    """Writes the keys of pushes.

    Args:
        account_sid: `twi_account_sid`, the same in all of them.
        connect_token: Makes `twi_bridge_token`.
    """

    def __init__(self, account_sid: str, connect_token: ConnectToken) -> None:
        self._account_sid = account_sid
        self._connect_token = connect_token

    def keys(self, event: CallEvent, to: Addressee) -> dict[str, str] | None:
        """The keys of a push that carries the event; None where a push carries no such events. An
        invite that is over is a cancel, whatever ended it."""
        match event:
            case CallReceived():
                return self._call(event, to)
            case CallCancelled() | CallTimeout() | CallEnded():
                return self._cancel(event, to)
            case _:
                return None

    def _call(self, event: CallReceived, to: Addressee) -> dict[str, str]:
        call, device = to.call, to.device
        token = self._connect_token(
            device.identity, device.device_id, call.call_sid, event.expires_at
        )
        shown = {"title": event.title, "content": event.content, "payload": event.payload}
        return {
            **self._common(CALL, event, event.from_, event.to),
            "twi_params": encode_params(event.custom_parameters),
            "twi_bridge_token": token,
            **({} if event.caller_info is None else {STIR: event.caller_info.attestation.value}),
            **{name: text for name, text in shown.items() if text is not None},
        }

    def _cancel(
        self, event: CallCancelled | CallTimeout | CallEnded, to: Addressee
    ) -> dict[str, str]:
        caller = to.call.caller
        from_ = None if caller is None else wire_address(caller)
        return self._common(CANCEL, event, from_, wire_address(to.device.identity))

    def _common(
        self, message_type: str, event: CallEvent, from_: str | None, to: str
    ) -> dict[str, str]:
        return {
            "twi_message_type": message_type,
            "twi_call_sid": event.call_sid,
            **({} if from_ is None else {"twi_from": from_}),
            "twi_to": to,
            "twi_account_sid": self._account_sid,
            "twi_message_id": event.id,
        }


def apns_payload(keys: Mapping[str, str], what: str, shorten: str) -> str:
    """The body of a VoIP push with these keys.

    Args:
        keys: All that it says.
        what: What is pushed, and `shorten`: what to shorten where it is too large.

    Raises:
        TooLarge: it is over Apple's limit.
    """
    body = to_json({"aps": {}, **keys})
    refuse_if_too_large(len(body), APNS_LIMIT_BYTES, what=what, kind="apns", shorten=shorten)
    return body.decode()


def fcm_data(keys: Mapping[str, str], what: str, shorten: str) -> str:
    """The data of a message with these keys; the arguments as of `apns_payload`.

    Raises:
        TooLarge: it is over Google's limit.
    """
    size = _FCM_ENVELOPE_BYTES + sum(len(k.encode()) + len(v.encode()) for k, v in keys.items())
    refuse_if_too_large(size, FCM_LIMIT_BYTES, what=what, kind="fcm", shorten=shorten)
    return json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
