"""What an invite over a live connection says to one device alone: its connect token, as a push's
`twi_bridge_token`, and the relay's account."""

import json
from collections.abc import Callable
from datetime import datetime

from bellwire.push.store.rows.devices import DeviceRow
from bellwire.signaling.calls.events import CallEvent, CallReceived
from bellwire.signaling.identifiers import CallSid, DeviceId, Identity

ConnectToken = Callable[[Identity, DeviceId, CallSid, datetime], str]
"""Makes the token with which a device answers one call, until a while after the invite's end."""


class LiveInvites:
    """Writes them into the documents of invites.

    Args:
        account_sid: `account_sid`, the same in all of them.
        connect_token: Makes `connect_token`.
    """

    def __init__(self, account_sid: str, connect_token: ConnectToken) -> None:
        self._account = json.dumps(account_sid)
        self._connect_token = connect_token

    def document(self, document: str, event: CallEvent, device: DeviceRow) -> str:
        """The document of an event for one device: of an invite with these two, else as it is. They are
        put at its end, for the rest is the same for all devices and written once."""
        if not isinstance(event, CallReceived):
            return document
        sid = CallSid(event.call_sid)
        token = self._connect_token(device.identity, device.device_id, sid, event.expires_at)
        return f'{document[:-1]},"account_sid":{self._account},"connect_token":"{token}"}}'
