"""`bellwire doctor audio` measures a sound card, and says what to do where something is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bellwire.config.agent.audio import AudioSettings
from bellwire.config.agent.settings import AgentSettings, BrokerSettings, agent_file
from bellwire.config.private_file import write_private
from tests.cli.command import bellwire
from tests.pulse import SPEAKER, PulseAudio, running_pulse


@pytest.fixture(scope="module")
def pulse() -> Iterator[PulseAudio]:
    """A microphone that hears nothing but the speaker."""
    with running_pulse() as pulse:
        pulse.set_defaults(SPEAKER, f"{SPEAKER}.monitor")
        yield pulse


def configured(path: Path, **audio: object) -> Path:
    settings = AgentSettings(
        device_id="desk",
        identity="desk",
        broker=BrokerSettings(url="mqtt://localhost", username="u", password=SecretStr("p")),
        audio=AudioSettings.model_validate(audio),
    )
    write_private(path, agent_file(settings))
    return path


async def test_doctor_measures_the_round_trip_and_the_echo_before_and_after_processing(
    pulse: PulseAudio,
) -> None:
    removed_db: list[float] = []
    while max(removed_db, default=0) <= 20 and len(removed_db) < 3:  # a busy machine tears sound up
        ended = await bellwire("doctor", "audio", "--json", more=pulse.environment)
        assert ended.code == 0, (ended.out, ended.err)
        found = json.loads(ended.out)
        assert {device["name"] for device in found["devices"]} >= {SPEAKER, "default"}
        measures = found["measures"]
        assert measures["fault"] is None
        assert 0 < measures["round_trip_s"] < 0.5
        assert measures["echo_db"] > -40
        assert ended.err == ""
        removed_db.append(measures["echo_db"] - measures["left_db"])
    assert max(removed_db) > 20


async def test_doctor_names_the_devices_there_are_where_the_configured_one_is_missing(
    pulse: PulseAudio, tmp_path: Path
) -> None:
    file = configured(tmp_path / "desk.toml", input_device="headset", output_device=SPEAKER)
    ended = await bellwire("doctor", "audio", "--config", file, more=pulse.environment)
    assert ended.code == 1, ended.out
    assert "✗ there is no microphone 'headset'" in ended.out
    assert "audio.input_device" in ended.out
    assert "configured speaker" in ended.out


async def test_doctor_says_what_to_do_where_there_is_no_sound_at_all(tmp_path: Path) -> None:
    (tmp_path / "asound.conf").write_text("pcm.!default { type hw card 31 }\n")
    ended = await bellwire(
        "doctor", "audio", more={"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}
    )
    assert ended.code == 1, ended.out
    assert "✗ this machine has no microphone" in ended.out
    assert "connect a USB sound card" in ended.out


async def test_doctor_says_that_a_ring_tone_cannot_be_played(
    pulse: PulseAudio, tmp_path: Path
) -> None:
    ring = tmp_path / "ring.wav"
    ring.write_bytes(b"no sound")
    file = configured(tmp_path / "desk.toml", ring_tone=str(ring))
    for command in (("doctor", "audio", "--list"), ("doctor",)):
        ended = await bellwire(*command, "--config", file, more=pulse.environment)
        assert ended.code == 1, ended.out
        assert f"✗ its ring tone: {ring} cannot be played" in ended.out
