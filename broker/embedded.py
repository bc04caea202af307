"""Mosquitto as a child of the relay: its configuration and credentials made once, on loopback,
started again when it falls, and gone when the relay is, even after `kill -9`. Its port is outside the range
that the kernel takes the ports of outgoing connections from: of those it may give ours to any program
while nobody listens.
"""

import asyncio
import json
import os
import pwd
import re
import resource
import secrets
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from bellwire.broker.accounts.dynamic_security import initial_document
from bellwire.broker.session.address import BrokerAddress
from bellwire.config.private_file import write_private
from bellwire.config.waiting import backoff_s
from bellwire.signaling.errors import InvalidInput, Unavailable

HOST = "127.0.0.1"

log = structlog.get_logger(__name__)

_STOP_TIMEOUT_S = 5.0
_ATTEMPTS_WHILE_HELD = 3
_MEMORY_LIMIT = 1 << 30
"""Bytes of the broker's data: three times what a fleet of 20,000 devices needs."""
_RELAY_USERNAME = "bellwire-relay"
_PATHS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"

_LOWEST = 18_830
_HIGHEST = 65_535
_TRIES = 200
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_RANGE = range(32_768, 61_000)
_NOBODYS = "0"
"""The inode of a connection that no program has any more: TIME-WAIT."""
_OF_LOOPBACK = frozenset({"0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F"})
"""127.0.0.1 and all addresses, as the kernel's tables have them."""

_LOGIN_REFUSED = b" disconnected, not authorised."
_COMES_OR_GOES = re.compile(rb"(\d+: )?(New (connection|client)|Client) ")
"""What mosquitto says at the level `notice` of each connection."""

_CONFIGURATION = """\
# Written by bellwire at its first start with this data directory.
user {user}
listener {port} {host}
allow_anonymous false
per_listener_settings false
plugin {plugin}
plugin_opt_config_file {folder}/dynamic-security.json
persistence true
persistence_location {folder}/
autosave_interval 30
persistent_client_expiration 2d
set_tcp_nodelay true
max_keepalive 60
# Why these limits, and what they are for: deploy/mosquitto.conf.
max_packet_size 81920
max_inflight_bytes 4194304
max_queued_bytes 4194304
max_queued_messages 1000
log_dest stderr
log_type error
log_type warning
# Of these the relay only counts the logins that were refused.
log_type notice
"""


@dataclass(frozen=True, slots=True)
class _Login:
    port: int
    username: str
    password: str


def find_mosquitto() -> str:
    """The path of the mosquitto executable.

    Raises:
        Unavailable: it is not installed; says how to install it.
    """
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:{_PATHS}")
    if found is None:
        raise Unavailable(
            "mosquitto is not installed: run `apt-get install mosquitto`, or name a broker with --broker"
        )
    return found


def find_dynamic_security_plugin() -> Path:
    """The path of mosquitto's dynamic-security plugin.

    Raises:
        Unavailable: it is not there.
    """
    for folder in (Path("/usr/lib"), Path("/usr/local/lib"), Path("/opt/homebrew/lib")):
        for level in ("", "*/", "*/*/"):  # Debian: /usr/lib/aarch64-linux-gnu/
            for found in sorted(folder.glob(f"{level}mosquitto_dynamic_security.so")):
                return found
    raise Unavailable(
        "mosquitto's dynamic-security plugin is not installed: it comes with mosquitto 2"
    )


def embedded_address(folder: Path) -> BrokerAddress:
    """How the relay logs in to the mosquitto of its own in `folder`, for who may read that.

    Raises:
        InvalidInput: there is none, or it cannot be read.
    """
    path = folder / "login.json"
    try:
        login = _Login(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    return BrokerAddress(
        host=HOST, port=login.port, username=login.username, password=login.password
    )


class EmbeddedBroker:
    """A mosquitto of the relay's own, in a folder of its data directory.

    Args:
        folder: Holds its configuration, credentials and persistence; mode 700.
        port: The loopback port; None takes a free one at the first start, and keeps it.
        count_refused: Is given the reason (`broker-login`) of each login that mosquitto refuses: a wrong
            password, an account that is gone, a client id that is not the account's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        count_refused: Callable[[str], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._folder = folder.resolve()
        self._count_refused = count_refused
        self._sleep = sleep
        self._port_wanted = port
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._cores = os.sched_getaffinity(0) if sys.platform == "linux" else frozenset()

    def prepare(self) -> BrokerAddress:
        """Writes what is missing of the broker's files, and returns how the relay logs in.

        Raises:
            Unavailable: mosquitto or its plugin is not installed.
        """
        find_mosquitto()
        plugin = find_dynamic_security_plugin()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        login = self._login()
        self._port = login.port
        (self._folder / "mosquitto.conf").write_text(
            _CONFIGURATION.format(
                user=pwd.getpwuid(os.geteuid()).pw_name,
                port=login.port,
                host=HOST,
                plugin=plugin,
                folder=self._folder,
            )
        )
        return BrokerAddress(
            host=HOST,
            port=login.port,
            username=login.username,
            password=login.password,
        )

    async def run(self) -> None:
        """Keeps mosquitto running until cancelled; starts it again, with backoff, when it exits."""
        attempt = 0
        while True:
            started = asyncio.get_running_loop().time()
            is_held = not is_free(self._port)
            if is_held:
                self._say_who_holds_the_port()
            else:
                await self._run_once()
            attempt = 0 if asyncio.get_running_loop().time() - started > 10 else attempt + 1
            if is_held:  # to look costs little
                attempt = min(attempt, _ATTEMPTS_WHILE_HELD)
            wait_s = backoff_s(attempt)
            log.error("mosquitto does not run", next_start_in_s=round(wait_s, 2))
            await self._sleep(wait_s)

    async def _run_once(self) -> None:
        # setpriv has the kernel end mosquitto when the relay dies, however it dies.
        self._process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "TERM",
            find_mosquitto(),
            "-c",
            str(self._folder / "mosquitto.conf"),
            # Mosquitto speaks sd_notify too, and would call the relay ready before it is.
            env={
                k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")
            },
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        if sys.platform == "linux":  # The relay may keep to one core meanwhile: not its broker.
            with suppress(OSError):  # It may be gone already.
                os.sched_setaffinity(self._process.pid, self._cores)
            _limit_memory(self._process.pid)
        log.info("mosquitto started", pid=self._process.pid)
        try:
            await self._log_output(self._process)
            await self._process.wait()
        finally:
            await self._stop(self._process)
            self._process = None

    async def _log_output(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            return
        async for line in process.stderr:
            if _LOGIN_REFUSED in line and self._count_refused is not None:
                self._count_refused("broker-login")
            if _COMES_OR_GOES.match(line):
                continue
            text = line.decode(errors="replace").strip()[:500]
            say = log.error if ": Error" in text else log.info
            say("mosquitto says", line=text)

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _login(self) -> _Login:
        """The port and the relay's password, made at the first start. The plugin's own file, which
        mosquitto rewrites, is made before the login, so that a start cut short is made good."""
        path = self._folder / "login.json"
        if path.exists():
            login = _Login(**json.loads(path.read_text()))
            if self._port_wanted is not None:
                return replace(login, port=self._port_wanted)
            if login.port in outgoing_ports() and self._nobody_knows_the_port(login):
                login = replace(login, port=free_port())
                write_private(path, json.dumps(asdict(login)))
            return login
        login = _Login(self._port_wanted or free_port(), _RELAY_USERNAME, secrets.token_urlsafe(32))
        document = initial_document(login.username, login.password)
        write_private(self._folder / "dynamic-security.json", json.dumps(document))
        write_private(path, json.dumps(asdict(login)))
        return login

    def _nobody_knows_the_port(self, login: _Login) -> bool:
        """Whether no device and no operator was ever let in, whose file would name it."""
        try:
            document = json.loads((self._folder / "dynamic-security.json").read_text())
            return [client["username"] for client in document["clients"]] == [login.username]
        except (OSError, ValueError, KeyError):
            return False

    def _say_who_holds_the_port(self) -> None:
        log.error(
            "another program holds the port of the relay's own mosquitto: stop that; or start the relay"
            " with another BELLWIRE_BROKER_PORT, and put it into the devices' files, which name this one",
            port=self._port,
            held_by=holder_of(self._port),
        )


def _limit_memory(pid: int) -> None:
    """The kernel refuses the broker what is over the limit, and it disconnects who needed it. Its own
    `memory_limit` is no use: with the dynamic-security plugin mosquitto 2.0.11 miscounts, to below
    zero, and then refuses everybody everything."""
    with suppress(ProcessLookupError):  # It may be gone already.
        resource.prlimit(pid, resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))


def outgoing_ports() -> range:
    """The ports that the kernel gives to outgoing connections."""
    try:
        first, last = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        return _USUAL_RANGE
    return range(first, last + 1)


def free_port() -> int:
    """A port that nobody holds, and that no outgoing connection is given. One by chance, so that two
    relays that start at once do not take the same."""
    outgoing = outgoing_ports()
    below = range(_LOWEST, outgoing.start)
    above = range(max(_LOWEST, outgoing.stop), _HIGHEST + 1)
    choice = below or above
    for _ in range(_TRIES if choice else 0):
        port = secrets.choice(choice)
        if is_free(port):
            return port
    with socket.socket() as probe:  # the kernel's own choice: all there are are its
        probe.bind((HOST, 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def is_free(port: int) -> bool:
    """Whether one may listen there now, as mosquitto does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def holder_of(port: int) -> str:
    """The program that holds a port of loopback, in words for a log."""
    inodes = _inodes_at(port)
    if inodes == {_NOBODYS}:
        return "a connection that has ended, for a minute at most"
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in sorted(Path("/proc").glob("[0-9]*")):
        if _opens_one_of(process, sockets):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            return f"{name} (pid {process.name})"
    return f"a program that this account may not see (as root: `ss -tanp 'sport = :{port}'`)"


def _inodes_at(port: int) -> set[str]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, at = fields[1].rpartition(":")
            if int(at, 16) == port and address in _OF_LOOPBACK:
                inodes.add(fields[9])
    return inodes


def _opens_one_of(process: Path, sockets: set[str]) -> bool:
    try:
        return any(str(opened.readlink()) in sockets for opened in (process / "fd").iterdir())
    except OSError:
        return False  # another account's, or it has ended meanwhile
