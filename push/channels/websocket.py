"""The stream of a browser, or of an app in the foreground: the same document as over MQTT."""

from signaling.errors import TooLarge
from signaling.events import CallEvent, event_document, what_to_shorten

LIMIT_BYTES = 16 * 1024
"""Generous: nothing on this way has a limit of its own. It bounds what an unread stream can cost."""


def compose_stream_event(event: CallEvent) -> str:
    """The document that carries an event.

    Raises:
        TooLarge: it is over the limit.
    """
    document = event_document(event)
    size = len(document.encode())
    if size > LIMIT_BYTES:
        raise TooLarge(
            f"{event.event} would be {size} bytes over WebSocket, and the limit is {LIMIT_BYTES}:"
            f" shorten {what_to_shorten(event)}",
            size=size,
            limit=LIMIT_BYTES,
            channel="websocket",
        )
    return document
