"""deploy/nginx.conf and deploy/Caddyfile with the real programs, in front of a real relay: on ports and
with a certificate of this test."""

import asyncio
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from bellwire.broker.embedded import free_port
from bellwire.push.api.server.guarded_http import HEAD_BYTES
from tests.conftest import PATIENCE_S
from tests.deploy.test_deploy import DEPLOY, certificate
from tests.forking import ForkedRelay
from tests.push.support import Running, fresh, serving

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
CADDY = shutil.which("caddy")

NGINX_AROUND = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/start.log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/bellwire.conf;
}}
"""


def replaced(text: str, replacements: dict[str, str]) -> str:
    """A configuration with paths and ports of this test; each pattern must be there."""
    for pattern, to in replacements.items():
        text, found = re.subn(pattern, to, text)
        assert found, pattern
    return text


def nginx_command(folder: Path, port: int, relay_port: int) -> list[str]:
    text = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        {
            "listen 443": f"listen 127.0.0.1:{port}",
            r"    listen \[::\]:443.*\n": "",
            "127.0.0.1:8080": f"127.0.0.1:{relay_port}",
            "/etc/letsencrypt/live/relay.example.org": f"{folder}/certs",
            "/var/log/nginx": str(folder),
            r"(?m)^( *)#(limit_req)": r"\1\2",
        },
    )
    (folder / "bellwire.conf").write_text(text)
    (folder / "nginx.conf").write_text(NGINX_AROUND.format(folder=folder))
    assert NGINX is not None
    return [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy_command(folder: Path, port: int, relay_port: int) -> list[str]:
    text = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        {
            r"(?m)^{\n": "{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system "
            + f"{folder}/storage\n",
            "relay.example.org {": f"https://localhost:{port} {{\n"
            f"\ttls {folder}/certs/fullchain.pem {folder}/certs/privkey.pem\n\tbind 127.0.0.1\n",
            "read_body 30s": "read_body 1s",
            "127.0.0.1:8080": f"127.0.0.1:{relay_port}",
            "/var/log/caddy": str(folder),
        },
    )
    (folder / "Caddyfile").write_text(text)
    assert CADDY is not None
    return [CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@dataclass(frozen=True)
class Front:
    """A proxy with a relay behind it."""

    folder: Path
    port: int
    running: Running
    trust: ssl.SSLContext

    def client(self, source: str = "127.0.0.1") -> httpx.AsyncClient:
        """A stranger who comes from this address."""
        return httpx.AsyncClient(
            base_url=f"https://localhost:{self.port}",
            timeout=PATIENCE_S,
            transport=httpx.AsyncHTTPTransport(verify=self.trust, local_address=source),
        )

    def stream(self, query: str, source: str = "127.0.0.1") -> connect:
        return connect(
            f"wss://localhost:{self.port}/v1/events?{query}",
            ssl=self.trust,
            local_addr=(source, 0),
            proxy=None,
        )

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@asynccontextmanager
async def in_front(kind: str, folder: Path, relay: ForkedRelay) -> AsyncIterator[Front]:
    command = {"nginx": nginx_command, "caddy": caddy_command}[kind]
    certificate(folder / "certs")
    port = free_port()
    relay_port = httpx.URL(relay.access.url).port
    assert relay_port is not None
    arguments = command(folder, port, relay_port)
    log = folder / "output.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*arguments, stdout=output, stderr=output)
    trust = ssl.create_default_context(cafile=str(folder / "certs/fullchain.pem"))
    try:
        async with serving(relay) as running:
            front = Front(folder, port, running, trust)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    assert process.returncode is None, log.read_text()
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except ConnectionRefusedError:
                        await asyncio.sleep(0.05)
                    else:
                        writer.close()
                        break
            yield front
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@pytest.fixture(params=["nginx", "caddy"])
async def front(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Front]:
    if {"nginx": NGINX, "caddy": CADDY}[request.param] is None:
        pytest.skip(f"{request.param} is not installed: script/setup")
    environment = {
        "BELLWIRE_TRUSTED_PROXIES": '["127.0.0.1"]',
        "BELLWIRE_MAX_CONNECTIONS_PER_ADDRESS": "2",
    }
    relay = ForkedRelay(tmp_path / "relay", environment=environment)
    folder = tmp_path / "proxy"
    folder.mkdir()
    async with relay, in_front(request.param, folder, relay) as opened:
        yield opened


async def streaming(front: Front) -> str:
    """A query that opens the stream of a new device."""
    device = fresh("web")
    body = {"identity": device, "channels": [{"kind": "websocket"}]}
    assert (await front.running.http.put(f"/v1/devices/{device}", json=body)).is_success
    shown = (await front.running.token(device, device))["Authorization"]
    return f"token={shown.removeprefix('Bearer ')}"


async def test_requests_come_through_and_what_is_private_does_not(front: Front) -> None:
    key = {"Authorization": f"Bearer {front.running.relay.access.api_key}"}
    async with front.client() as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/v1/calls", headers=key)).status_code == 200
        assert (await http.get("/v1/calls")).status_code == 401
        for path in ("/readyz", "/metrics", "/metrics/devices"):
            assert (await http.get(path, headers=key)).status_code == 404
        too_long = await http.get("/healthz", headers={"X-Long": "a" * 2 * HEAD_BYTES})
        assert too_long.status_code in (400, 431)
        too_large = await http.post("/v1/calls", headers=key, content=b" " * 70_000)
        assert too_large.status_code == 413


async def test_a_stream_stays_open_and_its_token_is_in_no_log(front: Front) -> None:
    query = await streaming(front)
    async with front.stream(query) as stream:
        assert '"stream.opened"' in str(await stream.recv())
        began = time.monotonic()
        while time.monotonic() - began < 2:  # longer than a body may take at this Caddy
            await (await stream.ping())
            await asyncio.sleep(0.1)
    await front.running.relay.stop()
    with pytest.raises(InvalidStatus) as refused:
        async with front.stream(query):
            pass
    assert refused.value.response.status_code == 502
    async with asyncio.timeout(PATIENCE_S):
        while front.logs().count("/v1/events") < 2:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.05)
    secret = query.removeprefix("token=")
    assert secret[:30] not in front.logs() and secret[-30:] not in front.logs()


async def test_the_relay_counts_each_client_for_itself(front: Front) -> None:
    opened: list[ClientConnection] = []
    try:
        for source in ("127.0.0.8", "127.0.0.9"):
            for _ in range(2):
                opened.append(await front.stream(await streaming(front), source))
                await opened[-1].recv()
            with pytest.raises(InvalidStatus) as refused:
                await front.stream(await streaming(front), source)
            assert refused.value.response.status_code == 429
            assert b"max_connections_per_address" in (refused.value.response.body or b"")
        headers = {"X-Forwarded-For": "203.0.113.99"}  # which is not believed
        async with front.client("127.0.0.9") as http:
            assert (await http.get("/v1/calls", headers=headers)).status_code == 429
        async with front.client("127.0.0.10") as http:
            assert (await http.get("/healthz")).status_code == 200
    finally:
        for stream in opened:
            await stream.close()


@pytest.mark.skipif(CADDY is None, reason="caddy is not installed: script/setup")
def test_caddy_takes_the_file_as_it_stands() -> None:
    assert CADDY is not None
    path = str(DEPLOY / "Caddyfile")
    for command in (["adapt", "--config", path, "--adapter", "caddyfile"], ["fmt", path]):
        answer = subprocess.run([CADDY, *command], capture_output=True, text=True, check=True)  # noqa: S603
        assert "not formatted" not in answer.stderr
    assert answer.stdout == Path(path).read_text()
