"""Settings of an agent: the file that `bellwire devices add` writes, and what it says when it is wrong."""

import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from bellwire.config.agent.behaviour import BehaviourSettings
from bellwire.config.agent.settings import (
    AgentSettings,
    BrokerSettings,
    agent_file,
    default_panel,
    load_agent_settings,
)
from bellwire.config.private_file import write_private
from bellwire.signaling.errors import InvalidInput

PASSWORD = "a password that nobody may read"
SETTINGS = AgentSettings(
    device_id="front-door",
    identity="door",
    broker=BrokerSettings(
        url="mqtts://relay.example:8883",
        username="front-door",
        password=SecretStr(PASSWORD),
        ca_file=Path("/etc/bellwire/ca.pem"),
    ),
    panel=default_panel(["alice", "bob"]),
    call_timeout_s=30,
    log_level="debug",
)
SHORTEST = """\
device_id = "front-door"
identity = "door"
[broker]
url = "mqtt://127.0.0.1:1883"
username = "front-door"
password = "secret"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_settings_come_back_from_the_file_that_is_written(file: Path) -> None:
    write_private(file, agent_file(SETTINGS))
    assert load_agent_settings(file) == SETTINGS
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_the_file_says_that_it_is_secret_and_leaves_out_what_is_not_said() -> None:
    settings = AgentSettings.model_validate(tomllib.loads(SHORTEST))
    text = agent_file(settings)
    assert "mode 600" in text and "never in version control" in text
    document = tomllib.loads(text)
    assert document == tomllib.loads(SHORTEST)
    assert (settings.call_timeout_s, settings.log_level) == (60, "info")


def test_the_password_shows_nowhere_but_in_the_file() -> None:
    for shown in (repr(SETTINGS), str(SETTINGS), SETTINGS.model_dump_json(), f"{SETTINGS.broker}"):
        assert PASSWORD not in shown
    assert PASSWORD in agent_file(SETTINGS)


def test_door_codes_are_written_as_they_are_and_never_as_their_masks(file: Path) -> None:
    doors = {"front": {"callers": ["alice"], "code": "4711#"}, "yard": {"by_message": True}}
    behaviour = {"time_zone": "Europe/Berlin", "doors": doors}
    settings = SETTINGS.model_copy(
        update={"behaviour": BehaviourSettings.model_validate(behaviour)}
    )
    write_private(file, agent_file(settings))
    assert load_agent_settings(file) == settings
    assert "**" not in file.read_text()


def test_a_file_that_is_missing_says_how_to_make_it(file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"bellwire devices add ID --identity NAME --out .*toml"):
        load_agent_settings(file)


@pytest.mark.parametrize("content", [b"device_id = ", b"\xff\xfe", b"[broker\n"])
def test_a_file_that_is_no_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"agent\.toml cannot be read"):
        load_agent_settings(file)


def test_a_folder_in_the_files_place_is_named(file: Path) -> None:
    file.mkdir()
    with pytest.raises(InvalidInput, match=r"agent\.toml cannot be read"):
        load_agent_settings(file)


@pytest.mark.parametrize(
    ("found", "put", "place"),
    [
        ('identity = "door"\n', "", "identity: Field required"),
        ('"front-door"\nidentity', '"../etc"\nidentity', "device_id: "),
        ('"door"', '"two words"', "identity: "),
        ('password = "secret"', "", "broker.password: Field required"),
        ('url = "mqtt://127.0.0.1:1883"', "url = 5", "broker.url: "),
        ("[broker]", "call_timeout_s = 0\n[broker]", "call_timeout_s: "),
        ("[broker]", "call_timeout_s = 601\n[broker]", "call_timeout_s: "),
        ("[broker]", "call_timeout_s = nan\n[broker]", "call_timeout_s: "),
        ("[broker]", 'log_level = "loud"\n[broker]', "log_level: "),
        ("[broker]", 'colour = "red"\n[broker]', "colour: unknown setting `colour` at the top"),
        (
            "[broker]",
            "[panel.answer]\npin = 99\n[broker]",
            "panel.answer.pin: there is no such pin: ",
        ),
        (
            "[broker]",
            '[audio]\nring_tone = "dingdong"\n[broker]',
            "audio.ring_tone: there is no ring",
        ),
        (
            '"door"',
            '"door"\nremote = ["panel.door.pin"]',
            "remote: 'panel.door.pin' cannot be opened",
        ),
        ("[broker]", '[audio]\nring_tone = "/no/ring.wav"\n[broker]', "audio.ring_tone: "),
    ],
)
def test_a_mistake_is_named_by_its_place_and_the_secret_is_not_shown(
    file: Path, found: str, put: str, place: str
) -> None:
    text = SHORTEST.replace(found, put, 1)
    assert text != SHORTEST
    file.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        load_agent_settings(file)
    assert f"{file} is not a valid agent configuration: {place}" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "[panel]\ncall_timeout_s = 5",
            "unknown setting `call_timeout_s` in [panel]; it belongs at the top",
        ),
        ("[broker2]\nurl = 1", "unknown section [broker2]; did you mean `broker`?"),
        (
            "[audio]\nring_volum = 1",
            "unknown setting `ring_volum` in [audio]; did you mean `ring_v",
        ),
        ("[panel.dor]\npin = 4", "unknown section [panel.dor]; did you mean `door`?"),
        ("[panel.answer]\npin = 4\nspeed = 1", "unknown setting `speed` in [panel.answer]"),
        ("[[behaviour.quiet_hours]]\nstrt = 1", "`strt` in [behaviour.quiet_hours.0]"),
    ],
)
def test_an_unknown_setting_is_told_in_words_with_where_it_belongs(
    file: Path, more: str, told: str
) -> None:
    file.write_text(f"{SHORTEST}{more}\n")
    with pytest.raises(InvalidInput) as refused:
        load_agent_settings(file)
    assert told in str(refused.value)
    file.write_text(f"ring_volume = 0.5\n{SHORTEST}")
    with pytest.raises(InvalidInput, match=r"`ring_volume` at the top; it belongs in \[audio\]"):
        load_agent_settings(file)


def test_a_ring_tone_that_is_not_there_is_refused_with_those_that_are(
    file: Path, tmp_path: Path
) -> None:
    """Such a station was silent when it was rung, and nothing said so."""
    there = tmp_path / "door.wav"
    for tone, told in (
        ("dingdong", r"no ring tone 'dingdong'.*classic, digital, chime, european, silent"),
        (str(there), r"door\.wav cannot be played: there is no such file; .*classic"),
    ):
        file.write_text(f'{SHORTEST}[audio]\nring_tone = "{tone}"\n')
        with pytest.raises(InvalidInput, match=told):
            load_agent_settings(file)
    assert load_agent_settings(file, on_device=False).audio.ring_tone == str(there)
    there.touch()
    assert load_agent_settings(file).audio.ring_tone == str(there)


def test_a_password_of_the_wrong_type_is_not_shown_either(file: Path) -> None:
    file.write_text(SHORTEST.replace('"secret"', '["secret"]'))
    with pytest.raises(InvalidInput, match=r"broker\.password: ") as refused:
        load_agent_settings(file)
    assert "secret" not in str(refused.value)


def test_all_mistakes_are_reported_together(file: Path) -> None:
    file.write_text('device_id = "a/b"\nidentity = ""\n')
    with pytest.raises(InvalidInput) as refused:
        load_agent_settings(file)
    for place in ("device_id: ", "identity: ", "broker: Field required"):
        assert place in str(refused.value)


def test_the_default_panel_has_a_button_for_each_who_is_called() -> None:
    panel = default_panel(["alice", "bob"])
    assert {name: button.to for name, button in panel.call_buttons.items()} == {
        "alice": ("alice",),
        "bob": ("bob",),
    }
    assert panel.answer and panel.hang_up and panel.ringer and panel.status_light
    assert default_panel([]).call_buttons == {}
    assert len(default_panel([f"friend{n}" for n in range(7)]).call_buttons) == 7
    with pytest.raises(InvalidInput, match="7 call buttons, not 8"):
        default_panel([f"friend{n}" for n in range(8)])


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SETTINGS.identity = "somebody"  # type: ignore[misc] # what is tested
