"""The stream of a browser, or of an app in the foreground: the same document as over MQTT."""

from bellwire.push.channels.channel import refuse_if_too_large
from bellwire.signaling.calls.events import CallEvent, event_document, what_to_shorten

LIMIT_BYTES = 16 * 1024
"""Generous: nothing on this way has a limit of its own. It bounds what an unread stream can cost."""


def compose_stream_event(event: CallEvent) -> str:
    """The document that carries an event.

    Raises:
        TooLarge: it is over the limit.
    """
    document = event_document(event)
    refuse_if_too_large(
        len(document.encode()),
        LIMIT_BYTES,
        what=event.event,
        kind="websocket",
        shorten=what_to_shorten(event),
    )
    return document
