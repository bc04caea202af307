"""A session that publishes much does so over a connection of its own, which does nothing else.

paho-mqtt takes a fifth of a millisecond for a message and its confirmation: publishing a call's
events cost a relay a quarter of its time. Here a message is one packet out and four bytes back, and
what comes up in one turn of the loop leaves in one write. What it hears much of has a
connection of its own, too (:mod:`broker.session.receiving`); all else stays the session's.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bellwire.broker.session.client import Client
from bellwire.broker.session.connection import BrokerConnection, let_in
from bellwire.broker.session.messages import Outgoing
from bellwire.broker.session.receiving import ReceivingSession
from bellwire.broker.session.session import NotConnected


class PublishingSession(ReceivingSession):
    """See `ReceivingSession`. Where one of its three connections is lost, all begin anew."""

    _out: BrokerConnection | None = None

    async def _publish(self, message: Outgoing) -> None:
        # What is retained or asks for an answer goes over the other connection, and so does what is for
        # the broker itself (`$CONTROL`), which answers only there.
        topic = message.topic
        if message.retain or message.response_topic is not None or topic.startswith("$"):
            await super()._publish(message)
            return
        out = self._out
        if out is None:
            raise NotConnected(f"no connection to the broker {self.address.url}")
        if out.lost.done():
            # As in `Session`: who tries again must not keep the loop from finding out.
            self._up.clear()
            await asyncio.sleep(0)
        await out.publish(
            topic, message.payload, expiry_s=message.expiry_s, correlation=message.correlation
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Client]:
        # First, so that what is owed goes out no later than a device can be answered.
        async with let_in(BrokerConnection(self.address, f"{self.client_id}-out")) as out:
            self._out = out
            try:
                async with super()._connection() as client, self._leaving_with(out, client):
                    yield client
            finally:
                self._out = None
