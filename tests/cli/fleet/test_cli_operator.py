"""What an operator does from the terminal: devices, tokens and calls."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from bellwire.agent.calls.call import CallStatus
from bellwire.config.agent.layer_reach import LayerReach
from bellwire.config.agent.settings import load_agent_settings, settings_given
from tests.cli.command import Ended, bellwire
from tests.conftest import PATIENCE_S, running_station
from tests.forking import ForkedRelay

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWIML = """<?xml version="1.0"?>
<Response><Dial callerId="client:lobby" timeout="30"><Client>
<Identity>twiml</Identity><Parameter name="reason" value="parcel &amp; post" />
</Client></Dial></Response>
"""


async def operate(relay: ForkedRelay, *arguments: object) -> Ended:
    return await bellwire(*arguments, "--data", relay.data)


async def add(relay: ForkedRelay, name: str, out: Path, *more: str) -> Ended:
    return await operate(relay, "devices", "add", name, "--identity", name, "--out", out, *more)


async def test_device_is_added_rung_by_a_call_listed_and_removed(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    file = tmp_path / "gate.toml"
    added = await add(shared_relay, "gate", file, "--calls", "lobby")
    assert added.code == 0
    assert f"bellwire agent --config {file}" in added.out
    assert file.stat().st_mode & 0o777 == 0o600
    settings = load_agent_settings(file)
    assert settings.panel.call_buttons["lobby"].to == ("lobby",)
    # Shut: it opens no right to layers, and no door and no microphone to anybody.
    rights = {"doors": {"front": {"callers": ["eve"]}}, "auto_answer": {"callers": ["eve"]}}
    reach = LayerReach(settings_given(settings), settings.remote)
    assert (settings.remote, reach.heed({"behaviour": rights}).patch) == ((), {})
    assert settings.broker.password.get_secret_value() not in added.out + added.err

    async with running_station(settings) as gate:
        made = await operate(
            shared_relay, "call", "gate", "--from", "lobby", "--param", "a=b=c d", "--json"
        )
        assert made.code == 0
        call = json.loads(made.out)
        assert (call["from"], call["state"]) == ("lobby", "ringing")
        assert (await gate.until(CallStatus.PENDING)).custom_parameters == {"a": "b=c d"}
        await gate.fingers.press("h")

        listed = await operate(shared_relay, "devices", "list")
        assert re.search(r"gate\W+gate\W+mqtt", listed.out)

        removed = await operate(shared_relay, "devices", "remove", "gate")
        assert (removed.code, removed.out) == (0, "Removed device gate.\n")
    assert "gate" not in (await operate(shared_relay, "devices", "list")).out
    again = await operate(shared_relay, "devices", "remove", "gate")
    again.must_say_in_one_line("gate")


async def test_file_that_exists_is_not_overwritten_unless_credentials_are_rotated(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    file = tmp_path / "door.toml"
    file.write_text("precious")
    (await add(shared_relay, "door", file)).must_say_in_one_line(str(file), "--out FILE")
    assert file.read_text() == "precious"

    file.unlink()
    assert (await add(shared_relay, "door", file)).code == 0
    first = load_agent_settings(file).broker.password
    other = await add(shared_relay, "door", tmp_path / "second.toml")
    other.must_say_in_one_line("--rotate")
    assert not (tmp_path / "second.toml").exists()

    rotated = await add(shared_relay, "door", file, "--rotate")
    assert rotated.code == 0 and "put only [broker] of this one into it" in rotated.out
    settings = load_agent_settings(file)
    assert settings.broker.password != first
    async with running_station(settings):
        pass


async def test_device_is_not_registered_where_its_file_or_its_broker_is_wrong(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    """It was registered first: the file that could not be written took the password with it."""
    file = tmp_path / "hut.toml"
    for more, told in (
        (("--broker", "mqtt://192.0.2.7"), ("mqtt://192.0.2.7", "--insecure")),
        (("--broker", "http://192.0.2.7"), ("mqtt(s)://HOST",)),
        (("--out", str(tmp_path / "nowhere" / "hut.toml")), ("cannot be written", "--out FILE")),
    ):
        (await add(shared_relay, "hut", file, *more)).must_say_in_one_line(*told)
        assert not file.exists()
        assert "hut" not in (await operate(shared_relay, "devices", "list")).out
    insecure = await add(
        shared_relay, "hut", file, "--broker", "mqtt://192.0.2.7", "--insecure", "--rotate"
    )
    assert insecure.code == 0
    assert load_agent_settings(file).broker.url == "mqtt://192.0.2.7"
    local = await add(shared_relay, "hut", file, "--rotate")
    assert "is this machine itself: the file works nowhere else" in local.out


async def test_a_relay_that_names_devices_a_broker_without_tls_registers_none(
    tmp_path: Path,
) -> None:
    names = {"BELLWIRE_DEVICE_BROKER": "mqtt://192.0.2.7"}
    async with ForkedRelay(tmp_path / "relay", environment=names) as relay:
        refused = await add(relay, "hut", tmp_path / "hut.toml")
        refused.must_say_in_one_line("mqtt://192.0.2.7", "has no TLS", "--insecure")
        assert "No devices yet" in (await operate(relay, "devices", "list")).out


async def test_call_from_twiml_is_watched_to_its_end(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    document = tmp_path / "invite.xml"
    document.write_text(TWIML)
    file = tmp_path / "twiml.toml"
    assert (await add(shared_relay, "twiml", file)).code == 0
    async with running_station(load_agent_settings(file)) as station:
        watching = asyncio.create_task(operate(shared_relay, "call", "--twiml", document))
        rung = await station.until(CallStatus.PENDING)
        assert rung.custom_parameters == {"reason": "parcel & post"}
        await station.fingers.press("h")
        watched = await watching
    assert watched.code == 0
    assert re.search(r"twiml\W+Rejected", watched.out)
    assert "ended" in watched.out


async def test_call_to_nobody_known_says_what_to_do(shared_relay: ForkedRelay) -> None:
    ended = await operate(shared_relay, "call", "nobody-at-all")
    ended.must_say_in_one_line("device", "register")


async def test_token_is_printed_alone_and_lets_an_app_act_as_its_identity(
    shared_relay: ForkedRelay,
) -> None:
    plain = await operate(shared_relay, "token", "alice", "--ttl", "60")
    assert plain.code == 0
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", plain.out)
    headers = {"Authorization": f"Bearer {plain.out.strip()}"}
    async with httpx.AsyncClient(base_url=shared_relay.access.url, timeout=PATIENCE_S) as http:
        assert (await http.get("/v1/calls", headers=headers)).json()["calls"] == []
        assert (await http.get("/v1/devices", headers=headers)).status_code == 403
    detailed = await operate(shared_relay, "token", "alice", "--json")
    assert json.loads(detailed.out).keys() == {"token", "expires_at"}


@pytest.mark.parametrize(
    "command",
    [("devices", "list"), ("devices", "remove", "gate"), ("token", "alice"), ("call", "alice")],
    ids=" ".join,
)
async def test_wrong_api_key_is_refused_in_one_line_that_does_not_show_it(
    shared_relay: ForkedRelay, tmp_path: Path, command: tuple[str, ...]
) -> None:
    key = tmp_path / "key"
    key.write_text("bwk_of-another-relay\n")
    ended = await operate(shared_relay, *command, "--api-key-file", key)
    ended.must_say_in_one_line("API key")
    assert "bwk_" not in ended.err + ended.out
