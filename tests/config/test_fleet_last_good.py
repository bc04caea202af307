"""The power goes at any byte and at any step of a write: the device starts with the old or the new."""

import hashlib
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bellwire.config.fleet.last_good import LastGood, state_folder
from bellwire.config.fleet.layer import Layer
from bellwire.config.fleet.obeyed import ObeyedLayers
from tests.config.fleet_parts import layer

OLD = {"default": layer({"call_timeout_s": 5})}
NEW = {"default": layer({"call_timeout_s": 6}, 2), "device": layer({"groups": ["a"]})}
STEPS = ("open", "os.rename", "os.remove")


class PowerCutError(BaseException):
    """Nothing more happens, as after a power cut."""


class _Cut:
    left: int | None = None
    folder = ""


def _cut_power(event: str, arguments: tuple[Any, ...]) -> None:
    if _Cut.left is None or event not in STEPS or _Cut.folder not in str(arguments[0]):
        return
    _Cut.left -= 1
    if _Cut.left < 0:
        raise PowerCutError(event)


sys.addaudithook(_cut_power)


@contextmanager
def power_until_step(number: int, folder: Path) -> Iterator[None]:
    """The power goes before the file operation of this number."""
    _Cut.left, _Cut.folder = number, str(folder)
    try:
        yield
    finally:
        _Cut.left = None


@contextmanager
def power_until_byte(number: int) -> Iterator[None]:
    """The kernel takes this many bytes of a file and no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def started(folder: Path) -> dict[str, Layer]:
    """What a device starts with."""
    return LastGood(folder, "gate").layers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    LastGood(folder, "gate").save(OLD)
    return folder


def test_what_was_saved_is_there_after_a_restart_and_only_its_owner_reads_it(folder: Path) -> None:
    assert started(folder) == OLD
    LastGood(folder, "gate").save(NEW)
    assert started(folder) == NEW
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not list(folder.glob("*.partial"))


def test_power_cut_at_every_byte_of_a_write_leaves_the_old_one(folder: Path) -> None:
    size = len(_document_of(NEW, folder))
    for written in range(size):
        with power_until_byte(written), pytest.raises(OSError, match="File too large"):
            LastGood(folder, "gate").save(NEW)
        assert started(folder) == OLD, written
    assert [p.stat().st_size for p in folder.glob(".*.partial")] == [size - 1], "it was cut indeed"
    LastGood(folder, "gate").save(NEW)
    assert started(folder) == NEW


def test_power_cut_at_every_step_leaves_the_old_or_the_new_one(folder: Path) -> None:
    seen = []
    for step in range(40):
        LastGood(folder, "gate").save(OLD)
        kept = LastGood(folder, "gate")
        try:
            with power_until_step(step, folder):
                kept.save(NEW)
        except PowerCutError:
            assert started(folder) in (OLD, NEW), step
            seen.append(started(folder) == NEW)
        else:
            assert started(folder) == NEW
            break
    assert len(seen) > 4, "there are that many steps"
    assert seen == sorted(seen), "first the old one, from some step on the new one"
    assert seen[-1], "the last step only makes it durable"


def test_a_file_that_was_torn_at_any_offset_falls_back_to_the_one_before(folder: Path) -> None:
    LastGood(folder, "gate").save(NEW)
    file = folder / "fleet-gate.json"
    whole = file.read_bytes()
    for offset in range(len(whole)):
        file.write_bytes(whole[:offset])
        assert started(folder) == OLD, offset
        file.write_bytes(whole[:offset] + bytes(len(whole) - offset))
        assert started(folder) == OLD, offset


def test_a_damaged_file_does_not_push_out_the_one_before_when_a_write_is_cut(folder: Path) -> None:
    LastGood(folder, "gate").save(NEW)
    (folder / "fleet-gate.json").write_bytes(b"torn")
    kept = LastGood(folder, "gate")
    for step in range(40):
        try:
            with power_until_step(step, folder):
                kept.save(NEW)
        except PowerCutError:
            assert started(folder) in (OLD, NEW), step
        else:
            break
    assert started(folder) == NEW


def test_without_a_whole_file_there_is_nothing_and_the_devices_own_file_counts(
    folder: Path, tmp_path: Path
) -> None:
    assert started(tmp_path / "never") == {}
    (folder / "fleet-gate.json").write_bytes(b"")
    assert started(folder) == {}


def test_a_card_that_was_copied_to_another_device_brings_it_no_layers(folder: Path) -> None:
    (folder / "fleet-gate.json").rename(folder / "fleet-other.json")
    assert LastGood(folder, "other").layers == {}


def test_a_disk_that_is_full_keeps_what_was(folder: Path) -> None:
    kept = LastGood(folder, "gate")
    with power_until_byte(10), pytest.raises(OSError, match="File too large"):
        kept.save(NEW)
    assert kept.layers == OLD
    kept.save(NEW)
    assert kept.layers == started(folder) == NEW


def test_state_is_kept_where_it_is_said_then_where_systemd_says_then_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_folder(file) == tmp_path
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/bellwire:/var/lib/more")
    assert state_folder(file) == Path("/var/lib/bellwire")
    assert state_folder(file, tmp_path / "here") == tmp_path / "here"


def _document_of(layers: dict[str, Layer], folder: Path) -> bytes:
    elsewhere = folder.with_name("elsewhere")
    LastGood(elsewhere, "gate").save(layers)
    return (elsewhere / "fleet-gate.json").read_bytes()


def test_revisions_that_were_obeyed_are_remembered_also_of_layers_that_went(tmp_path: Path) -> None:
    last_good = LastGood(tmp_path, "gate")
    last_good.save({"default": layer({}, 8), "group/a": layer({"log_level": "debug"}, 5)})
    last_good.save({"default": layer({}, 9)})
    obeyed = ObeyedLayers(LastGood(tmp_path, "gate").obeyed)
    assert {name: one.revision for name, one in obeyed.highest.items()} == {
        "default": 9,
        "group/a": 5,
    }
    assert obeyed.beyond([("default", 9)]) == {"group/a": 5}
    shown = {"default": layer({}, 9), "group/a": layer({}, 5)}
    followed, (outdated,) = obeyed.sift(shown, {})
    assert followed == {"default": shown["default"]}
    assert (outdated.layer, outdated.revision) == ("group/a", 5)
    assert "another content than that of revision 5" in outdated.reason


def test_file_of_the_version_before_tells_what_was_obeyed(tmp_path: Path) -> None:
    last_good = LastGood(tmp_path, "gate")
    last_good.save(NEW)
    (file,) = tmp_path.glob("fleet-gate.json")
    body = json.loads(file.read_bytes().partition(b"\n")[2])
    del body["obeyed"]
    of_before = json.dumps(body).encode()
    file.write_bytes(hashlib.sha256(of_before).hexdigest().encode() + b"\n" + of_before)
    known = LastGood(tmp_path, "gate")
    assert known.layers == NEW
    assert {name: one.revision for name, one in known.obeyed.items()} == {"default": 2, "device": 1}


def test_of_very_many_groups_those_in_force_and_the_last_left_are_remembered() -> None:
    obeyed = ObeyedLayers()
    for number in range(200):
        obeyed.note({"default": layer({}, 1), f"group/{number}": layer({}, 1)})
    assert len(obeyed.highest) == 64
    assert {"default", "group/199", "group/150"} <= obeyed.highest.keys()
