"""The relay's own mosquitto: its files, its port, its life and its death."""

import asyncio
import json
import os
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.embedded import EmbeddedBroker
from bellwire.broker.session.session import Session
from bellwire.signaling.identifiers import DeviceId
from tests.broker.running import RunningBroker, held, is_let_in, raw_client, soon
from tests.conftest import PATIENCE_S
from tests.system.scene import mosquitto_pid

RUN_ONE = """
import asyncio, sys
from pathlib import Path
from bellwire.broker.embedded import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.prepare()
asyncio.run(broker.run())
"""


def read(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_it_lets_the_relay_in_and_nobody_without_its_password(
    broker: RunningBroker,
) -> None:
    assert await is_let_in(broker.address)
    assert not await is_let_in(replace(broker.address, password="wrong"))
    assert not await is_let_in(replace(broker.address, username=None, password=None))


async def test_it_listens_on_loopback_only(broker: RunningBroker) -> None:
    port = f"{broker.address.port:04X}"
    sockets = [line.split() for line in read("/proc/net/tcp").decode().splitlines()[1:]]
    listening = {where for _, where, _, state, *_ in sockets if state == "0A"}
    assert {where for where in listening if where.endswith(f":{port}")} == {f"0100007F:{port}"}


async def test_its_files_are_their_owners_alone_even_after_it_rewrote_them(
    broker: RunningBroker, tmp_path: Path
) -> None:
    relay = Session(broker.address, "relay", sleep=soon)
    provisioner = DynamicSecurity(relay)
    async with held(relay):
        password = await provisioner.grant(DeviceId("desk"))
    await broker.kill(signal.SIGTERM)
    folder = tmp_path / "broker"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    for name in ("login.json", "dynamic-security.json", "mosquitto.db"):
        assert names[name] == 0o600, names
    secrets = (password, str(broker.address.password))
    for name in names.keys() - {"login.json"}:
        content = (folder / name).read_bytes()
        assert not [s for s in secrets if s.encode() in content], f"{name} holds a password"


async def test_its_password_is_in_no_process_list(broker: RunningBroker) -> None:
    assert broker.pid is not None
    assert broker.address.password is not None
    shown = read(f"/proc/{broker.pid}/cmdline")
    shown += read(f"/proc/{broker.pid}/environ")
    assert b"mosquitto.conf" in shown
    assert broker.address.password.encode() not in shown


async def test_port_password_and_granted_access_are_kept_over_a_restart(
    broker: RunningBroker, tmp_path: Path
) -> None:
    relay = Session(broker.address, "relay", sleep=soon)
    provisioner = DynamicSecurity(relay)
    async with held(relay):
        password = await provisioner.grant(DeviceId("desk"))
        await broker.kill()
        assert EmbeddedBroker(tmp_path / "broker").prepare() == broker.address
        await broker.start()
        await asyncio.wait_for(relay.wait_connected(), PATIENCE_S)
    assert await is_let_in(replace(broker.address, username="desk", password=password))


def test_a_port_that_is_asked_for_is_taken_and_the_password_stays(tmp_path: Path) -> None:
    first = EmbeddedBroker(tmp_path / "broker").prepare()
    second = EmbeddedBroker(tmp_path / "broker", port=21883).prepare()
    assert second.port == 21883
    assert second.password == first.password
    assert "listener 21883 127.0.0.1\n" in (tmp_path / "broker" / "mosquitto.conf").read_text()


def test_a_first_start_cut_short_is_made_good(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    EmbeddedBroker(folder).prepare()
    (folder / "login.json").unlink()
    EmbeddedBroker(folder).prepare()
    document = json.loads((folder / "dynamic-security.json").read_text())
    login = json.loads((folder / "login.json").read_text())
    assert [client["username"] for client in document["clients"]] == [login["username"]]


async def test_it_is_started_again_when_it_falls(broker: RunningBroker) -> None:
    before = broker.pid
    await broker.restart()
    assert broker.pid not in (None, before)
    assert await is_let_in(broker.address)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
async def test_it_may_use_all_cores_though_the_relay_keeps_to_one(broker: RunningBroker) -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        await broker.restart()
    finally:
        os.sched_setaffinity(0, cores)
    assert os.sched_getaffinity(broker.pid or 0) == cores


async def test_it_ends_with_its_owner_within_a_second(tmp_path: Path) -> None:
    """Once in a few times, that is: on a busy machine it may have to wait for its turn."""
    took_s: list[float] = []
    while not took_s or (min(took_s) >= 1 and len(took_s) < 10):
        async with (
            RunningBroker(tmp_path / str(len(took_s))) as running,
            raw_client(running.address),
        ):
            pid = running.pid
            assert pid is not None
            ended = asyncio.get_running_loop().time()
        took_s.append(asyncio.get_running_loop().time() - ended)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert min(took_s) < 1, took_s


async def test_it_dies_with_a_relay_that_is_killed(tmp_path: Path) -> None:
    address = EmbeddedBroker(tmp_path / "broker").prepare()
    session = Session(address, "relay", sleep=soon)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN_ONE, str(tmp_path / "broker"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with held(session):
            pid = mosquitto_pid(tmp_path)
            assert pid is not None
            gone = os.pidfd_open(pid)
    finally:
        parent.kill()
        await parent.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(gone, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
    finally:
        asyncio.get_running_loop().remove_reader(gone)
        os.close(gone)
