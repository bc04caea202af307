"""A process full of devices for :mod:`bench.fleet_changes`: agents, and beside them bare MQTT clients
that answer each message with one of the size of a report. It is steered by lines on its stdin.

`bare` ends the bare clients. `storm` waits until each agent has connected anew. Each answer is a line
of JSON: the moments (`time.perf_counter`, one clock for all processes) at which the agents connected.
"""

import argparse
import asyncio
import json
import sys
import time

from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.client import client_of
from bellwire.broker.session.session import Hook
from bellwire.cli.process.logs import configure_logs
from bellwire.signaling.identifiers import DeviceId
from bench.lab.fleet_broker import BARE_CHANGE, BARE_REPLIES, PASSWORD
from bench.lab.simulated_agent import SimulatedAgent

_CONNECTING_AT_ONCE = 16


class AgentsHere:
    """The agents of this process, and when each last connected."""

    def __init__(self, names: list[str], port: int) -> None:
        self._connected_at: dict[str, float] = {}
        self._all = asyncio.Event()
        self._agents = [self._agent(name, port) for name in names]

    def _agent(self, name: str, port: int) -> SimulatedAgent:
        address = BrokerAddress("127.0.0.1", port, username=name, password=PASSWORD)
        agent = SimulatedAgent(DeviceId(name), address, {"groups": ["north"]})

        async def note() -> None:
            self._connected_at[name] = time.perf_counter()
            if len(self._connected_at) == len(self._agents):
                self._all.set()

        agent.session.on_connected(note)
        return agent

    async def run(self) -> None:
        """Connects the agents, some at a time, and has them work until cancelled."""
        turns = asyncio.Semaphore(_CONNECTING_AT_ONCE)

        async with asyncio.TaskGroup() as tasks:
            for agent in self._agents:
                await turns.acquire()
                agent.session.on_connected(self._release(turns))
                tasks.create_task(agent.run())

    @staticmethod
    def _release(turns: asyncio.Semaphore) -> Hook:
        """What lets the next one connect, once."""
        left = [turns.release]

        async def release() -> None:
            if left:
                left.pop()()

        return release

    async def connected(self) -> list[float]:
        """When they connected, once all have."""
        await self._all.wait()
        return list(self._connected_at.values())

    def forget(self) -> None:
        """They are about to lose the broker."""
        self._all.clear()
        self._connected_at.clear()


class BareClients:
    """As many connections that do nothing but answer."""

    def __init__(self, names: list[str], port: int, reply: bytes) -> None:
        self._names, self._reply = names, reply
        self._address = BrokerAddress("127.0.0.1", port, username="bare", password=PASSWORD)
        self._left = len(names)
        self._turns = asyncio.Semaphore(_CONNECTING_AT_ONCE)
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Answers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._names:
                tasks.create_task(self._answer(name))

    async def _answer(self, name: str) -> None:
        topic = f"{BARE_REPLIES}/{name}"
        client = client_of(self._address, f"bare-{name}")
        async with self._turns:
            await client.__aenter__()
            await client.subscribe(BARE_CHANGE, qos=1)
        self._left -= 1
        if self._left == 0:
            self.ready.set()
        try:
            async for message in client.messages:
                mark = bytes(message.payload)[:16]
                await client.publish_confirmed(
                    topic, mark + self._reply, retain=True, properties=None
                )
        finally:
            await client.__aexit__(None, None, None)


async def work(names: list[str], port: int, reply_size: int) -> None:
    """Runs until stdin ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    devices = AgentsHere(names, port)
    bare = BareClients(names, port, b"x" * max(0, reply_size - 16))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(devices.run())
        answer(await devices.connected())
        answering = tasks.create_task(bare.run())
        await bare.ready.wait()
        answer([])
        while line := (await lines.readline()).strip():
            if line == b"bare":
                answering.cancel()
                await asyncio.wait([answering])
                answer([])
            elif line == b"storm":
                devices.forget()
                answer([])
                answer(await devices.connected())
        answering.cancel()
        running.cancel()


def answer(moments: list[float]) -> None:
    """One line for whoever steers."""
    sys.stdout.write(json.dumps(moments) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--reply-size", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    given = parser.parse_args()
    configure_logs("error")
    names = [f"device-{n}" for n in range(given.first, given.first + given.count)]
    asyncio.run(work(names, given.port, given.reply_size))


if __name__ == "__main__":
    main()
