"""Two `bellwire agent --simulate` and a `bellwire relay`, each a process of its own, and a call between
them: a presses its call button, b its answer button, as people would."""

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from bellwire.cli.demo.stage import register_station
from bellwire.cli.process.relay import RelayProcess
from bellwire.cli.relay_client import RelayClient
from bellwire.config.agent.audio import AudioSettings, ProcessingSettings
from bellwire.config.agent.settings import agent_file
from bellwire.config.private_file import write_private
from bellwire.signaling.wire.answers import CallAnswer
from bench.lab.lossy_network import listening_socket, namespace_command
from bench.lab.pulse_server import PulseServer, end
from bench.sound.standing_call import Concealment, StandingCall

_TIMEOUT_S = 60.0
_PENDING = frozenset({"Inviting", "NotYetReceived"})


class AgentStage:
    """The relay and both agents, idle, and the calls that are made between them."""

    def __init__(self, client: RelayClient, agents: dict[str, Process], *, counted: bool) -> None:
        self.client = client
        self._agents = agents
        self._counted = counted

    def pid(self, party: str) -> int:
        """The process id of a party's agent."""
        return self._agents[party].pid

    def press(self, party: str, key: str) -> None:
        """Presses a button of a party's panel: `1` and so on calls, `a` answers, `h` hangs up, `q` ends
        the agent."""
        _press(self._agents[party], key)

    async def ended(self, party: str) -> None:
        """Waits until a party's agent has."""
        async with asyncio.timeout(_TIMEOUT_S):
            await self._agents[party].wait()

    @asynccontextmanager
    async def call(self) -> AsyncIterator[StandingCall]:
        """A call from the first party to the second, from its being accepted until it is left."""
        caller, callee = self._agents.values()
        known = {call.call_sid for call in await self._calls()}
        _press(caller, "1")
        sid = await self._until_rings(known)
        _press(callee, "a")
        await self._until(sid, {"Accepted"})
        try:
            yield StandingCall(
                pid=callee.pid, concealment=self._concealment if self._counted else None
            )
        finally:
            _press(caller, "h")
            await self._until(sid, {"Quit"})

    async def _until_rings(self, known: set[str]) -> str:
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                self._must_live()
                for call in await self._calls():
                    if call.call_sid not in known and call.users[-1].state not in _PENDING:
                        return call.call_sid
                await asyncio.sleep(0.1)

    async def _until(self, sid: str, states: set[str]) -> None:
        """Waits until any of the two has reached one of these states, or the call is over."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                self._must_live()
                call = await asyncio.to_thread(self.client.call, sid)
                others = call.users[1:] if "Accepted" in states else call.users
                if call.state == "ended" or any(user.state in states for user in others):
                    break
                await asyncio.sleep(0.1)
        if "Accepted" in states and call.state == "ended":
            raise SystemExit(f"the agents' call ended before it was accepted: {call}")

    async def _calls(self) -> tuple[CallAnswer, ...]:
        return (await asyncio.to_thread(self.client.calls)).calls

    def _must_live(self) -> None:
        for party, agent in self._agents.items():
            if agent.returncode is not None:
                raise SystemExit(f"the agent {party} ended with {agent.returncode}")

    async def _concealment(self) -> Concealment:
        """Asks `bench.sound.agent_party`."""
        callee = list(self._agents.values())[1]
        callee.send_signal(signal.SIGUSR1)
        if callee.stdout is None:
            raise ValueError("its output is no pipe")
        async with asyncio.timeout(_TIMEOUT_S):
            return Concealment(*json.loads(await callee.stdout.readline()))


@asynccontextmanager
async def agent_stage(
    pulse: PulseServer,
    folder: Path,
    *,
    processing: bool = True,
    namespaces: bool = False,
    counted: bool = False,
    more_calls: tuple[str, ...] = (),
    arguments: Mapping[str, tuple[str, ...]] | None = None,
) -> AsyncIterator[AgentStage]:
    """Everything started and connected; ended when it is left.

    Args:
        pulse: The sound of both.
        folder: For the relay's data and the agents' logs, which tell of failures.
        processing: Whether the voice is processed as it is by default (echo, noise), or not at all.
        namespaces: Each agent in its party's network namespace.
        counted: Concealment can be asked for; then the agents run under `bench.sound.agent_party`.
        more_calls: Whom the further call buttons of both call.
        arguments: Further arguments of a party's `bellwire agent`.
    """
    async with AsyncExitStack() as opened:
        relay = await opened.enter_async_context(RelayProcess(folder / "relay"))
        client = opened.enter_context(RelayClient(relay.access))
        commands: dict[str, list[str]] = {}
        for party, other in (pulse.parties[:2], pulse.parties[1::-1]):
            settings = await register_station(client, party, (other, *more_calls))
            stages = {} if processing else dict.fromkeys(ProcessingSettings.model_fields, False)
            audio = AudioSettings(
                speaker_volume=1, ring_volume=0, processing=ProcessingSettings(**stages)
            )
            file = folder / f"{party}.toml"
            write_private(file, agent_file(settings.model_copy(update={"audio": audio})))
            if namespaces:
                port = urlsplit(settings.broker.url).port or 1883
                await _bridge(opened, party, port)
            module = "bench.sound.agent_party" if counted else "bellwire"
            command = [*namespace_command(party, inside=namespaces), sys.executable, "-m", module]
            command += ["agent", "--simulate", "--config", str(file), "--log-format", "json"]
            command += (arguments or {}).get(party, ())
            commands[party] = command
        starting = [_start(opened, commands[party], pulse, party, folder) for party in commands]
        agents = dict(zip(commands, await asyncio.gather(*starting), strict=True))
        yield AgentStage(client, agents, counted=counted)


async def _start(
    opened: AsyncExitStack, command: list[str], pulse: PulseServer, party: str, folder: Path
) -> Process:
    """Starts one agent and waits until it says that it is ready, in systemd's words."""
    notify = folder / f"notify-{party}"
    log = folder / f"agent-{party}.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, log.open("wb") as errors:
        notified.setblocking(False)
        notify.unlink(missing_ok=True)
        notified.bind(str(notify))
        process = await asyncio.create_subprocess_exec(
            *command, env={**pulse.environment_of(party), "NOTIFY_SOCKET": str(notify)},
            stdin=PIPE, stdout=PIPE if "bench.sound.agent_party" in command else DEVNULL, stderr=errors,
        )  # fmt: skip
        opened.push_async_callback(end, process)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while b"READY=1" not in await loop.sock_recv(notified, 1024):
                    pass
        except TimeoutError as error:
            said = log.read_text(errors="replace")[-800:]
            raise SystemExit(f"the agent {party} did not connect: {said}") from error
    return process


async def _bridge(opened: AsyncExitStack, party: str, port: int) -> None:
    """Lets a party reach a port of this machine's loopback as its own, around the lossy wire."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, back))
                tasks.create_task(_pump(there, writer))

    server = await asyncio.start_server(join, sock=listening_socket(party, port))
    opened.callback(server.close)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


def _press(process: Process, key: str) -> None:
    if process.stdin is None:
        raise ValueError("its input is no pipe")
    process.stdin.write(key.encode() + b"\n")
