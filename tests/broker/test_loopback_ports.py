"""The port of the relay's own mosquitto: one that no outgoing connection is given, and what is said when
another program has it all the same."""

import asyncio
import json
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from bellwire.broker.embedded import EmbeddedBroker, free_port, holder_of, is_free, outgoing_ports
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay
from tests.push.support import serving


def taken_by_a_connection() -> tuple[socket.socket, socket.socket, int]:
    """A connection of this program's that was given a port, as any program's is; the port."""
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    port: int = client.getsockname()[1]
    return server, client, port


def test_a_new_broker_takes_a_port_that_no_outgoing_connection_is_given(tmp_path: Path) -> None:
    ports = [EmbeddedBroker(tmp_path / str(number)).prepare().port for number in range(20)]
    assert not [port for port in ports if port in outgoing_ports() or port < 1024]
    assert len(set(ports)) > 15, "relays that start at once do not take the same"


def test_what_holds_a_port_is_named() -> None:
    server, client, port = taken_by_a_connection()
    accepted, _ = server.accept()
    with closing(server), closing(accepted), closing(client):
        assert not is_free(port)
        assert f"(pid {os.getpid()})" in holder_of(port)
    assert "for a minute at most" in holder_of(port)
    assert "may not see" in holder_of(free_port())


def put_port(folder: Path, port: int) -> None:
    """Makes a broker's folder one of the version before, which took any port."""
    login = json.loads((folder / "login.json").read_text())
    (folder / "login.json").write_text(json.dumps(login | {"port": port}))


def test_a_port_that_no_devices_file_names_is_moved_out_of_the_range(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    before = EmbeddedBroker(folder).prepare()
    put_port(folder, outgoing_ports()[77])
    moved = EmbeddedBroker(folder).prepare()
    assert moved.port not in outgoing_ports()
    assert moved.password == before.password
    assert EmbeddedBroker(folder).prepare() == moved


@pytest.mark.parametrize("username", ["desk", "operator-ann"])
def test_a_port_that_files_may_name_stays(tmp_path: Path, username: str) -> None:
    folder = tmp_path / "broker"
    EmbeddedBroker(folder).prepare()
    put_port(folder, port := outgoing_ports()[77])
    document = json.loads((folder / "dynamic-security.json").read_text())
    document["clients"].append({"username": username})
    (folder / "dynamic-security.json").write_text(json.dumps(document))
    assert EmbeddedBroker(folder).prepare().port == port


async def test_a_relay_whose_brokers_port_is_held_says_by_what_and_serves_once_it_is_free(
    tmp_path: Path,
) -> None:
    relay = ForkedRelay(tmp_path / "relay")
    async with relay, serving(relay) as running:
        await running.register("desk")
    server, client, port = taken_by_a_connection()
    with closing(server):
        accepted, _ = server.accept()
        with closing(client), closing(accepted):
            put_port(relay.data / "broker", port)
            starting = asyncio.create_task(relay.start())
            said = "another program holds the port of the relay's own mosquitto"
            async with asyncio.timeout(PATIENCE_S):
                while said not in relay.log_path.read_text():  # noqa: ASYNC110 - a file tells nobody
                    await asyncio.sleep(0.05)
            line = next(line for line in relay.log_path.read_text().splitlines() if said in line)
            assert f"(pid {os.getpid()})" in line and str(port) in line
            assert "BELLWIRE_BROKER_PORT" in line
            assert not starting.done()
            # The other end goes first, and is heard to: else the port would be held for another minute.
            accepted.close()
            assert await asyncio.to_thread(client.recv, 1) == b""
        await starting
        async with serving(relay) as running:
            assert (await running.http.get("/readyz")).status_code == 200
            assert (await running.register("desk"))["url"] == f"mqtt://127.0.0.1:{port}"
        await relay.stop()
