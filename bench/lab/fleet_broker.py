"""A mosquitto with thousands of accounts, as provisioning would have left it, and what it costs."""

import asyncio
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bellwire.broker.accounts.dynamic_security import (
    allow,
    client_entry,
    device_acls,
    device_role_name,
)
from bellwire.broker.embedded import EmbeddedBroker, find_mosquitto
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import DeviceId

PASSWORD = "bench"  # noqa: S105 - of accounts that live for one run
BARE_CHANGE = "bellwire/v1/bench/change"
BARE_REPLIES = "bellwire/v1/bench/reply"
_BARE_ROLE = "bare"
_ITERATIONS = 101
"""What the plugin itself takes for an account that it makes (mosquitto 2.0)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the broker has used: CPU seconds since its start, and memory."""

    cpu_s: float
    rss_mb: float


class FleetBroker:
    """The relay's own mosquitto, that the bench stops and starts.

    Args:
        folder: Its files.
        devices: Whose accounts there are.
    """

    def __init__(self, folder: Path, devices: list[DeviceId]) -> None:
        self._folder = folder / "broker"
        self.address = EmbeddedBroker(self._folder).prepare()
        self._add_accounts(devices)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts it; returns once it takes connections.

        Raises:
            SystemExit: it has ended instead, with what it said.
        """
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        log_path = self._folder / "mosquitto.log"
        with log_path.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM", find_mosquitto()),
                *("-c", str(self._folder / "mosquitto.conf")),
                stdout=log,
                stderr=log,
                env=environment,
            )
        while not self._listens() and process.returncode is None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        if process.returncode is not None:
            said = log_path.read_text(errors="replace")[-500:]
            raise SystemExit(f"mosquitto has ended at its start: {said}")

    async def stop(self) -> None:
        """Stops it in order; sessions and what is retained are kept."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    def cost(self) -> Cost:
        """What it has used since its start (proc(5))."""
        pid = self._process.pid if self._process else 0
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Cost(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 1024**2)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address.host, self.address.port)) == 0

    def _add_accounts(self, devices: list[DeviceId]) -> None:
        """One password hash for all, which is made once; the broker checks it as slowly for each."""
        path = self._folder / "dynamic-security.json"
        document = json.loads(path.read_text())
        bare = [
            allow("subscribeLiteral", BARE_CHANGE),
            allow("publishClientReceive", BARE_CHANGE),
            allow("publishClientSend", f"{BARE_REPLIES}/#"),
        ]
        document["roles"].append({"rolename": _BARE_ROLE, "acls": bare})
        document["roles"] += [
            {"rolename": device_role_name(device), "acls": device_acls(device)}
            for device in devices
        ]
        entry = client_entry("", PASSWORD, [], iterations=_ITERATIONS)
        document["clients"].append(
            entry | {"username": "bare", "roles": [{"rolename": _BARE_ROLE}]}
        )
        document["clients"] += [
            entry | {"username": device, "roles": [{"rolename": device_role_name(device)}]}
            for device in devices
        ]
        write_private(path, json.dumps(document))
