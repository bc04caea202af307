"""The operator's guide to the fleet, followed from top to bottom on a broker with devices."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.cli.fleet.files import read_layers
from bellwire.config.agent.settings import ConfigurableSettings
from bellwire.config.fleet.merge import merge_patch
from tests.cli.fleet_stage import fleet_stage
from tests.docs.documents import ROOT

GUIDE = (ROOT / "docs/fleet.md").read_text()
_STEP = re.compile(r"<!-- (run|file: (\S+)) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_STATES = ("in step", "waiting", "refused", "behind", "unknown")


def steps() -> Iterator[tuple[str | None, str]]:
    """Each file of the guide and what it holds, or each block to run, in order."""
    for found in _STEP.finditer(GUIDE):
        yield found[2], found[3]


async def test_guide_works_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with fleet_stage(tmp_path) as stage:
        lobby = await stage.add("lobby-1", groups=["north"])
        await stage.add("tower-1", groups=["tower"])
        commands = 0
        for name, text in steps():
            if name is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
                continue
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[:2] == ["bellwire", "fleet"]
                done = await stage.run(*words[2:])
                assert done.code == 0, (line, done.out, done.err)
                commands += 1
        assert commands >= 10
        await stage.run("apply", "fleet", "--wait")
        assert lobby.live.now.groups == ("south",)
        assert {row["state"] for row in (await stage.statuses()).values()} == {"in step"}


def test_files_of_the_guide_are_settings_of_an_agent(tmp_path: Path) -> None:
    for name, text in steps():
        if name is not None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for settings in read_layers(tmp_path / "fleet").values():
        ConfigurableSettings.model_validate(merge_patch({}, settings))


@pytest.mark.parametrize("state", _STATES)
def test_guide_explains_each_state(state: str) -> None:
    assert f"*{state}*" in GUIDE
