"""`bellwire demo --once`: the whole product in one command, for people and for scripts."""

import asyncio
import json
from pathlib import Path

from tests.cli.command import bellwire


def test_demo_once_plays_a_call_and_ends_with_one_json_object(tmp_path: Path) -> None:
    ended = asyncio.run(bellwire("demo", "--once", more={"TMPDIR": str(tmp_path)}))
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out.splitlines()[-1])
    assert 0 < report["rang_ms"] < 5000
    assert 0 < report["answered_ms"] < 5000
    assert report["custom_parameters"] == {
        "caller_first_name": "alice",
        "caller_last_name": "smith",
        "reason": "Paket für Büro 7 & Lager",
    }
    assert report["final_states"]["desk"] == "Quit"
    assert report["call_state"] == "ended"
    assert report["voice_codec"] == "opus"
    assert report["voice_ms"] > 0
    assert all(part >= 0.5 for part in report["voice_heard"].values())
    assert report["voice_heard"].keys() == {"lobby", "desk"}
    for step in (
        "ringer pin high",
        "answer button pressed",
        "the call has ended",
        "hears desk's voice",
    ):
        assert step in ended.out
    assert list(tmp_path.iterdir()) == []
