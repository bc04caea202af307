"""Nobody overwrites what they have not seen, and a name that nobody has said is asked about."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.cli.fleet.bases import NOTE, merge_three
from tests.cli.fleet_stage import FleetStage, fleet_stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path) as here:
        yield here


async def exported(stage: FleetStage) -> Path:
    """The fleet's layers as files: `default` and `groups/north`."""
    await stage.run("set", 'audio={"ring_volume": 0.3, "ring_tone": "classic"}', "--default")
    await stage.run("set", "call_timeout_s=30", "--group", "north")
    folder = stage.folder / "fleet"
    assert (await stage.run("export", folder)).code == 0
    return folder


def noted(folder: Path) -> dict[str, Any]:
    layers: dict[str, Any] = json.loads((folder / NOTE).read_text())["layers"]
    return {name: (base["file"], base["revision"]) for name, base in layers.items()}


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


async def test_export_notes_the_revisions_and_apply_refuses_where_another_came_since(
    stage: FleetStage,
) -> None:
    folder = await exported(stage)
    assert noted(folder) == {
        "default": ("default.toml", 1),
        "group/north": ("groups/north.toml", 1),
    }
    await stage.run("set", "audio.ring_volume=0.9", "--default", operator="bob")
    replace(folder / "default.toml", "classic", "chime")
    for what in (folder, folder / "default.toml"):
        refused = await stage.run("apply", what)
        refused.must_say_in_one_line(
            *("layer default", "revision 2 by bob", "made of revision 1", "--merge")
        )
    (row, *_) = await stage.json("log", "--default")
    assert (row["revision"], row["settings"]["audio"]["ring_volume"]) == (2, 0.9)


async def test_merge_takes_both_sides_and_the_file_says_so_too(stage: FleetStage) -> None:
    folder = await exported(stage)
    await stage.run("set", "audio.ring_volume=0.9", "--default", operator="bob")
    replace(folder / "default.toml", "classic", "chime")
    both = {"audio": {"ring_volume": 0.9, "ring_tone": "chime"}}
    applied = await stage.json("apply", folder, "--merge", "--force")
    assert applied["written"] == {"default": 3}
    assert (await stage.json("log", "--default"))[0]["settings"] == both
    assert (await stage.run("diff", folder)).code == 0
    assert noted(folder)["default"] == ("default.toml", 3)
    again = await stage.json("apply", folder)
    assert again["written"] == {}

    replace(folder / "default.toml", "0.9", "0.5")
    await stage.run("set", "audio.ring_volume=0.1", "--default", operator="bob")
    refused = await stage.run("apply", folder, "--merge")
    refused.must_say_in_one_line(
        "layer default", "revision 4 by bob", "audio.ring_volume is 0.5 in the file and 0.1 there"
    )
    assert "0.5" in (folder / "default.toml").read_text(), "and the file is as it was"


async def test_layer_that_somebody_made_since_is_not_overwritten_by_a_file_of_its_name(
    stage: FleetStage,
) -> None:
    folder = await exported(stage)
    await stage.run("set", "call_timeout_s=5", "--group", "south", operator="bob")
    (folder / "groups/south.toml").write_text('log_level = "debug"\n')
    refused = await stage.run("apply", folder)
    refused.must_say_in_one_line("layer group/south", "revision 1 by bob", "made of no revision")
    await stage.run("apply", folder, "--merge")
    (row, *_) = await stage.json("log", "--group", "south")
    assert row["settings"] == {"call_timeout_s": 5, "log_level": "debug"}


async def test_what_changes_no_settings_and_what_the_files_say_already_is_in_nobodys_way(
    stage: FleetStage,
) -> None:
    folder = await exported(stage)
    await stage.run("apply", folder / "default.toml", "--percent", "50")
    await stage.run("set", "call_timeout_s=31", "--group", "north", operator="bob")
    replace(folder / "groups/north.toml", "30", "31")
    replace(folder / "default.toml", "classic", "chime")
    applied = await stage.run("apply", folder, "--force")
    assert applied.code == 0, applied
    (folder / NOTE).write_text("{")
    (await stage.run("apply", folder)).must_say_in_one_line(NOTE, "cannot be read")
    (folder / NOTE).unlink()
    assert (await stage.run("apply", folder, "--force")).code == 0, (
        "files without a note are as ever"
    )


VALUES = st.one_of(st.integers(0, 1), st.booleans(), st.lists(st.integers(0, 1), max_size=1))
SETTINGS = st.recursive(
    st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("ab"), st.one_of(VALUES, inner), max_size=2),
    max_leaves=6,
)


@given(SETTINGS, SETTINGS, SETTINGS)
def test_merge_of_three_keeps_each_sides_changes_and_takes_no_side_twice(
    base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    def text(document: object) -> str:
        return json.dumps(document, sort_keys=True)

    assert text(merge_three(base, ours, base)[0]) == text(ours)
    assert text(merge_three(base, base, theirs)[0]) == text(theirs)
    one, other = merge_three(base, ours, theirs), merge_three(base, theirs, ours)
    assert {path for path, *_ in one[1]} == {path for path, *_ in other[1]}
    if not one[1]:
        assert text(one[0]) == text(other[0])


async def test_name_that_nobody_has_said_is_a_warning_with_the_nearest(stage: FleetStage) -> None:
    await stage.add("lobby-1", groups=["south"])
    ended = await stage.run("set", "call_timeout_s=7", "--group", "sotuh")
    assert ended.code == 0
    assert "nobody has named group sotuh so far: did you mean south?" in ended.out
    ended = await stage.run("set", 'groups=["suoth"]', "--device", "lobbi-1")
    assert "nobody has named group suoth so far: did you mean s" in ended.out
    assert "nobody has named device lobbi-1 so far: did you mean lobby-1?" in ended.out
    stage.write("groups/west.toml", "call_timeout_s = 7\n")
    stage.write("devices/lobby-1.toml", 'groups = ["west"]\n')
    applied = await stage.json("apply", stage.folder / "layers")
    assert applied["warnings"] == [], "who makes a group and puts somebody in means it"
    shown = await stage.json("set", "call_timeout_s=7", "--group", "xyz")
    assert shown["warnings"] == ["nobody has named group xyz so far"]
