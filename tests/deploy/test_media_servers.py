"""What an operator installs for sound: coturn and Janus, started with the very files of `deploy/`."""

import re
from datetime import UTC, datetime
from pathlib import Path

from bellwire.push.access.tokens import Actor
from bellwire.push.calls.ice_servers import IceServers
from tests.janus import DEPLOY, ask, janus, needs_janus
from tests.push.coturn import coturn, needs_coturn

SHIPPED = "CHANGE-ME-API"
SECRET = "0123456789abcdef" * 2


@needs_coturn
async def test_coturn_takes_every_line_of_its_configuration_and_the_relays_credentials(
    tmp_path: Path,
) -> None:
    text = (DEPLOY / "turnserver.conf").read_text()
    # Its secret, port, certificate and log are the test's own.
    own = ("static-auth-secret=", "listening-port=", "cert=", "pkey=", "syslog")
    base = "\n".join(line for line in text.splitlines() if not line.startswith(own))
    source = IceServers((), ("turn:x",), SECRET, 3600, now=lambda: datetime.now(UTC))
    (server,) = source.of(Actor()).ice_servers
    assert server.username is not None and server.credential is not None
    shown = server.username, server.credential
    async with coturn(tmp_path, SECRET, base) as running:
        await running.allocate(*shown)
        for denied in ("10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.1.1", "172.31.255.255"):
            assert not await running.lets_send(*shown, denied), denied
        assert await running.lets_send(*shown, "8.8.8.8")
        log = running.log.read_text()
    assert not re.search(r"(?i)bad config|unknown|unrecognized|deprecated", log), log


def test_coturn_is_told_the_secret_in_one_place_that_must_be_changed() -> None:
    lines = (DEPLOY / "turnserver.conf").read_text().splitlines()
    assert lines.count("static-auth-secret=CHANGE-ME") == 1
    assert "use-auth-secret" in lines
    assert not any(line.startswith(("user=", "no-auth", "allow-loopback")) for line in lines)


@needs_janus
async def test_janus_makes_a_room_for_a_call_for_who_has_the_secrets_alone(tmp_path: Path) -> None:
    async with janus(tmp_path, secret=None) as running, await running.opened() as socket:
        refused = await ask(socket, "wrong", janus="create")
        assert (refused["janus"], refused["error"]["code"]) == ("error", 403)
        session = (await ask(socket, SHIPPED, janus="create"))["data"]["id"]
        other = {"janus": "attach", "session_id": session, "plugin": "janus.plugin.echotest"}
        assert (await ask(socket, SHIPPED, **other))["janus"] == "error"
        attach = {**other, "plugin": "janus.plugin.audiobridge"}
        handle = (await ask(socket, SHIPPED, **attach))["data"]["id"]
        here = {"janus": "message", "session_id": session, "handle_id": handle}
        room = {"request": "create", "room": "CA" + "0" * 32, "sampling_rate": 48000}
        answer = await ask(socket, SHIPPED, **here, body=room)
        assert "error" in answer["plugindata"]["data"]
        answer = await ask(socket, SHIPPED, **here, body={**room, "admin_key": "CHANGE-ME-ROOMS"})
        assert answer["plugindata"]["data"]["audiobridge"] == "created"
        answer = await ask(socket, SHIPPED, **here, body={"request": "list"})
        assert [one["room"] for one in answer["plugindata"]["data"]["list"]] == [room["room"]]
