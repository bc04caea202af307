"""`bellwire doctor` finds each thing that is broken, says how to mend it, and exits 1; what is well
it leaves in peace."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from bellwire.config.agent.settings import AgentSettings, BrokerSettings, agent_file
from bellwire.config.private_file import write_private
from tests.cli.command import Ended, bellwire
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedRelay
from tests.system.mosquitto import running_mosquitto

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings(shared_relay: ForkedRelay) -> AsyncIterator[AgentSettings]:
    """Those of a device of the relay."""
    access = shared_relay.access
    headers = {"Authorization": f"Bearer {access.api_key}"}
    async with httpx.AsyncClient(base_url=access.url, headers=headers, timeout=PATIENCE_S) as http:
        yield await register_station(http, "gate")


def written(settings: AgentSettings, path: Path) -> Path:
    write_private(path, agent_file(settings))
    return path


def broken(settings: AgentSettings, **broker: object) -> AgentSettings:
    """The same with another broker, username or password."""
    changed = BrokerSettings.model_validate({**settings.broker.model_dump(), **broker})
    return settings.model_copy(update={"broker": changed})


def must_find(ended: Ended, what: str, mend: str) -> None:
    """It found this wrong, with how to mend it on the next line, and exited 1."""
    assert ended.code == 1, ended.out
    lines = ended.out.splitlines()
    found = [number for number, line in enumerate(lines) if "✗" in line and what in line]
    assert len(found) == 1, ended.out
    assert "→" in lines[found[0] + 1], ended.out
    assert mend in lines[found[0] + 1], ended.out
    assert "to mend." in lines[-1], ended.out


async def test_doctor_finds_nothing_where_all_is_well(
    shared_relay: ForkedRelay, settings: AgentSettings, tmp_path: Path
) -> None:
    file = written(settings, tmp_path / "gate.toml")
    ended = await bellwire("doctor", "--data", shared_relay.data, "--config", file)
    assert ended.code == 0, ended.out
    assert "✗" not in ended.out
    assert ended.out.splitlines()[-1] == "All is well."
    for well in ("it takes the API key", "takes its credentials", "may hear its own calls"):
        assert well in ended.out


async def test_doctor_says_loudly_that_all_may_ring_all_whatever_told_the_relay(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    """A relay under systemd has its settings in the environment, where no file tells of them."""
    loud = "! EVERYBODY MAY RING EVERYBODY"
    ended = await bellwire("doctor", "--data", shared_relay.data)
    assert loud in ended.out and "BELLWIRE_POLICY" in ended.out
    policy = {"BELLWIRE_POLICY": '{"default": "deny"}'}
    async with ForkedRelay(tmp_path / "relay", environment=policy) as relay:
        assert loud not in (await bellwire("doctor", "--data", relay.data)).out


async def test_doctor_finds_that_no_relay_answers(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("bwk_x")
    (tmp_path / "data").mkdir(mode=0o700)
    ended = await bellwire(
        *("doctor", "--relay", "http://127.0.0.1:1", "--data", tmp_path / "data"),
        *("--api-key-file", tmp_path / "key"),
    )
    must_find(ended, "no relay answers at http://127.0.0.1:1", "bellwire relay")


async def test_doctor_finds_a_wrong_api_key(shared_relay: ForkedRelay, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("bwk_of-another-relay")
    ended = await bellwire(
        "doctor", "--data", shared_relay.data, "--api-key-file", tmp_path / "key"
    )
    must_find(ended, "does not take the API key", "DIR/api-key")
    assert "bwk_of-another-relay" not in ended.out


@pytest.mark.parametrize("name", ["", "api-key", "relay.db"])
async def test_doctor_finds_files_that_others_may_read(
    shared_relay: ForkedRelay, name: str
) -> None:
    path = shared_relay.data / name
    mode = path.stat().st_mode
    path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        ended = await bellwire("doctor", "--data", shared_relay.data)
    finally:
        path.chmod(mode)
    must_find(ended, f"others may read {path}", f"chmod {mode & 0o777:o} {path}")


async def test_doctor_finds_that_the_relay_has_lost_its_broker(tmp_path: Path) -> None:
    async with running_mosquitto(tmp_path / "broker") as broker:
        relay = ForkedRelay(
            tmp_path / "relay", arguments=broker.arguments, environment=broker.environment
        )
        async with relay:
            await broker.kill()
            async with asyncio.timeout(PATIENCE_S):
                while httpx.get(f"{relay.access.url}/readyz").is_success:  # noqa: ASYNC110, ASYNC210
                    await asyncio.sleep(0.02)
            ended = await bellwire("doctor", "--data", relay.data)
    must_find(ended, "it is not ready: the broker is not connected", "--broker")


@contextmanager
def something_else(status: int, date: str) -> Iterator[str]:
    """An HTTP server that is no relay, or one whose clock is wrong; its URL."""

    body = b'{"devices": []}'

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date if timestamp is None else super().date_time_string(timestamp)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "what", "mend"),
    [(404, "is no relay", "--relay URL"), (200, "clock is", "NTP")],
    ids=["not a relay", "clock"],
)
async def test_doctor_finds_something_else_in_the_relays_place_and_clocks_that_differ(
    status: int, what: str, mend: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("bwk_x")
    with something_else(status, "Sat, 01 Jan 2000 00:00:00 GMT") as url:
        ended = await bellwire(
            *("doctor", "--relay", url, "--data", tmp_path / "none"),
            *("--api-key-file", tmp_path / "key"),
        )
    must_find(ended, what, mend)


async def test_doctor_finds_an_agent_file_that_is_missing_broken_or_open_to_all(
    settings: AgentSettings, tmp_path: Path
) -> None:
    data = tmp_path / "none"
    missing = await bellwire("doctor", "--data", data, "--config", tmp_path / "no.toml")
    must_find(missing, "does not exist", "bellwire devices add")

    (tmp_path / "bad.toml").write_text("identity = [")
    bad = await bellwire("doctor", "--data", data, "--config", tmp_path / "bad.toml")
    must_find(bad, "cannot be read", "bellwire devices add")

    file = written(settings, tmp_path / "gate.toml")
    file.chmod(0o644)
    opened = await bellwire("doctor", "--data", data, "--config", file)
    must_find(opened, "everybody may read its password", f"chmod 600 {file}")


async def test_doctor_finds_wrong_credentials_an_unreachable_broker_and_rights_too_wide(
    shared_relay: ForkedRelay, settings: AgentSettings, tmp_path: Path
) -> None:
    login = json.loads((shared_relay.data / "broker" / "login.json").read_text())
    of_relay = {"username": login["username"], "password": SecretStr(login["password"])}
    for change, what, mend in (
        ({"password": SecretStr("wrong")}, "refuses its credentials", "--rotate"),
        ({"url": "mqtt://127.0.0.1:1"}, "is not reached", "is the relay up"),
        ({"url": "http://127.0.0.1"}, "must be mqtt(s)", "[broker]"),
        (of_relay, "may hear other devices", "rights are too wide"),
    ):
        file = written(broken(settings, **change), tmp_path / "gate.toml")
        ended = await bellwire("doctor", "--data", tmp_path / "none", "--config", file)
        must_find(ended, what, mend)
        assert "wrong\n" not in ended.out


async def test_doctor_finds_an_old_mosquitto_and_a_missing_setpriv(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    old = programs / "mosquitto"
    old.write_text("#!/bin/sh\necho mosquitto version 1.6.12\n")
    old.chmod(0o755)
    ended = await bellwire("doctor", "--data", tmp_path / "none", more={"PATH": str(programs)})
    must_find(ended, "1.6.12 is too old", "mosquitto")
    must_find(ended, "setpriv is missing", "apt-get install util-linux")
